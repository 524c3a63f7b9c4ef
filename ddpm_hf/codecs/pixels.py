"""x_0 is the image itself, its 8-bit pixels scaled to [-1, 1]."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from ..diffusion.gaussian import discretized_gaussian_log_likelihood
from ..pixels import channels_last, normalize, to_images, to_levels

# One for all images, or one per image.
Generators = torch.Generator | list[torch.Generator] | None


@dataclass(frozen=True)
class PixelCodec:
    """Between batches and x_0.

    Attributes:
        shape: of x_0: (channels, height, width), or (channels,) of a vector.
        called: what x_0 is, in the plan of a run.
        span: the range of x_0, to which a prediction of it may be clipped; None for no limits.
        variance: of x_0, roughly.
        decoder: -L_0, that is log p(x_0 | x_1) of each pixel, given x_0, mean and log variance (Eq. 13 of Ho et al.
            2020); None if x_0 has no bits/dim.
    """

    shape: tuple[int, ...]
    called: ClassVar[str] = "pixels"
    span: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    variance: ClassVar[float] = 0.25
    decoder = staticmethod(discretized_gaussian_log_likelihood)

    def describe(self) -> str:
        """What is said of it in the plan of a run."""
        return ""

    def prepare(self, device: torch.device) -> None:
        """Compute what training needs and what takes long, on this device: nothing here."""

    def encode(self, batch: Mapping[str, torch.Tensor], generator: Generators = None) -> torch.Tensor:
        """x_0, float32 (B, C, H, W), of a batch with uint8 "images", on their device; a generator has no use here."""
        return normalize(batch["images"])

    def decode(self, x_0: torch.Tensor) -> torch.Tensor:
        """x_0, or any x_t -> images in [0, 1], float32 (B, C, H, W)."""
        return to_images(x_0)

    def pictures(self, x_0: torch.Tensor) -> np.ndarray:
        """x_0, or any x_t -> pictures, uint8 (B, H, W, C)."""
        return channels_last(to_levels(self.decode(x_0)))


@dataclass(frozen=True)
class ToldPixelCodec(PixelCodec):
    """Pixels of which a network is told an embedding.

    They have no bits/dim: those given the embedding would leave out what the embedding says of the picture.
    """

    decoder: ClassVar[None] = None
