"""How much of pictures an autoencoder keeps, and whether its latents are as a diffusion on them needs them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from ..models.autoencoder import latent_statistics
from ..pipelines.reconstruction import ReconstructionPipeline
from ..pixels import to_images, to_levels
from .image_sets import ImageSet
from .quality import interval
from .samples import Samples

RECONSTRUCTION_FIGURES = ("psnr", "ssim", "latent_std", "latent_mean")
# Metric -> the kind of model that has it; others are of all that draw pictures.
_NEEDED = {"nll": "a diffusion model", "memorization": "a diffusion model"}
_NEEDED |= {"reconstruction": "an autoencoder", "retrieval": "a CLIP", "prior": "a prior"}
_WINDOW, _SIGMA = 11, 1.5  # of SSIM, pixels


def check_kind(metrics: Sequence[str], flag: str, kind: str, draws_pictures: bool) -> None:
    """Raises ValueError for metrics that such a model does not have, as `Denoising` says what it is."""
    for name in metrics:
        needed = _NEEDED.get(name, kind if draws_pictures else "a model that draws pictures")
        if kind != needed:
            raise ValueError(f"{flag} {name} needs {needed}, got {kind}; leave it out")


def usual_metric(kind: str) -> str:
    """What is measured of such a model if nothing is asked for."""
    return next((name for name, needed in _NEEDED.items() if needed == kind), "nll")


def reconstruction_figures(metrics: Sequence[str], size: tuple[int, int]) -> list[str]:
    """The names of the entries of `measure_reconstruction` for pictures of this size, if it is asked for."""
    names = [name for name in RECONSTRUCTION_FIGURES if name != "ssim" or min(size) >= _WINDOW]
    return names if "reconstruction" in metrics else []


def measure_reconstruction(
    pipeline: ReconstructionPipeline, samples: Samples, pictures: Sequence[torch.Tensor], images: ImageSet
) -> list[dict[str, Any]]:
    """PSNR and SSIM of reconstructions, and standard deviation and mean of the latents, as report entries.

    Of the latents a figure is the mean of those of all channels, which stand beside it. SSIM is left out for pictures
    smaller than its window.

    Args:
        samples: the reconstructions of these pictures, in their order.
        pictures: (C, H, W) each, in [-1, 1].
        images: which they are, for the report.
    """
    originals = to_levels(to_images(torch.stack(list(pictures))))
    found = torch.from_numpy(samples.images)
    mean, std = latent_statistics(pipeline.vae, torch.stack(list(pictures)).split(64))
    count = len(found)
    about = {"dataset": images.name, "split": images.split, "n": count, **samples.about}
    error = (found.double() - originals.double()).square().flatten(1).mean(1)
    # What one value that is wrong by 1 would give, so that the figure is finite.
    error_mean = max(float(error.mean()), 1 / found.numel())
    decibels = 10 / math.log(10) / error_mean * float(error.std()) / count**0.5 if count > 1 else None
    figures = [("psnr", 10 * math.log10(255**2 / error_mean), decibels, {})]
    if min(images.size) >= _WINDOW:
        likeness = torch.cat([ssim(*pair) for pair in zip(found.split(64), originals.split(64), strict=True)])
        figures.append(("ssim", float(likeness.mean()), float(likeness.std()) / count**0.5 if count > 1 else None, {}))
    for name, values in (("latent_std", std), ("latent_mean", mean)):
        figures.append((name, float(values.mean()), None, {"channels": [round(float(value), 4) for value in values]}))
    return [
        {"name": name, "value": value, **interval(value, error), **more, **about}
        for name, value, error, more in figures
    ]


def ssim(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """The mean structural similarity of each pair, float64 (B,): Wang et al. 2004 (IEEE TIP 13(4)), for 8-bit values.

    With their Gaussian window of 11x11 pixels where it lies inside the picture, and their constants; of several
    channels the mean.

    Args:
        images, references: uint8 (B, C, H, W), H and W at least 11.
    """
    offsets = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    weights = weights / weights.sum()
    x, y = (pictures.double().flatten(0, 1)[:, None] for pictures in (images, references))
    moments = torch.cat([x, y, x * x, y * y, x * y])
    moments = F.conv2d(F.conv2d(moments, weights[None, None, :, None]), weights[None, None, None])
    mean_x, mean_y, square_x, square_y, product = moments.chunk(5)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    variances = square_x - mean_x**2 + square_y - mean_y**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * (product - mean_x * mean_y) + c2) / (variances + c2)
    return (luminance * structure).flatten(1).mean(1).view(images.shape[:2]).mean(1)
