"""The autoencoder of latent diffusion (Rombach et al. 2022, arXiv 2112.10752): diffusers' `AutoencoderKL`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL

from .initialization import init_paper_weights

_FIRST_LOG_VARIANCE = -6.0  # of the posterior


def new_autoencoder(
    size: tuple[int, int],
    *,
    channels: int,
    latent_channels: int,
    base_channels: int,
    channel_multipliers: Sequence[int],
    blocks_per_level: int,
    generator: torch.Generator | None = None,
) -> AutoencoderKL:
    """An autoencoder with the initial weights of `init_paper_weights`, whose reconstructions are grey at first.

    With torch's own, a small one reconstructs nothing but the mean colour for hundreds of steps. For the same reason
    its latents have little noise at first.

    Args:
        size: (height, width) of its training pictures; each level but the first halves them.
        channels, latent_channels: of pictures and of latents.
        base_channels: of the first level; the others have `channel_multipliers` times as many.
        blocks_per_level: residual blocks of the encoder; the decoder has one more.
        generator: of the weights.
    """
    height, width = size
    levels = len(channel_multipliers)
    vae = AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        latent_channels=latent_channels,
        sample_size=height if height == width else [height, width],
        block_out_channels=[base_channels * multiplier for multiplier in channel_multipliers],
        layers_per_block=blocks_per_level,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        norm_num_groups=_groups(base_channels),
        scaling_factor=1.0,  # see `standardize`
    )
    init_paper_weights(vae, [vae.decoder.conv_out], generator)
    with torch.no_grad():
        vae.quant_conv.weight[latent_channels:] = 0
        vae.quant_conv.bias[latent_channels:] = _FIRST_LOG_VARIANCE
    return vae


def factor_of(vae_config: Mapping[str, Any]) -> int:
    """By which an autoencoder of this configuration makes pictures smaller."""
    return 2 ** (len(vae_config["block_out_channels"]) - 1)


def _groups(channels: int) -> int:
    """Of the norms, as many as leave each three channels: alone, one would lose its mean, the colour of a ground."""
    return max(number for number in (1, 2, 4, 8, 16, 32) if channels % number == 0 and channels >= 3 * number - 2)


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL, pictures: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel of latents drawn from the posterior, float64 (c,).

    The expectation over the draw is exact: Var z = Var mean + E variance.

    Args:
        vae: its latents are not multiplied by `scaling_factor`.
        pictures: batches (B, C, H, W) in [-1, 1], at least one.
    """
    sums = torch.zeros(2, vae.config.latent_channels, dtype=torch.float64)
    count = 0
    for batch in pictures:
        posterior = vae.encode(batch.to(vae.device, vae.dtype)).latent_dist
        mean, variance = posterior.mean.double(), posterior.var.double()
        sums += torch.stack([mean.sum((0, 2, 3)), (mean.square() + variance).sum((0, 2, 3))]).cpu()
        count += mean[:, 0].numel()
    mean, square = sums / count
    return mean, (square - mean.square()).sqrt()


@torch.no_grad()
def standardize(vae: AutoencoderKL, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Give each channel of the latents mean 0 and standard deviation 1, without changing what is reconstructed.

    It is folded into the 1x1 convolutions beside the latents, so that `scaling_factor` is 1 and stock pipelines, which
    know a single factor for all channels, see such latents too.

    Args:
        vae: with `scaling_factor` 1; changed in place.
        mean, std: of each channel now, (c,), as `latent_statistics` gives them.
    """
    before, after = vae.quant_conv, vae.post_quant_conv
    mean, std = mean.to(vae.device), std.to(vae.device)
    log_variance = 2 * std.log()
    # The first half of the outputs is the posterior's mean, the second the logarithm of its variance.
    scale = torch.cat([1 / std, torch.ones_like(std)])
    bias = before.bias.double() - torch.cat([mean, log_variance])
    before.weight.copy_(before.weight.double() * scale[:, None, None, None])
    before.bias.copy_(bias * scale)
    kernel = after.weight.double()
    after.bias.copy_(after.bias.double() + kernel[:, :, 0, 0] @ mean)
    after.weight.copy_(kernel * std[:, None, None])
