"""A network of latents fine-tuned to draw a part of a picture (Rombach et al. 2022, arXiv 2112.10752, §4.5), which is
told the hole and the rest of the picture by five more channels of its input."""

from dataclasses import replace

import torch
from diffusers import UNet2DConditionModel

from ..conditions.hole import HoleBeside
from ..data.examples import TrainingImages
from ..pipelines.latent_inpainting import INPUTS, InpaintingDenoiser, LatentInpaintingPipeline
from ..settings.config import Config
from .base import with_holes
from .system import System


def told_holes(system: System, config: Config, images: TrainingImages) -> System:
    """The system whose network is told random holes beside x_t."""
    hole = HoleBeside(seed=config.optimization.seed, codec=replace(system.codec, kept=None))
    return replace(
        with_holes(system, config, images, hole),
        network=InpaintingDenoiser(widened(system.network.unet), system.network.text_encoder, all_outputs=True),
        pipeline=lambda network: LatentInpaintingPipeline(**system.pipeline(network).components),
    )


def widened(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The network with more channels of input, which at first do nothing."""
    changed = UNet2DConditionModel.from_config({**unet.config, "in_channels": INPUTS})
    weights = dict(unet.state_dict())
    old = weights["conv_in.weight"]
    more = torch.zeros(old.shape[0], INPUTS - old.shape[1], *old.shape[2:])
    changed.load_state_dict(weights | {"conv_in.weight": torch.cat([old, more], dim=1)})
    return changed
