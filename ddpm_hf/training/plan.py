"""From settings to a run that can start: data, network and process, all checked, with every setting filled in."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler

from ..data.examples import TrainingImages
from ..data.training import open_training_images
from ..data.transforms import parse_resolution
from ..diffusion.losses import DiffusionLoss
from ..diffusion.noise_schedules import scaled_ends
from ..diffusion.scheduler import LEARNED_VARIANCES, LinearDDPMScheduler
from ..models.presets import Preset, get_preset
from ..models.unet import DDPMUNet2D, default_depth, paper_config
from ..pipelines.ddpm import DDPMPipeline
from ..pipelines.loading import load_pipeline
from ..seeds import generator_for
from ..systems.config import Config

_ARCHITECTURE_FLAGS = ("base_channels", "channel_multipliers", "attention_resolutions", "blocks_per_level")
_PROCESS_FLAGS = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end")
_PROCESS_FLAGS += ("prediction_type", "variance_type", "rescale_betas_zero_snr")


@dataclass(kw_only=True)
class Plan:
    """A run that can start.

    Attributes:
        config: with every setting filled in.
        images: the training images, by position.
        id2label: class names, for class-conditional runs.
        unet, scheduler, loss: network, process and objective.
        steps: optimizer steps of the whole run.
        preview_steps, pipeline_steps: steps between previews and between saves of the pipeline; 0 for none.
        facts: for the summary; a run can only continue if they are unchanged.
    """

    config: Config
    images: TrainingImages
    id2label: dict[int, str] | None
    unet: DDPMUNet2D
    scheduler: LinearDDPMScheduler
    loss: DiffusionLoss
    steps: int
    preview_steps: int
    pipeline_steps: int
    facts: dict[str, Any]

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of optimizer step 0, 1, …, whatever the accumulation and number of processes."""
        return self.config.optimization.learning_rate * self._course(step)

    @cached_property
    def _course(self) -> Callable[[int], float]:
        """diffusers' schedule as a function of the step, so that it has no state to save."""
        options = self.config.optimization
        schedule = get_scheduler(
            options.lr_scheduler,
            torch.optim.SGD([torch.zeros(1)], lr=options.learning_rate),  # required, never stepped
            num_warmup_steps=options.lr_warmup_steps,
            num_training_steps=self.steps,
            num_cycles=options.lr_num_cycles,
            power=options.lr_power,
        )
        return schedule.lr_lambdas[0]

    @property
    def preview_inference_steps(self) -> int:
        """Denoising steps of a preview."""
        return min(self.config.run.preview_inference_steps, self.scheduler.config.num_train_timesteps)

    def preview_layout(self) -> tuple[int, list[int] | None, list[str] | None, int | None]:
        """Number of images in a preview, their classes, row names, and images per row."""
        count = self.config.run.preview_images
        if self.id2label is None:
            return count, None, None, None
        shown = list(self.id2label)[:10]
        columns = math.ceil(count / len(shown))
        labels = [number for number in shown for _ in range(columns)]
        return len(labels), labels, [self.id2label[number] for number in shown], columns


def make_plan(config: Config, accelerator: Accelerator) -> Plan:
    """Build everything a run needs, and fill in `config`.

    Raises:
        ValueError: if data, network, process and settings do not fit together, naming the argument.
    """
    start = load_pipeline(config.model.init_from) if config.model.init_from is not None else None
    unet_config = _given_unet_config(config)
    if start is not None:
        unet_config = dict(start.unet.config)
    preset = _choose_preset(config, unet_config)
    _fill(config, preset, unet_config, start)
    settings = {name: value for name, value in vars(config.data).items() if name != "dataloader_num_workers"}
    settings["class_conditional"] = config.model.class_conditional
    images = open_training_images(config.optimization.seed, **settings)
    config.data.channels = images.shape[0]
    id2label = dict(enumerate(images.source.class_names)) if config.model.class_conditional else None
    if unet_config is None:
        unet_config = _new_unet_config(config, images, id2label)
    unet = _build_unet(config, unet_config, images, id2label, start)
    scheduler = _build_scheduler(config, preset, start)
    _check_outputs(unet, scheduler)
    options = config.optimization
    if options.loss_weighting != "none" and scheduler.lacks_terminal_signal:
        raise ValueError(
            f"--loss_weighting {options.loss_weighting} cannot be used with --rescale_betas_zero_snr: it gives the "
            "last timestep, where sampling starts, weight 0; leave one out"
        )
    loss = DiffusionLoss(scheduler, options.loss, options.loss_weighting)
    batch = accelerator.num_processes * options.gradient_accumulation_steps * options.train_batch_size
    if images.count is not None and batch > images.count:
        raise ValueError(
            f"--train_batch_size {options.train_batch_size} makes {batch} images per step over all processes and "
            f"micro-steps, more than the {images.count} training images; lower it"
        )
    steps, steps_per_epoch = _count_steps(config, images, batch)
    run = config.run
    return Plan(
        config=config,
        images=images,
        id2label=id2label,
        unet=unet,
        scheduler=scheduler,
        loss=loss,
        steps=steps,
        preview_steps=_interval(run.preview_steps, run.save_images_epochs, steps_per_epoch, math.ceil(steps / 5)),
        pipeline_steps=_interval(None, run.save_model_epochs, steps_per_epoch, 0),
        facts={
            "steps": steps,
            "global_batch_size": batch,
            "parameters": sum(parameter.numel() for parameter in unet.parameters()),
            **images.facts(),
        },
    )


# Settings not given


def _given_unet_config(config: Config) -> dict[str, Any] | None:
    name = config.model.model_config_name_or_path
    if name is None:
        return None
    try:
        return DDPMUNet2D.load_config(name)
    except OSError:
        raise ValueError(
            f"--model_config_name_or_path must be a folder or repository with a U-Net's config.json, got {name}"
        ) from None


def _choose_preset(config: Config, unet_config: dict[str, Any] | None) -> Preset:
    """The preset given, or the one that suits the data; it supplies every setting not given."""
    if config.model.preset is not None:
        preset = get_preset(config.model.preset)
        for name in _ARCHITECTURE_FLAGS:
            given, fixed = getattr(config.model, name), _plain(preset.model[name])
            if given is not None and given != fixed:
                raise ValueError(
                    f"--{name} {given} contradicts --preset {config.model.preset}, which has {fixed}; leave one out"
                )
        return preset
    if unet_config is None and config.data.dataset_name is None and config.data.train_data_dir is None:
        return get_preset("digits")
    resolution = config.data.resolution or (unet_config or {}).get("sample_size") or 64
    return get_preset("small-32" if min(parse_resolution(resolution)) <= 40 else "small-64")


def _fill(config: Config, preset: Preset, unet_config: dict[str, Any] | None, start: DDPMPipeline | None) -> None:
    """Fill in every setting not given: from `--init_from` or a model config, else from the preset."""
    if unet_config is not None:
        source = "--init_from" if start is not None else "--model_config_name_or_path"
        size, channels = unet_config.get("sample_size"), unet_config["in_channels"]
        _adopt(config.data, "resolution", _resolution_text(size) if size else "64", source)
        if start is not None:
            _adopt(config.data, "channels", channels, source)
            for name in _PROCESS_FLAGS:
                if name in start.scheduler.config:
                    _adopt(config.process, name, start.scheduler.config[name], source)
        for name in _ARCHITECTURE_FLAGS:
            if getattr(config.model, name) is not None:
                raise ValueError(f"--{name} contradicts {source}, which fixes the architecture; leave it out")
    else:
        model = {name: _plain(value) for name, value in preset.model.items() if name != "channels"}
        if config.data.dataset_name is None and config.data.train_data_dir is None:
            model["channels"] = 1
        model["resolution"] = _resolution_text(model["resolution"])
        config.fill({"resolution": model["resolution"]})
        if config.model.preset is None and config.data.resolution != model["resolution"]:
            # No preset was asked for, so the depth may follow from the images.
            depth, multipliers = default_depth(*parse_resolution(config.data.resolution)), model["channel_multipliers"]
            model["channel_multipliers"] = (multipliers + [multipliers[-1]] * depth)[:depth]
        config.fill(model)
    process, wanted = dict(preset.process), config.process.num_train_timesteps
    if wanted not in (None, process["num_train_timesteps"]):
        ends = {name: process[name] for name in ("beta_start", "beta_end")}
        process |= scaled_ends(wanted, config.process.beta_schedule or process["beta_schedule"], **ends)
    config.fill(process)
    learned = config.process.variance_type in LEARNED_VARIANCES
    config.fill({"loss": "hybrid" if learned else "simple"})
    training = dict(preset.training)
    if config.optimization.num_epochs is not None:
        del training["max_train_steps"]
    config.fill(training)


def _adopt(group: Any, name: str, value: Any, source: str) -> None:
    given = getattr(group, name)
    same = parse_resolution(given) == parse_resolution(value) if name == "resolution" and given else given == value
    if given is not None and not same:
        raise ValueError(f"--{name} {given} contradicts {source}, which has {value}; leave it out")
    setattr(group, name, value)


def _resolution_text(size: Any) -> str:
    height, width = parse_resolution(tuple(size) if isinstance(size, (list, tuple)) else size)
    return str(height) if height == width else f"{height}x{width}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# Network and process


def _new_unet_config(config: Config, images: TrainingImages, id2label: dict[int, str] | None) -> dict[str, Any]:
    channels, height, width = images.shape
    return paper_config(
        (height, width),
        channels=channels,
        dropout=config.model.dropout,
        num_classes=None if id2label is None else len(id2label),
        learned_variance=config.process.variance_type in LEARNED_VARIANCES,
        **{name: getattr(config.model, name) for name in _ARCHITECTURE_FLAGS},
    )


def _build_unet(
    config: Config,
    unet_config: dict[str, Any],
    images: TrainingImages,
    id2label: dict[int, str] | None,
    start: DDPMPipeline | None,
) -> DDPMUNet2D:
    """The network, initialised as in the paper or with the weights of `--init_from`."""
    channels, height, width = images.shape
    if unet_config["in_channels"] != channels:
        raise ValueError(
            f"the network has {unet_config['in_channels']} channels and the images have {channels}; "
            f"--channels {unet_config['in_channels']} converts the images"
        )
    if start is not None:
        _check_classes(id2label, start)
    changes = {"sample_size": height if height == width else [height, width]}
    if config.model.dropout is not None:
        changes["dropout"] = config.model.dropout
    if id2label is not None and config.model.condition_dropout == 0 and start is None:
        changes["num_class_embeds"] = len(id2label)  # the embedding of "no class" would stay untrained
    unet_config = {**unet_config, **changes}
    _check_size(unet_config)
    unet = DDPMUNet2D.from_config(unet_config)
    if start is None:
        unet.init_paper_weights(generator_for(config.optimization.seed, "initial weights"))
    else:
        unet.load_state_dict(start.unet.state_dict())
    return unet


def _check_size(unet_config: dict[str, Any]) -> None:
    """Raises ValueError for a network whose weights do not fit into this machine's memory, before building it."""
    try:
        with torch.device("meta"):
            unet = DDPMUNet2D.from_config(unet_config)
        size = sum(parameter.numel() * 4 for parameter in unet.parameters())
    except (TypeError, RuntimeError):  # a tensor with more than 2^63 elements
        size = math.inf
    memory = psutil.virtual_memory().total
    if size > memory:
        raise ValueError(
            f"the weights alone of a network with channels {unet_config['block_out_channels']} would take "
            f"{size / 1e9:.3g} GB, and the machine has {memory / 1e9:.0f} GB; lower --base_channels, "
            "--channel_multipliers or --blocks_per_level"
        )


def _check_classes(id2label: dict[int, str] | None, start: DDPMPipeline) -> None:
    if (id2label or None) != (start.id2label or None):
        there = ", ".join((start.id2label or {}).values()) or "none"
        here = ", ".join((id2label or {}).values()) or "none (--class_conditional is not given)"
        raise ValueError(f"--init_from must have the classes of the data ({here}), got a model trained on: {there}")


def _build_scheduler(config: Config, preset: Preset, start: DDPMPipeline | None) -> LinearDDPMScheduler:
    settings = {name: getattr(config.process, name) for name in _PROCESS_FLAGS}
    # Starts at T-1 for any number of steps, and stock diffusers gets it right.
    settings["timestep_spacing"] = "linspace"
    if start is not None:
        return LinearDDPMScheduler.from_config({**start.scheduler.config, **settings})
    if settings["rescale_betas_zero_snr"] and settings["prediction_type"] == "epsilon":
        raise ValueError(
            "--rescale_betas_zero_snr cannot be used with --prediction_type epsilon: the last timestep has no signal "
            "left to predict x_0 from; choose v_prediction or sample"
        )
    if settings["beta_schedule"] != "squaredcos_cap_v2" and not settings["beta_start"] <= settings["beta_end"] < 1:
        raise ValueError(
            f"beta must increase and stay below 1, got {settings['beta_start']:g} to {settings['beta_end']:g} (by "
            f"default 1e-4 to 0.02, times 1000/T for --num_train_timesteps {settings['num_train_timesteps']}); give "
            "--beta_start and --beta_end, or choose --beta_schedule squaredcos_cap_v2"
        )
    return LinearDDPMScheduler(**{**preset.process, **settings})


def _check_outputs(unet: DDPMUNet2D, scheduler: LinearDDPMScheduler) -> None:
    channels, outputs = unet.config.in_channels, unet.config.out_channels
    wanted = 2 * channels if scheduler.config.variance_type in LEARNED_VARIANCES else channels
    if outputs != wanted:
        raise ValueError(
            f"--variance_type {scheduler.config.variance_type} needs a network with {wanted} output channels for "
            f"images with {channels}, got {outputs}"
        )


# The clock


def _count_steps(config: Config, images: TrainingImages, batch: int) -> tuple[int, float | None]:
    """Optimizer steps of the run, and of an epoch (None for a stream of unknown length)."""
    per_epoch = None if images.count is None else images.count / batch
    if config.optimization.num_epochs is None:
        return config.optimization.max_train_steps, per_epoch
    if per_epoch is None:
        raise ValueError("--num_epochs needs data of known length, which this stream is not; give --max_train_steps")
    return math.ceil(config.optimization.num_epochs * per_epoch), per_epoch


def _interval(steps: int | None, epochs: int | None, steps_per_epoch: float | None, otherwise: int) -> int:
    if steps is not None:
        return steps
    if epochs is None:
        return otherwise
    if steps_per_epoch is None:
        raise ValueError("--save_images_epochs and --save_model_epochs need data of known length")
    return max(1, round(epochs * steps_per_epoch))
