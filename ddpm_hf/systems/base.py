"""What stages have in common that go on from a finished model in the folder above theirs."""

from dataclasses import replace
from pathlib import Path

from ..conditions.hole import Hole, Known, pictures
from ..data.captioned_digits import DATA_SET
from ..data.examples import TrainingImages
from ..hub.folder import ModelFolder
from ..pipelines.ddpm import DDPMPipeline
from ..pipelines.loading import load_pipeline
from ..portable import INDEX_FILE
from ..settings.checks import check_text_encoder
from ..settings.config import Config
from ..settings.resolve import FIXED_BY_START, choose_preset
from .system import System, init_from


def start_from_base(config: Config, kind: type[DDPMPipeline], stage: str) -> DDPMPipeline | None:
    """The model of `--init_from`, or else that in the folder above; None for a dry run before there is one.

    Args:
        kind: what the one in the folder above must be.
        stage: trains it.

    Raises:
        ValueError: there is none that has been trained to its end, or it learned other images.
    """
    if config.model.init_from is not None:
        return init_from(config)
    own, folder = Path(config.run.output_dir), Path(config.run.output_dir).parent
    needed = f"--stage {(config.model.stage or [own.name])[-1]} needs a finished model in --output_dir {folder}"
    summary = ModelFolder.read(folder).summary if (folder / INDEX_FILE).is_file() else {"status": "missing"}
    anew = config.run.dry_run and config.run.overwrite_output_dir and stage in (config.model.stage or [stage])
    if anew or summary.get("status") in ("missing", "running"):
        if config.run.dry_run:
            return None
        raise ValueError(
            f"{needed}; train it with --system {config.model.system} --stage {stage} --output_dir {folder}"
        )
    if config.data.is_bundled and summary.get("dataset", DATA_SET) != DATA_SET:
        raise ValueError(f"--train_data_dir or --dataset_name must be given: the base learned {summary['dataset']}")
    base = load_pipeline(str(folder))
    if not isinstance(base, kind):
        raise ValueError(f"{needed}, got a {type(base).__name__}")
    return base.alone()


def finished_stage(config: Config, stage: str, folder: Path) -> Path | None:
    """The folder of a stage that later ones need; None if it is not finished, or is to be trained anew."""
    if config.run.overwrite_output_dir and stage in (config.model.stage or [stage]):
        return None
    if not (folder / INDEX_FILE).is_file() or ModelFolder.read(folder).summary.get("status") == "running":
        return None
    return folder


def judged_by_samples(config: Config, why: str) -> Config:
    """The settings with `--eval_metrics` filled in of a model without bits/dim; ValueError where those are asked for.

    Args:
        why: it has none.
    """
    if config.data.is_bundled:
        config = config.filled({"eval_metrics": ["prompt"]})
    config = config.filled({"eval_metrics": ["frechet"] if config.run.eval_extractor else []})
    if "nll" in config.run.eval_metrics:
        raise ValueError(f"--eval_metrics must not be nll for --system {config.model.system}: {why}")
    if config.run.eval_steps is not None and not config.run.eval_metrics:
        raise ValueError(
            "--eval_steps needs --eval_metrics, such as clip, or --eval_extractor for --system "
            f"{config.model.system}: {why}"
        )
    return config


def check_as_in_base(config: Config, *names: str) -> None:
    """Raises ValueError for one of these settings that is another in the folder above."""
    there, flags = _settings_of_base(config), config.flags()
    for name in names:
        if flags[name] not in (None, there.get(name)):
            raise ValueError(
                f"--{name} must be that of the model in --output_dir, {there.get(name, 'unknown')}, got "
                f"{flags[name]}; leave it out"
            )


def _settings_of_base(config: Config) -> dict:
    return ModelFolder.read(Path(config.run.output_dir).parent).settings


def for_inpainting(config: Config, base: DDPMPipeline | None) -> Config:
    """Settings of the fine-tuning: the preset's, without those that the model in the folder above fixes.

    Raises:
        ValueError: one of them is another there, or its text encoder, which was frozen, does not have it.
    """
    usual = dict(choose_preset(config).inpainting)
    if config.optimization.num_epochs is not None:
        usual.pop("max_train_steps", None)
    config = config.filled(usual)
    if base is None or config.model.init_from is not None:
        return config
    fixed = (*FIXED_BY_START, "clip_skip", "vae")
    check_as_in_base(config, *fixed)
    if config.model.text_encoder not in ("train", "frozen"):
        check_as_in_base(config, "text_encoder")
    config = config.with_values(dict.fromkeys(fixed))
    if config.model.text_encoder != "train" and _settings_of_base(config).get("text_encoder") not in (None, "train"):
        config = config.with_values({"text_encoder": "frozen"})
        check_text_encoder(config.flags() | {"stage": ["inpainting"]})  # one of several in a dry run
    return config


def with_holes(system: System, config: Config, images: TrainingImages, hole: Hole) -> System:
    """The system told holes beside captions; previews have those of some of its images."""
    (prompt,), shown = system.conditions, images.some_batch(config.run.preview_images)
    captions = config.run.validation_prompts or list(map(str, shown.get("captions", [""])))
    masks = [hole.drawn(images.shape[1:], "preview", number) for number in range(len(shown["images"]))]
    known = Known(examples=pictures(shown["images"]))
    return replace(system, conditions=[replace(prompt, examples=captions), known, replace(hole, examples=masks)])
