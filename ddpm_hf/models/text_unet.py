"""The U-Nets of GLIDE (Nichol et al. 2021, arXiv 2112.10741), Imagen (Saharia et al. 2022, arXiv 2205.11487) and the
decoder of DALL·E 2 (Ramesh et al. 2022, arXiv 2204.06125) as stock diffusers' class, which its pipelines run."""

import math
from collections.abc import Sequence
from typing import Any

from diffusers import UNet2DConditionModel
from torch import nn

from .unet import attention_levels


def text_unet_config(
    resolution: int,
    *,
    channels: int,
    base_channels: int,
    channel_multipliers: Sequence[int],
    attention_resolutions: Sequence[int],
    blocks_per_level: int,
    dropout: float,
    text_width: int,
    told: str = "text",
    efficient: bool = False,
) -> dict[str, Any]:
    """The arguments of `UNet2DConditionModel`.

    Attention, within a level and to the caption's states together, has heads of up to 32 channels. The states are
    pooled by attention and added to the time embedding: GLIDE adds the last one, which no stock pipeline can tell.
    Two more things differ from GLIDE: the states are projected to the widest level first, and levels without attention
    are halved by a convolution instead of a residual block.

    Args:
        resolution: side of the images; each level halves it, without a remainder.
        channels: of the images; the network has twice as many outputs, because stock pipelines expect a variance.
        base_channels, channel_multipliers, blocks_per_level: as for `paper_config`.
        attention_resolutions: as for `paper_config`; this attention is to the caption too.
        text_width: channels of the caption's states, or of the embedding.
        told: "text", or "image" for the decoder of DALL·E 2, which is told an embedding of the picture (arXiv
            2204.06125, §2.1): projected for the time embedding, and to 32 states, where the paper has four.
        efficient: what stock's class can express of Imagen's Efficient U-Net (appendix B): the lower levels have up to
            four times the blocks, halving comes before the convolutions of a block, and each sum of a block's input
            and output is scaled by 1/√2. `new_text_unet` also leaves out an upsampler's self-attention.

    Raises:
        ValueError: the resolution cannot be halved so often.
    """
    widths = [base_channels * multiplier for multiplier in channel_multipliers]
    if resolution % 2 ** (len(widths) - 1):
        raise ValueError(
            f"`resolution` must be a multiple of {2 ** (len(widths) - 1)} for {len(widths)} levels, got {resolution}."
        )
    attends = attention_levels(resolution, len(widths), attention_resolutions)
    plain = "ResnetDownsampleBlock2D" if efficient else "DownBlock2D"
    down = ["SimpleCrossAttnDownBlock2D" if attention else plain for attention in attends]
    scale = math.sqrt(2) if efficient else 1.0
    return {
        "sample_size": resolution,
        "in_channels": channels,
        "out_channels": 2 * channels,
        "block_out_channels": tuple(widths),
        "layers_per_block": [blocks_per_level * min(2**level, 4) for level in range(len(widths))]
        if efficient
        else blocks_per_level,
        "down_block_types": tuple(down),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": tuple(name.replace("Down", "Up") for name in reversed(down)),
        "resnet_out_scale_factor": scale,
        "mid_block_scale_factor": scale,
        "encoder_hid_dim": text_width,
        "encoder_hid_dim_type": f"{told}_proj",
        "cross_attention_dim": max(widths),
        "addition_embed_type": told,
        "addition_embed_type_num_heads": math.gcd(4 * base_channels // 32, text_width // 32, text_width),
        "attention_head_dim": math.gcd(32, *widths),
        "norm_num_groups": math.gcd(32, *widths),
        "resnet_time_scale_shift": "scale_shift",
        "dropout": dropout,
    }


# In the config of an upsampler's network: the side of the picture that it enlarges. Stock diffusers keeps private
# entries and is silent about them.
LOW_SIDE = "_low_side"


def new_text_unet(low_side: int | None = None, told_noise: bool = False, **settings: Any) -> UNet2DConditionModel:
    """A network with random weights whose first output is 0, as the paper's, so that it starts from the mean.

    Args:
        low_side: of an upsampler, whose inputs are x_t and a picture of this side, enlarged. If it is `efficient`, its
            attention is to the caption alone.
        told_noise: whether an upsampler is told how much noise that picture has.
        settings: as for `text_unet_config`.
    """
    config = text_unet_config(**settings)
    if low_side is not None:
        config |= {"in_channels": 2 * config["in_channels"], "class_embed_type": "timestep" if told_noise else None}
        config |= {"only_cross_attention": settings.get("efficient", False)}  # the picture says what is where
    unet = UNet2DConditionModel(**config)
    if low_side is not None:
        unet.register_to_config(**{LOW_SIDE: low_side})
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet
