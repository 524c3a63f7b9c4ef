"""The picture that an autoencoder reconstructs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .condition import Told
from .low_resolution import LowResolution


@dataclass(frozen=True, kw_only=True)
class Picture(LowResolution):
    """A picture, told as it is as `picture`, float32 (B, C, H, W) in [-1, 1]; never hidden."""

    factor: int = 1

    def reduced(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 pictures (B, C, H, W) in [-1, 1], in their own size."""
        return images.float() / 127.5 - 1

    def beside(self, words: Sequence[Any]) -> torch.Tensor:
        """The pictures themselves."""
        return torch.stack([self._pixels(word) for word in words])

    def _told(self, small: torch.Tensor) -> Told:
        return {"picture": small}
