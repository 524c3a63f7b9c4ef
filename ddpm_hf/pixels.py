"""Between 8-bit pixels, samples in [-1, 1] and images in [0, 1]."""

import numpy as np
import torch


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """8-bit levels, any dtype and shape -> float32 in [-1, 1]: p / 127.5 - 1, so that 0 -> -1 and 255 -> 1 exactly.

    Source: "linearly scaled to [-1, 1]", Ho et al. 2020 (arXiv 2006.11239), section 3.3.
    """
    return pixels.to(torch.float32, copy=True).div_(127.5).sub_(1)


def denormalize(samples: torch.Tensor) -> torch.Tensor:
    """Samples in [-1, 1], any float dtype and shape -> uint8, clipped. The inverse of `normalize`."""
    return to_levels(to_images(samples))


def to_images(samples: torch.Tensor) -> torch.Tensor:
    """Samples in [-1, 1], any float dtype and shape -> images in [0, 1], as pipelines return them, clipped."""
    return (samples.float() / 2 + 0.5).clamp(0, 1)


def to_levels(images: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1], as pipelines return them -> uint8."""
    return (images * 255).round().to(torch.uint8)


def channels_last(pixels: torch.Tensor) -> np.ndarray:
    """Images (B, C, H, W) on any device -> an array (B, H, W, C)."""
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
