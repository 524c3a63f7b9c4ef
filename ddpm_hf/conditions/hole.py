"""Pictures with a hole, for inpainting: what is known of them, and which part is drawn."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..pixels import normalize
from ..seeds import derive_seed
from .condition import Condition, Told

_EVERYTHING = 0.2  # of the images have no known pixel, so that the network goes on drawing from captions alone


@dataclass(frozen=True, kw_only=True)
class _Given(Condition):
    """An argument of the pipeline call of which the network is told nothing: it sees known pixels in x_t.

    Attributes:
        examples: for previews, one an image.
    """

    examples: Sequence[Image.Image] = ()
    has_null = False
    hidden = 0.0

    def of_rows(self, batch: Mapping[str, Any]) -> Told:
        """Nothing."""
        return {}

    def of_words(self, words: Sequence[Image.Image], device: torch.device) -> Told:
        """Nothing."""
        return {}

    def null(self, told: Told) -> Told:
        """The same."""
        return told

    def usual(self) -> list[Image.Image]:
        """The examples."""
        return list(self.examples)


class Known(_Given):
    """The picture whose pixels are known outside the hole."""

    name = "image"

    def words_of(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[Image.Image]:
        """The rows' own images."""
        return (picture for batch in batches for picture in pictures(batch["images"]))


@dataclass(frozen=True, kw_only=True)
class Hole(_Given):
    """The part that is drawn, told to the loss as `hole`, bool (B, 1, H, W).

    Attributes:
        seed: of the holes, which are functions of it and of the position or row of an image.
    """

    seed: int = 0
    name = "mask_image"

    def of_rows(self, batch: Mapping[str, Any]) -> Told:
        """A random hole for each image; without `positions` the whole image."""
        images = batch["images"]
        holes = torch.ones(len(images), 1, *images.shape[2:], dtype=torch.bool)
        for hole, position in zip(holes, batch.get("positions", ()), strict=False):
            hole[0] = torch.from_numpy(np.array(self.drawn(images.shape[2:], "hole", position)))
        return {"hole": holes.to(images.device)}

    def words_of(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[Image.Image]:
        """A hole for each row."""
        return (
            self.drawn(batch["images"].shape[2:], "held-out hole", row)
            for batch in batches
            for row in batch["rows"].tolist()
        )

    def drawn(self, size: tuple[int, int], *address: int | str) -> Image.Image:
        """A mask of this (height, width), true in the hole: all of it, rectangles, or a stroke with corners."""
        (height, width), random = size, np.random.default_rng(derive_seed(self.seed, *address))
        kind = random.random()
        if kind < _EVERYTHING:
            return Image.new("1", (width, height), 1)
        mask = Image.new("1", (width, height))
        pen, sides = ImageDraw.Draw(mask), np.array([width, height])
        if kind < (1 + _EVERYTHING) / 2:
            for _ in range(random.integers(1, 3)):
                extent = np.ceil(sides * random.uniform(0.2, 1, 2)).astype(int)
                corner = random.integers(0, sides - extent + 1)
                pen.rectangle([*corner.tolist(), *(corner + extent - 1).tolist()], fill=1)
        else:
            corners = [tuple(corner) for corner in random.integers(0, sides, (random.integers(2, 7), 2)).tolist()]
            pen.line(corners, fill=1, width=max(1, round(random.uniform(0.05, 0.3) * min(size))), joint="curve")
            pen.point(corners, fill=1)
        return mask


@dataclass(frozen=True, kw_only=True)
class HoleBeside(Hole):
    """As `Hole`, told to the network beside x_t as `known`, float32 (B, 1 + c, h, w), with the rest of the picture.

    Attributes:
        codec: makes this of both, in every step, as `LatentCodec.beside`.
    """

    codec: Any

    def of_rows(self, batch: Mapping[str, Any]) -> Told:
        """A random hole for each image; without `positions` the whole image."""
        hole = super().of_rows(batch)["hole"]
        return {"known": self.codec.beside(normalize(batch["images"]), hole, batch.get("positions"))}

    def of_words(self, words: Sequence[Image.Image], device: torch.device) -> Told:
        """Nothing but the shape: pipelines tell it with the picture."""
        channels, *size = self.codec.shape
        return {"known": torch.zeros(len(words), 1 + channels, *size, device=device)}

    def describe(self) -> str:
        """Where the known part comes from."""
        return "random holes; the picture around them is encoded in each step"

    def prepare(self, device: torch.device) -> None:
        """Bring the codec there."""
        self.codec.prepare(device)


def pictures(images: torch.Tensor) -> list[Image.Image]:
    """Of uint8 (B, C, H, W) with 1, 3 or 4 channels."""
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array[..., 0] if array.shape[2] == 1 else array) for array in arrays]
