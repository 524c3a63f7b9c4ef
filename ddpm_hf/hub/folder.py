"""The contents of a model folder: index, configs, and what the run wrote beside them."""

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..evaluation.record import EVALUATION_FILE, read_report
from ..files import read_json
from ..pipelines.fingerprint import weights_fingerprint
from ..pipelines.loading import PIPELINES, check_index, class_for, component_names, config_file, load_pipeline
from ..portable import (
    ADAPTERS_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    INPAINTING_FOLDER,
    UPSAMPLER_FOLDER,
    components,
)

CARD_FILE = "README.md"
SUMMARY_FILE = "training_summary.json"
SAMPLES_FILE = "samples.png"
CHAIN_FILE = "denoising.png"
ANIMATION_FILE = "denoising.gif"
SAMPLE_FILES = (SAMPLES_FILE, CHAIN_FILE, ANIMATION_FILE)
LOSS_FILE = "loss.csv"
CURVE_FILE = "loss.png"
SCORES_FILE, SCORES_CURVE = "scores.csv", "scores.png"
BEST_FOLDER, PREVIEWS_FOLDER, CHECKPOINTS = "best", "previews", "checkpoint-<N>"
TAUGHT_FOLDER = "taught-encoder"
STAGING_FOLDER = "hub-upload.partial"


class RunFile(NamedTuple):
    """A file or folder at the top of an output folder.

    Attributes:
        name: may contain <N> for a number.
        writer: the script that writes it, or the flag of train.py that asks for it.
        on_page: whether it is pushed to the model page, after local paths are removed.
    """

    name: str
    writer: str
    on_page: bool = False

    @property
    def pattern(self) -> str:
        return re.escape(self.name).replace("<N>", r"\d+")


EVERY_RUN, KILLED_RUN, OLDER_VERSION = "train.py", "a killed train.py", "an older version"
PICTURES_RUN = "train.py, but not of a CLIP or a prior"
DIFFUSION_RUN = "train.py, of what draws pictures step by step"
# Everything a run leaves, except for the pipeline's components and the trackers' folders in `--logging_dir`.
# `--overwrite_output_dir` removes all of these and nothing else; `--dry_run` and the push to the Hub choose from them.
RUN_FILES = (
    RunFile(INDEX_FILE, EVERY_RUN, on_page=True),
    RunFile(CARD_FILE, EVERY_RUN, on_page=True),
    RunFile(SAMPLES_FILE, PICTURES_RUN, on_page=True),
    RunFile(CHAIN_FILE, DIFFUSION_RUN, on_page=True),
    RunFile(ANIMATION_FILE, DIFFUSION_RUN, on_page=True),
    RunFile(LOSS_FILE, EVERY_RUN, on_page=True),
    RunFile(CURVE_FILE, EVERY_RUN, on_page=True),
    RunFile(CONFIG_FILE, EVERY_RUN, on_page=True),
    RunFile(SUMMARY_FILE, EVERY_RUN),
    RunFile(EVALUATION_FILE, "--holdout", on_page=True),
    RunFile("evaluation", "evaluate.py"),
    RunFile(PREVIEWS_FOLDER, "--preview_steps"),
    RunFile(SCORES_FILE, "--eval_steps"),
    RunFile(SCORES_CURVE, "--eval_steps"),
    RunFile(BEST_FOLDER, "--save_best_by"),
    RunFile(UPSAMPLER_FOLDER, "--stage upsampler or super-resolution", on_page=True),
    RunFile(INPAINTING_FOLDER, "--stage inpainting", on_page=True),
    RunFile(TAUGHT_FOLDER, "--text_encoder taught"),
    RunFile(ADAPTERS_FILE, "--lora_rank", on_page=True),
    RunFile(CHECKPOINTS, EVERY_RUN),
    RunFile(f"{CHECKPOINTS}.partial", KILLED_RUN),
    RunFile(f"{CHECKPOINTS}.replaced", KILLED_RUN),
    RunFile(STAGING_FOLDER, KILLED_RUN),
    RunFile("bad_batch.json", "train.py, when it gives up"),
    RunFile("sampling.json", OLDER_VERSION),
    RunFile("pipeline.py", OLDER_VERSION),
    RunFile(f"{BEST_FOLDER}.partial", OLDER_VERSION),
)

# Pictures of an evaluation -> a figure that must be present (else they show other weights), and a caption. Pictures of
# training images are not published: a program cannot know who may see them.
EVALUATION_PICTURES = {
    "evaluation/comparison.png": ("network_calls", "Quality by network calls per image; the dashed line is the floor"),
    "evaluation/comparison_samples.png": ("network_calls", "First images of each sampler or model, from equal noise"),
    "evaluation/nll_terms.png": ("rate", "Bits/dim of each term of the bound by timestep"),
    "evaluation/nll_rate_distortion.png": (
        "rate",
        "Prediction error by bits sent, as in Ho et al. 2020, Fig. 5",
    ),
    "evaluation/closest_pixels_distances.png": (
        "median_distance",
        "Distance of samples and of held-out images to their nearest training images, by pixels",
    ),
    "evaluation/closest_features_distances.png": (
        "median_distance",
        "Distance of samples and of held-out images to their nearest training images, by features",
    ),
}

# The key in `training_config.yaml` for what was found rather than set: held-out rows, classes, sizes.
RECORDED = "recorded"


@dataclass(frozen=True)
class ModelFolder:
    """A folder that holds one of `PIPELINES`.

    Attributes:
        path: of the folder.
        index: `model_index.json`.
        configs: component -> the content of its config file.
        settings: `training_config.yaml`; empty if missing.
        summary: `training_summary.json`; empty if missing.
    """

    path: Path
    index: dict[str, Any]
    configs: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    summary: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> "ModelFolder":
        """Read a folder's small files, not its weights.

        Raises:
            ValueError: if it holds no pipeline of a known class, or one of its files is missing or malformed.
        """
        path = Path(path)
        if not (path / INDEX_FILE).is_file():
            raise ValueError(f"{path} is not a pipeline folder: it has no {INDEX_FILE}")
        index = read_json(path / INDEX_FILE)
        check_index(index, str(path))
        return cls(
            path=path,
            index=index,
            configs={name: read_json(config_file(path, name)) for name in components(index)},
            settings=_settings(path / CONFIG_FILE),
            summary=read_json(path / SUMMARY_FILE) if (path / SUMMARY_FILE).is_file() else {},
        )

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """From `evaluation.json`, each with at least `name` and `value`; none if it is missing or of other weights.

        Raises:
            ValueError: if the file is malformed, or the weights cannot be loaded to compare.
        """
        report = read_report(self.path / EVALUATION_FILE)
        if "weights" not in report:
            return report["metrics"]
        weights = [weights_fingerprint(stage) for stage in load_pipeline(str(self.path)).stages]
        if report["weights"] != weights[0]:
            return []
        return [metric for metric in report["metrics"] if metric.get("upsampler") in (None, *weights[1:])]

    @property
    def evaluation_pictures(self) -> dict[str, str]:
        """Pictures of what was measured on these weights: file -> caption."""
        return {
            name: words
            for name, (figure, words) in EVALUATION_PICTURES.items()
            if self.has(name) and any(figure in metric for metric in self.metrics)
        }

    @cached_property
    def upsampler(self) -> "ModelFolder | None":
        """The folder of its upsampler, if there is one."""
        return self.stage(UPSAMPLER_FOLDER)

    @cached_property
    def inpainting(self) -> "ModelFolder | None":
        """The folder of the model that was fine-tuned from it for inpainting, if there is one."""
        return self.stage(INPAINTING_FOLDER)

    @property
    def draws_on_data(self) -> bool:
        """Whether its samples show images of the data, in part, enlarged or reconstructed, which are not published."""
        kinds = ("IFInpaintingPipeline", "StableDiffusionInpaintPipeline", "IFSuperResolutionPipeline")
        return self.index["_class_name"] in (*kinds, "ReconstructionPipeline")

    def stage(self, name: str) -> "ModelFolder | None":
        """What was trained for it, or from it, in a folder of this name, if there is one."""
        folder = self.path / name
        return ModelFolder.read(folder) if (folder / INDEX_FILE).is_file() else None

    def has(self, name: str) -> bool:
        """Whether the file exists."""
        return (self.path / name).is_file()


def written_components(path: Path) -> list[str]:
    """The component folders that a run wrote: those in its index, or, if it was killed before it wrote one, any."""
    if (path / INDEX_FILE).is_file():
        with suppress(ValueError):
            return list(components(read_json(path / INDEX_FILE)))
    return sorted({name for known in PIPELINES for name in component_names(class_for(known))})


def _settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as problem:
        raise ValueError(f"{file} cannot be read as YAML: {' '.join(str(problem).split())}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{file} must hold a mapping of settings to values")
    return settings
