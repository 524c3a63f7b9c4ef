"""The contents of a model folder: index, configs, and what the run wrote beside them."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..diffusion.scheduler import LEARNED_VARIANCES
from ..pipelines.fingerprint import weights_fingerprint
from ..pipelines.loading import check_index, load_pipeline

INDEX_FILE = "model_index.json"
CARD_FILE = "README.md"
CONFIG_FILE = "training_config.yaml"
SUMMARY_FILE = "training_summary.json"
EVALUATION_FILE = "evaluation.json"
SAMPLES_FILE = "samples.png"
CHAIN_FILE = "denoising.png"
ANIMATION_FILE = "denoising.gif"
LOSS_FILE = "loss.csv"
CURVE_FILE = "loss.png"
SCORES_FILE, SCORES_CURVE = "scores.csv", "scores.png"
BEST_FOLDER, PREVIEWS_FOLDER, CHECKPOINTS = "best", "previews", "checkpoint-<N>"
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
# Everything a run leaves, except for the trackers' folders in `--logging_dir`. `--overwrite_output_dir` removes these
# and nothing else; `--dry_run` and the push to the Hub choose from them.
RUN_FILES = (
    RunFile(INDEX_FILE, EVERY_RUN, on_page=True),
    RunFile("unet", EVERY_RUN, on_page=True),
    RunFile("scheduler", EVERY_RUN, on_page=True),
    RunFile(CARD_FILE, EVERY_RUN, on_page=True),
    RunFile(SAMPLES_FILE, EVERY_RUN, on_page=True),
    RunFile(CHAIN_FILE, EVERY_RUN, on_page=True),
    RunFile(ANIMATION_FILE, EVERY_RUN, on_page=True),
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
    """A folder that holds a DDPM pipeline.

    Attributes:
        path: of the folder.
        index, unet, scheduler: the content of its config files.
        settings: `training_config.yaml`; empty if missing.
        summary: `training_summary.json`; empty if missing.
    """

    path: Path
    index: dict[str, Any]
    unet: dict[str, Any]
    scheduler: dict[str, Any]
    settings: dict[str, Any]
    summary: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> "ModelFolder":
        """Read a folder's small files, not its weights.

        Raises:
            ValueError: if it holds no DDPM pipeline, or one of its files is malformed.
        """
        path = Path(path)
        if not (path / INDEX_FILE).is_file():
            raise ValueError(f"{path} is not a pipeline folder: it has no {INDEX_FILE}")
        index = _json(path / INDEX_FILE)
        check_index(index, str(path))
        return cls(
            path=path,
            index=index,
            unet=_json(component_folder(path, "unet") / "config.json"),
            scheduler=_json(component_folder(path, "scheduler") / "scheduler_config.json"),
            settings=_settings(path / CONFIG_FILE),
            summary=_json(path / SUMMARY_FILE) if (path / SUMMARY_FILE).is_file() else {},
        )

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """From `evaluation.json`, each with at least `name` and `value`; none if it is missing or of other weights.

        Raises:
            ValueError: if the file is malformed, or the weights cannot be loaded to compare.
        """
        file = self.path / EVALUATION_FILE
        if not file.is_file():
            return []
        report = _json(file)
        metrics = _metrics(report, file)
        if "weights" in report and report["weights"] != weights_fingerprint(load_pipeline(str(self.path)).unet):
            return []
        return metrics

    @property
    def evaluation_pictures(self) -> dict[str, str]:
        """Pictures of what was measured on these weights: file -> caption."""
        return {
            name: words
            for name, (figure, words) in EVALUATION_PICTURES.items()
            if self.has(name) and any(figure in metric for metric in self.metrics)
        }

    def has(self, name: str) -> bool:
        """Whether the file exists."""
        return (self.path / name).is_file()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images in pixels."""
        size = self.unet["sample_size"]
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.unet["in_channels"]

    @property
    def timesteps(self) -> int:
        """T."""
        return self.scheduler["num_train_timesteps"]

    @property
    def learns_variance(self) -> bool:
        """Whether the network also predicts a variance."""
        return self.scheduler.get("variance_type") in LEARNED_VARIANCES

    @cached_property
    def class_names(self) -> list[str]:
        """Class names by number, or the numbers if there are no names; empty for an unconditional model."""
        names = self.index.get("id2label") or {}
        count = len(names) or self.unet.get("num_class_embeds") or 0
        return [names.get(str(number), str(number)) for number in range(count)]

    @property
    def is_guided(self) -> bool:
        """Whether the network has a null class, which guidance needs."""
        return bool(self.class_names) and self.unet["num_class_embeds"] == len(self.class_names) + 1


def component_folder(path: Path, component: str) -> Path:
    """The folder of a component's files: its own, or, as in old repositories, that of the index."""
    return path / component if (path / component).is_dir() else path


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise ValueError(f"{file} cannot be read as JSON: {problem}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a mapping, got a {type(content).__name__}")
    return content


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


def _metrics(report: dict[str, Any], file: Path) -> list[dict[str, Any]]:
    if report.get("schema") != 1:
        raise ValueError(f"{file} must have schema 1, got {report.get('schema')!r}")
    metrics = report.get("metrics")
    if not isinstance(metrics, list):
        raise ValueError(f"{file} must have a list of metrics")
    for metric in metrics:
        number = metric.get("value") if isinstance(metric, dict) else None
        if not isinstance(number, int | float) or isinstance(number, bool) or not metric.get("name"):
            raise ValueError(f"{file}: each metric must have a name and a number as its value, got {metric!r}")
    return metrics
