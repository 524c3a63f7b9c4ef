"""x_0 is the image itself, its 8-bit pixels scaled to [-1, 1]."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from ..diffusion.gaussian import discretized_gaussian_log_likelihood


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels, any shape -> float32 in [-1, 1]: p / 127.5 - 1, so that 0 -> -1 and 255 -> 1 exactly.

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


@dataclass(frozen=True)
class PixelCodec:
    """Between batches and x_0.

    Attributes:
        shape: (channels, height, width) of x_0.
        span: the range of x_0, to which a prediction of it may be clipped; None for no limits.
        variance: of x_0, roughly.
        decoder: -L_0, that is log p(x_0 | x_1) of each pixel, given x_0, mean and log variance (Eq. 13 of Ho et al.
            2020); None if x_0 has no bits/dim.
    """

    shape: tuple[int, int, int]
    span: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    variance: ClassVar[float] = 0.25
    decoder = staticmethod(discretized_gaussian_log_likelihood)

    def encode(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """x_0, float32 (B, C, H, W), of a batch with uint8 "images", on their device."""
        return normalize(batch["images"])

    def decode(self, x_0: torch.Tensor) -> torch.Tensor:
        """x_0, or any x_t -> images in [0, 1], float32 (B, C, H, W)."""
        return to_images(x_0)

    def pictures(self, x_0: torch.Tensor) -> np.ndarray:
        """x_0, or any x_t -> pictures, uint8 (B, H, W, C)."""
        return channels_last(to_levels(self.decode(x_0)))
