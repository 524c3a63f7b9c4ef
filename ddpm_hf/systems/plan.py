"""From settings to a run that can start: settings, data and system, all checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from accelerate import Accelerator

from ..conditions.condition import Condition, cycled
from ..data.captions import CAPTIONS, LabelCaptions
from ..data.examples import TrainingImages
from ..data.training import open_training_images
from ..settings.config import Config
from .clock import Clock
from .system import Stage, System


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What must be unchanged for a run to continue; recorded in the summary.

    Attributes:
        steps: optimizer steps of the whole run.
        global_batch_size: images per optimizer step, over all processes and micro-steps.
        parameters: of the network.
        dataset: its name.
        training_images: their number; None for a stream of unknown length.
        image_shape: (channels, height, width).
        class_names: by number, of classes that are told, also in captions.
        holdout: which images are held out.
        caption_column: for runs with captions.
        text_encoder: what turns them into states, with a hash of what the flags do not say.
        autoencoder: of latents, with a hash.
        clip: of embeddings, with a hash.
        prior: that the model has beside what is trained, with a hash.
    """

    steps: int
    global_batch_size: int
    parameters: int
    dataset: str
    training_images: int | None
    image_shape: list[int]
    class_names: list[str] | None
    holdout: dict[str, Any]
    caption_column: str | None = None
    text_encoder: str | None = None
    autoencoder: str | None = None
    clip: str | None = None
    prior: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that can start.

    Attributes:
        config: with every setting filled in.
        images: the training images, by position.
        system: what is trained.
        clock: when things happen.
        facts: about the run.
    """

    config: Config
    images: TrainingImages
    system: System
    clock: Clock
    facts: Facts

    @property
    def shown(self) -> Sequence[Condition]:
        """What the finished model is asked for in its pictures."""
        return self.system.conditions if self.system.shown is None else self.system.shown

    @property
    def preview_inference_steps(self) -> int:
        """Denoising steps of a preview."""
        return min(self.config.run.preview_inference_steps, self.system.num_timesteps)

    def preview_layout(
        self, conditions: Sequence[Condition]
    ) -> tuple[int, dict[str, list[Any]], list[str] | None, int | None]:
        """Number of images in a preview, what is asked for in each, row names, and images per row."""
        count, names = self.config.run.preview_images, None
        rows = {condition.name: condition.rows(count) for condition in conditions}
        for words, named in rows.values():
            if names is None and named is not None:
                count, names = len(words), named
        asked = {name: cycled(words, range(count)) for name, (words, _) in rows.items()}
        return count, asked, names, None if names is None else count // len(names)


def all_stages(config: Config) -> Sequence[Stage]:
    """The stages of the system, in their order, imported now: text encoders take seconds."""
    return import_module(f".{config.model.system.replace('-', '_')}", __package__).STAGES


def stages_of(config: Config) -> Sequence[Stage]:
    """The stages that the settings ask for, in their order; by default those that need not be asked for."""
    stages = all_stages(config)
    if config.model.stage is None:
        return [stage for stage in stages if stage.by_default(config)]
    names = [stage.name for stage in stages]
    for name in config.model.stage:
        if name not in names:
            raise ValueError(
                f"--stage must be among {', '.join(names)} for --system {config.model.system}, got {name}"
            )
    return [stage for stage in stages if stage.name in config.model.stage]


def make_plan(config: Config, accelerator: Accelerator, stage: Stage | None = None) -> Plan:
    """Open the data and build the system.

    Raises:
        ValueError: if data, network, process and settings do not fit together, naming the argument.
    """
    stage = stage or stages_of(config)[0]
    start = stage.start(config)
    config = stage.resolve(config, start)
    settings = {name: value for name, value in vars(config.data).items() if name != "dataloader_num_workers"}
    settings["resolution"] = stage.resolution(config)
    settings["class_conditional"] = config.model.class_conditional
    settings["captioned"] = stage.captioned(config)
    images = open_training_images(config.optimization.seed, **settings)
    config = config.with_values({"channels": images.shape[0], "mixed_precision": accelerator.mixed_precision})
    if isinstance(captions := images.source.columns.get(CAPTIONS), LabelCaptions):
        config = config.with_values({"init_caption_from_labels": captions.template})
    if settings["captioned"] and CAPTIONS not in images.source.columns:
        config = config.with_values({"preview_guidance_scale": 1.0})  # away from the empty caption, to the same
    system = stage.build(config, images, start)
    if not system.draws_pictures:
        config = config.with_values({"preview_steps": 0, "save_images_epochs": None})
    options = config.optimization
    batch = accelerator.num_processes * options.gradient_accumulation_steps * options.train_batch_size
    if images.count is not None and batch > images.count:
        raise ValueError(
            f"--train_batch_size {options.train_batch_size} makes {batch} images per step over all processes and "
            f"micro-steps, more than the {images.count} training images; lower it"
        )
    clock = Clock(config, None if images.count is None else images.count / batch)
    facts = Facts(
        steps=clock.steps,
        global_batch_size=batch,
        parameters=sum(parameter.numel() for parameter in system.network.parameters()),
        **images.facts(),
        **system.facts,
    )
    return Plan(config=config, images=images, system=system, clock=clock, facts=facts)
