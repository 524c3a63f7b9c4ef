"""The picture that an upsampler enlarges."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch.nn import functional as F

from ..pixels import normalize
from ..seeds import derive_seed, noise_at
from .condition import Condition, Told

_SIGMA = 0.6  # of the blur, pixels; its kernel is 3 wide


@dataclass(frozen=True, kw_only=True)
class LowResolution(Condition):
    """A small picture, told enlarged as `low_resolution`, float32 (B, C, H, W) in [-1, 1]; never hidden.

    With a `noising` process, noise is added once it is enlarged, and its level told as `class_labels`, int64 (B,): the
    noise conditioning augmentation of Imagen (arXiv 2205.11487, §2.4). In training each image has a level of its own,
    uniform on 0 … T-1; else it is `level`.

    Attributes:
        shape: (channels, height, width) of the small picture.
        factor: by which it is enlarged.
        blurred: the fraction of training images whose small picture is blurred, since what a base draws is not as
            sharp as a photo that was made smaller.
        noising: whose `add_noise` adds noise; None for none.
        level: of noise where none is asked for; by default T/4: 250 of 1000, as in stock diffusers.
        seed: of the choice of those that are blurred, of levels and of noise.
        examples: small pictures to enlarge when nothing is asked for.
    """

    shape: tuple[int, int, int]
    factor: int
    blurred: float = 0.0
    noising: DDPMScheduler | None = None
    level: int | None = None
    seed: int = 0
    examples: Sequence[torch.Tensor] = ()
    name = "image"
    has_null = False
    hidden = 0.0

    def of_rows(self, batch: Mapping[str, Any]) -> Told:
        """The batch's own images, made smaller and enlarged again, with noise if there is any."""
        small = self.reduced(batch["images"])
        if self.blurred and "positions" in batch:
            seeds = [derive_seed(self.seed, "blur", position) for position in batch["positions"]]
            chosen = torch.tensor([seed < self.blurred * 2**63 for seed in seeds], device=small.device)
            small = torch.where(chosen.view(-1, 1, 1, 1), blur(small), small)
        told = self._told(small)
        return told if self.noising is None else self._noised(told, batch)

    def of_words(self, words: Sequence[Image.Image | torch.Tensor], device: torch.device) -> Told:
        """These pictures, enlarged; whoever draws adds the noise."""
        return self._told(torch.stack([self._pixels(word) for word in words]).to(device))

    def null(self, told: Told) -> Told:
        """The same: it is never hidden."""
        return told

    def usual(self) -> list[torch.Tensor]:
        """The examples; without any, a grey picture."""
        return list(self.examples) or [torch.zeros(self.shape)]

    def words_of(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[torch.Tensor]:
        """The rows' own images, made smaller."""
        return (picture for batch in batches for picture in self.reduced(batch["images"]))

    def table(self, words: Sequence[Any]) -> dict[str, list]:
        """Nothing: a picture fits no table."""
        return {}

    def choices(self) -> str:
        """The size."""
        channels, height, width = self.shape
        return f"a picture of {width}x{height} pixels and {channels} channels (PIL, or a tensor in [-1, 1]) per image"

    def reduced(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 pictures (B, C, H, W) as small ones in [-1, 1].

        Of torch's filters this is the nearest to the Lanczos filter by which a base's training pictures are made.
        """
        return F.interpolate(normalize(images), self.shape[1:], mode="bicubic", antialias=True).clamp(-1, 1)

    def _noised(self, told: Told, batch: Mapping[str, Any]) -> Told:
        large, levels = told["low_resolution"], told["class_labels"]
        if "positions" in batch:
            positions, total = batch["positions"], self.noising.config.num_train_timesteps
            uniform = [derive_seed(self.seed, "noise level", position) * total >> 63 for position in positions]
            levels = torch.tensor(uniform, device=large.device)
            noise = noise_at((self.seed, "augmentation"), positions, large)
        else:
            noise = noise_at((self.seed, "held-out augmentation"), batch["rows"].tolist(), large)
        return {"low_resolution": self.noising.add_noise(large, noise, levels), "class_labels": levels}

    def _told(self, small: torch.Tensor) -> Told:
        # As stock diffusers' IFSuperResolutionPipeline enlarges.
        large = F.interpolate(small, scale_factor=self.factor, mode="bilinear", align_corners=True)
        if self.noising is None:
            return {"low_resolution": large}
        level = usual_level(self.noising.config.num_train_timesteps) if self.level is None else self.level
        levels = torch.full((len(large),), level, dtype=torch.int64, device=large.device)
        return {"low_resolution": large, "class_labels": levels}

    def _pixels(self, word: Any) -> torch.Tensor:
        if isinstance(word, Image.Image) and word.mode in ("L", "LA", "RGB", "RGBA"):  # whose numbers are levels
            word = normalize(torch.from_numpy(np.atleast_3d(np.array(word))).permute(2, 0, 1))
        if not torch.is_tensor(word) or tuple(word.shape) != self.shape:
            found = f"shape {tuple(word.shape)}" if torch.is_tensor(word) else repr(word)
            raise ValueError(f"`image` must be {self.choices()}, got {found}.")
        return word.float()


def usual_level(timesteps: int) -> int:
    """The level of noise where none is asked for."""
    return timesteps // 4


def blur(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures (B, C, H, W) under a Gaussian of 3x3 pixels, mirrored at the borders."""
    weights = torch.exp(-torch.tensor([1.0, 0.0, 1.0], device=pictures.device) / (2 * _SIGMA**2))
    weights = weights / weights.sum()
    padded = F.pad(pictures, (1, 1, 1, 1), mode="reflect").flatten(0, 1)[:, None]
    return F.conv2d(padded, torch.outer(weights, weights)[None, None]).view_as(pictures)
