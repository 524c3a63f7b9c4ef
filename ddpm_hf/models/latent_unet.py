"""The U-Net of latent diffusion (Rombach et al. 2022, arXiv 2112.10752), as stock diffusers' class."""

import math
from collections.abc import Sequence
from typing import Any

from diffusers import UNet2DConditionModel
from torch import nn

from .unet import attention_levels

_HEAD = 32  # channels


def latent_unet_config(
    size: tuple[int, int],
    *,
    channels: int,
    base_channels: int,
    channel_multipliers: Sequence[int],
    attention_resolutions: Sequence[int],
    blocks_per_level: int,
    dropout: float,
    text_width: int,
) -> dict[str, Any]:
    """The arguments of `UNet2DConditionModel`.

    Levels with attention have the paper's spatial transformers: attention within the level, then to the caption's
    states. Beside that the states are pooled by attention and added to the time embedding, as in GLIDE (arXiv
    2112.10741); without it, small networks took far longer to follow captions.

    Args:
        size: (height, width) of the latents.
        channels: of the latents.
        base_channels, channel_multipliers, blocks_per_level, attention_resolutions: as for `paper_config`.
        text_width: channels of the caption's states.
    """
    widths = [base_channels * multiplier for multiplier in channel_multipliers]
    attends = attention_levels(max(size), len(widths), attention_resolutions)
    down = ["CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in attends]
    return {
        "sample_size": size[0] if size[0] == size[1] else list(size),
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": tuple(widths),
        "layers_per_block": blocks_per_level,
        "down_block_types": tuple(down),
        "up_block_types": tuple(name.replace("Down", "Up") for name in reversed(down)),
        "cross_attention_dim": text_width,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": max(1, text_width // 64),
        # diffusers takes this for the number of heads.
        "attention_head_dim": tuple(max(1, width // _HEAD) for width in widths),
        "resnet_time_scale_shift": "scale_shift",
        "norm_num_groups": math.gcd(32, *widths),
        "dropout": dropout,
    }


def new_latent_unet(size: tuple[int, int], **settings: Any) -> UNet2DConditionModel:
    """A network with random weights whose first output is 0; arguments as for `latent_unet_config`."""
    unet = UNet2DConditionModel(**latent_unet_config(size, **settings))
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet
