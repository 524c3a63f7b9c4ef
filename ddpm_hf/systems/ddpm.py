"""Ho et al. 2020 (arXiv 2006.11239): one U-Net on pixels, unconditional or told a class label."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch
from torch import nn

from ..codecs.pixels import PixelCodec
from ..conditions.class_labels import ClassLabels
from ..data.examples import TrainingImages
from ..diffusion.losses import DiffusionLoss
from ..diffusion.process import LEARNED_VARIANCES
from ..diffusion.scheduler import LinearDDPMScheduler
from ..models.unet import DDPMUNet2D, paper_config
from ..pipelines.ddpm import DDPMPipeline
from ..seeds import generator_for
from ..settings.config import Config
from ..settings.resolve import ARCHITECTURE_FLAGS, PROCESS_FLAGS, check_start, given_unet_config, resolve
from ..steps.denoiser import Denoiser
from ..steps.sampler import OF_THRESHOLDING, with_thresholding
from .system import Stage, System


def build(config: Config, images: TrainingImages, start: DDPMPipeline | None) -> System:
    """Network, process and objective.

    Args:
        config: from `resolve`.
        images: to train on.
        start: the pipeline whose weights training starts from.

    Raises:
        ValueError: if images, network, process and settings do not fit together, naming the argument.
    """
    check_start(start, DDPMPipeline, "ddpm")
    shape = images.shape
    id2label = dict(enumerate(images.source.class_names)) if config.model.class_conditional else None
    unet_config = given_unet_config(config, start) or _new_unet_config(config, shape, id2label)
    unet = _build_unet(config, unet_config, shape, id2label, start)
    scheduler = build_scheduler(config, start)
    _check_outputs(unet, scheduler)
    _check_embeddings(unet, id2label, config.model.condition_dropout)
    return System(
        codec=PixelCodec(shape),
        conditions=ClassLabels.of_model(unet.config, id2label, config.model.condition_dropout),
        network=Denoiser(unet),
        scheduler=scheduler,
        loss=build_loss(config, scheduler),
        pipeline=lambda network: DDPMPipeline(network.unet, scheduler, id2label=id2label),
    )


def _new_unet_config(config: Config, shape: tuple[int, int, int], id2label: dict[int, str] | None) -> dict[str, Any]:
    channels, height, width = shape
    return paper_config(
        (height, width),
        channels=channels,
        dropout=config.model.dropout,
        num_classes=None if id2label is None else len(id2label),
        learned_variance=config.process.variance_type in LEARNED_VARIANCES,
        **{name: getattr(config.model, name) for name in ARCHITECTURE_FLAGS},
    )


def _build_unet(
    config: Config,
    unet_config: dict[str, Any],
    shape: tuple[int, int, int],
    id2label: dict[int, str] | None,
    start: DDPMPipeline | None,
) -> DDPMUNet2D:
    """The network, initialised as in the paper or with the weights of `--init_from`."""
    channels, height, width = shape
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
    check_size(lambda: [DDPMUNet2D.from_config(unet_config)])
    unet = DDPMUNet2D.from_config(unet_config)
    if start is None:
        unet.init_paper_weights(generator_for(config.optimization.seed, "initial weights"))
    else:
        unet.load_state_dict(start.unet.state_dict())
    return unet


def check_size(build: Callable[[], Sequence[nn.Module]]) -> None:
    """Raises ValueError for networks whose weights do not fit into this machine's memory, before building them."""
    try:
        with torch.device("meta"):
            size = sum(parameter.numel() * 4 for part in build() for parameter in part.parameters())
    except (TypeError, RuntimeError):  # a tensor with more than 2^63 elements
        size = math.inf
    memory = psutil.virtual_memory().total
    if size > memory:
        raise ValueError(
            f"the weights of the network alone would take {size / 1e9:.3g} GB, and the machine has "
            f"{memory / 1e9:.0f} GB; lower --base_channels, --channel_multipliers or --blocks_per_level, or, of a "
            "text encoder, --text_width or --text_layers"
        )


def _check_classes(id2label: dict[int, str] | None, start: DDPMPipeline) -> None:
    if (id2label or None) != (start.id2label or None):
        there = ", ".join((start.id2label or {}).values()) or "none"
        here = ", ".join((id2label or {}).values()) or "none (--class_conditional is not given)"
        raise ValueError(f"--init_from must have the classes of the data ({here}), got a model trained on: {there}")


def build_scheduler(config: Config, start: DDPMPipeline | None) -> LinearDDPMScheduler:
    """The process; ValueError if its settings contradict each other."""
    settings = {name: getattr(config.process, name) for name in PROCESS_FLAGS}
    # Starts at T-1 for any number of steps, and stock diffusers gets it right.
    settings["timestep_spacing"] = "linspace"
    asked = {name: getattr(config.process, name) for name in ("thresholding", *OF_THRESHOLDING)}
    asked = {name: value for name, value in asked.items() if value is not None}
    if start is not None:
        return with_thresholding(LinearDDPMScheduler.from_config({**start.scheduler.config, **settings}), asked)
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
    return with_thresholding(LinearDDPMScheduler(**settings), asked)


def build_loss(config: Config, scheduler: LinearDDPMScheduler) -> DiffusionLoss:
    """The objective; ValueError if it cannot be used with this process."""
    options = config.optimization
    if options.loss_weighting != "none" and scheduler.lacks_terminal_signal:
        raise ValueError(
            f"--loss_weighting {options.loss_weighting} cannot be used with --rescale_betas_zero_snr: it gives the "
            "last timestep, where sampling starts, weight 0; leave one out"
        )
    return DiffusionLoss(scheduler, options.loss, options.loss_weighting, options.snr_gamma)


def _check_outputs(unet: DDPMUNet2D, scheduler: LinearDDPMScheduler) -> None:
    channels, outputs = unet.config.in_channels, unet.config.out_channels
    wanted = 2 * channels if scheduler.config.variance_type in LEARNED_VARIANCES else channels
    if outputs != wanted:
        raise ValueError(
            f"--variance_type {scheduler.config.variance_type} needs a network with {wanted} output channels for "
            f"images with {channels}, got {outputs}"
        )


def _check_embeddings(unet: DDPMUNet2D, id2label: dict[int, str] | None, condition_dropout: float) -> None:
    """Raises ValueError for a network that was made for other classes, or cannot be told that they are hidden."""
    embeddings, classes = unet.config.num_class_embeds or 0, len(id2label or ())
    if embeddings not in (classes, classes + bool(classes)):
        given = "" if id2label is not None else " (--class_conditional is not given)"
        raise ValueError(f"the network must have embeddings of {classes} classes{given}, got {embeddings}")
    if classes and embeddings == classes and condition_dropout > 0:
        raise ValueError(
            f"--condition_dropout must be 0 for a network that has no embedding of no class, got {condition_dropout}"
        )


STAGES = (Stage(resolve=resolve, build=build),)
