"""Read digit, colour, ground, size and place back out of pictures: whether captioned digits follow their captions."""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from ..data.captioned_digits import (
    ATTRIBUTES,
    CORNER,
    FRAMES,
    HANDWRITING,
    PALETTE,
    SIDE,
    attributes_of,
    compose,
    coverage,
    digits,
    never_shown,
    plans,
    understand,
)
from ..data.transforms import RESAMPLING
from ..seeds import generator_for
from ..statistics.intervals import wilson_interval
from .digits_classifier import DigitsClassifier, cached_classifier, train_classifier

_AT_ONCE = 256
# The longer side of a digit of each size, and the side of the window that the classifier sees, as shares of a picture.
_LONGER = {size: frame * 20 / 28 / SIDE for size, frame in FRAMES.items()}
_WINDOWS = {size: 1.25 * longer for size, longer in _LONGER.items()}
_EPOCHS, _DROPOUT = 50, 0.4
# Increase it when the classifier would get other weights.
_VERSION = 2


class PromptJudge:
    """Judges pictures that were generated for captions of captioned digits, at any square resolution from 16 on.

    The ground is the colour of the palette to which most pixels are nearest. The ink is the colour whose mixtures with
    the ground explain all pixels best; its shares say how far ink covers each pixel. Size and place are those of the
    bounding box of what is more than half covered, and a classifier reads the digit in that box. It learned from
    digits that neither training nor test pictures show, when it is first asked.

    Args:
        level: of `captioned_digits`.
        cache_dir: where the classifier is kept; the cache of `datasets` by default.

    Raises:
        ValueError: there is no such level.
    """

    def __init__(self, level: str, cache_dir: str | os.PathLike | None = None):
        self.level = level
        self.attributes = attributes_of(level)
        self._known_ceilings = {}
        self._cache_dir = cache_dir

    @cached_property
    def _classifier(self) -> tuple[DigitsClassifier, str]:
        return cached_classifier(f"prompt-judge-{_VERSION}", _train, self._cache_dir)

    @property
    def fingerprint(self) -> str:
        """Of the classifier: figures can be compared if it is the same."""
        return self._classifier[1]

    def read(self, images: torch.Tensor) -> dict[str, np.ndarray]:
        """uint8 (n, 3, S, S) -> attribute -> int64 ids (n,); the digit is -1 where nothing stands out from the ground.

        Raises:
            ValueError: the images have another type or shape.
        """
        _check_images(images)
        read = [self._read(some) for some in images.split(_AT_ONCE)]
        return {name: np.concatenate([each[name].numpy() for each in read]) for name in self.attributes}

    def score(self, images: torch.Tensor, asked: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """How many pictures are as their captions asked, as report entries.

        Seen combinations of digit and colour, and those that no training picture shows, apart; all attributes right
        at once (`prompt_accuracy_unseen`), and each for itself (`prompt_digit_unseen`). Each entry has a `value` with
        its 95 % interval, a `ceiling`: the share that this judge calls right among the real test pictures, scaled to
        this resolution, and a `chance`: the share expected if the pictures were shuffled among the captions.

        Args:
            images: uint8 (n, 3, S, S).
            asked: attribute -> ids (n,), as in the columns of `captioned_digits`.

        Raises:
            ValueError: the images have another type or shape; an attribute is missing, has another length, or an id
                that it does not have.
        """
        _check_images(images)
        asked = {name: _checked_ids(name, asked, len(images)) for name in self.attributes}
        entries = shares(self.read(images), asked)
        ceilings = {entry["name"]: entry for entry in self._ceilings(images.shape[-1])}
        for entry in entries:
            entry["ceiling"], entry["ceiling_n"] = (ceilings[entry["name"]][key] for key in ("value", "n"))
        return entries

    def _ceilings(self, resolution: int) -> list[dict[str, Any]]:
        if resolution not in self._known_ceilings:
            asked = plans(self.level)["test"]
            pictures = [Image.fromarray(picture).resize((resolution,) * 2, RESAMPLING) for picture in compose(asked)]
            read = self.read(torch.from_numpy(np.stack(pictures)).movedim(3, 1))
            self._known_ceilings[resolution] = shares(read, {name: asked[name] for name in self.attributes})
        return self._known_ceilings[resolution]

    @torch.no_grad()
    def _read(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        ground, colour, covered = separate(images)
        middle, longer = _bounding_boxes(covered)
        read = {"colour": colour, "ground": ground}
        window = torch.full_like(longer, _WINDOWS[None])
        if "size" in self.attributes:
            large = longer > (_LONGER["small"] * _LONGER["large"]) ** 0.5
            window = torch.where(large, _WINDOWS["large"], _WINDOWS["small"])
            cornered = middle.abs().mean(1) > torch.where(large, CORNER["large"], CORNER["small"]) / SIDE
            right, below = (middle > 0).long().unbind(1)
            read |= {"size": large.long(), "place": torch.where(cornered, 2 * below + right, 4)}
        shown = _windows(covered, middle, window[:, None, None] * torch.eye(2))
        read["digit"] = torch.where(longer > 0, self._classifier[0](shown).argmax(1), -1)
        return read


def separate(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """uint8 (n, 3, H, W) -> ids of ground and ink (n,), and how far ink covers each pixel, (n, H, W) in [0, 1].

    The ground g is the colour of the palette to which most pixels are nearest. With a colour c, least squares give a
    pixel x the share a = clip((x - g)·(c - g) / |c - g|²); the ink is the c with the smallest sum of
    |x - g - a(c - g)|².
    """
    palette = torch.tensor(list(PALETTE.values()), dtype=torch.float32)
    pixels = images.flatten(2).float()  # (n, 3, P)
    ground = torch.cdist(pixels.mT, palette).argmin(2).mode(1).values
    there = palette - palette[ground, None]  # (n, colours, 3)
    length = there.square().sum(2, keepdim=True).clamp(min=1)
    pixels = pixels - palette[ground, :, None]
    product = there @ pixels
    share = (product / length).clamp(0, 1)
    explained = (share * (2 * product - share * length)).sum(2)
    colour = explained.scatter(1, ground[:, None], -torch.inf).argmax(1)
    covered = share[torch.arange(len(images)), colour]
    return ground, colour, covered.unflatten(1, images.shape[2:])


def _bounding_boxes(covered: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of what is more than half covered: the middle (x, y), each in [-1, 1], and the longer side as a share of S."""
    inked, side = covered > 0.5, covered.shape[-1]
    profiles = torch.stack([inked.any(1), inked.any(2)], 1).long()  # (n, 2, S): along x, along y
    first, last = profiles.argmax(2), side - profiles.flip(2).argmax(2)
    longer = ((last - first) * profiles.any(2)).amax(1)
    return (first + last) / side - 1, longer / side


def _windows(covered: torch.Tensor, middle: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """What the classifier is shown: windows of (n, S, S) -> (n, 1, 16, 16) in [-1, 1].

    Args:
        middle: (n, 2) in [-1, 1].
        shape: (n, 2, 2) matrices that take the square [-1, 1]² to the window less its middle.
    """
    twice = 2 * DigitsClassifier.side  # two samples a pixel each way, against aliasing
    grid = F.affine_grid(
        torch.cat([shape, middle[..., None]], 2), (len(covered), 1, twice, twice), align_corners=False
    )
    return F.avg_pool2d(F.grid_sample(covered[:, None], grid, align_corners=False), 2) * 2 - 1


def _train(network: DigitsClassifier) -> None:
    """Train on the judge's own handwriting in the sizes in which it will be judged, slightly deformed."""
    handwriting = np.array(HANDWRITING["judge"])
    drawn = [torch.from_numpy(coverage(handwriting, frame)) / 255 for frame in FRAMES.values()]
    # And as in a picture of half the resolution.
    halved = F.interpolate(F.avg_pool2d(drawn[0][:, None], 2), scale_factor=2, mode="bilinear")[:, 0]
    sides = torch.tensor([*_WINDOWS.values(), _WINDOWS[None]])
    generator = generator_for("prompt judge")

    def loss(network: DigitsClassifier, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        which = torch.randint(len(sides), (len(images),), generator=generator)
        middle, shape = _deformed_windows(sides[which], generator)
        features = network.features(_windows(images[torch.arange(len(images)), which], middle, shape))
        kept = torch.rand(features.shape, generator=generator) > _DROPOUT
        logits = network.head(features * kept / (1 - _DROPOUT))
        return F.cross_entropy(logits, labels, label_smoothing=0.1)

    labels = torch.from_numpy(digits()[1][handwriting])
    train_classifier(network, torch.stack([*drawn, halved], 1), labels, epochs=_EPOCHS, loss=loss)


def _deformed_windows(side: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Middles and shapes of `_windows` of about these sides (n,): shifted, scaled, turned, sheared and stretched."""
    angle, shear, stretch, scale, *shift = torch.randn(6, len(side), generator=generator)
    sine, cosine = (0.12 * angle).sin(), (0.12 * angle).cos()
    turn = torch.stack([cosine, -sine, sine, cosine], 1).unflatten(1, (2, 2))
    wide = (0.06 * stretch).exp()
    bend = torch.stack([wide, 0.12 * shear, torch.zeros_like(wide), 1 / wide], 1).unflatten(1, (2, 2))
    side = side * (0.06 * scale).exp()
    return 0.06 * side[:, None] * torch.stack(shift, 1), side[:, None, None] * (turn @ bend)


def _check_images(images: torch.Tensor) -> None:
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 or images.numel() == 0 or shape[1:] != (3, shape[-1], shape[-1]):
        raise ValueError(f"`images` must be uint8 (n, 3, S, S) with n > 0, got {images.dtype} {shape}.")


def _checked_ids(name: str, asked: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    if name not in asked:
        raise ValueError(f"`asked` must hold {name}, got {', '.join(asked) or 'nothing'}.")
    ids = np.asarray(asked[name])
    if ids.shape != (count,):
        raise ValueError(f"`asked` must have an id of {name} for each of {count} images, got shape {ids.shape}.")
    wrong = ids[(ids < 0) | (ids >= len(ATTRIBUTES[name]))]
    if len(wrong):
        raise ValueError(f"`asked` must have ids of {name} below {len(ATTRIBUTES[name])}, got {wrong[0]}.")
    return ids


def shares(read: Mapping[str, np.ndarray], asked: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Entries of `PromptJudge.score` without ceilings, for ids that were read; none for a group that no caption asks
    for."""
    entries = []
    for group, members in _groups(asked).items():
        for name in ("accuracy", *asked):
            wanted, found = (_codes(ids, name, asked) for ids in (asked, read))
            count, share = int(members.sum()), float((wanted == found)[members].mean())
            low, high = wilson_interval(share, count)
            entries.append(
                {
                    "name": f"prompt_{name}_{group}",
                    "value": share,
                    "standard_error": None,
                    "interval_low": low,
                    "interval_high": high,
                    "chance": float(np.mean([(found == code).mean() for code in wanted[members]])),
                    "n": count,
                }
            )
    return entries


def figure_names(asked: Mapping[str, np.ndarray]) -> list[str]:
    """The names of the entries that `PromptJudge.score` gives."""
    return [f"prompt_{name}_{group}" for group in _groups(asked) for name in ("accuracy", *asked)]


def groups_of(captions: Sequence[str]) -> dict[str, np.ndarray]:
    """Of captions of captioned digits the groups of `PromptJudge.score`, bool (n,) each; of others all, as ""."""
    try:
        _, asked = understand(captions)
    except ValueError:
        return {"": np.ones(len(captions), dtype=bool)}
    return {f"_{group}": members for group, members in _groups(asked).items()}


def _groups(asked: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Which captions ask for seen combinations of digit and colour, and which for unseen ones, bool (n,) each."""
    unseen = never_shown(asked["digit"], asked["colour"])
    return {group: members for group, members in (("seen", ~unseen), ("unseen", unseen)) if members.any()}


def _codes(ids: Mapping[str, np.ndarray], name: str, attributes) -> np.ndarray:
    """One number for each picture's value of an attribute, or for those of all attributes ("accuracy")."""
    if name != "accuracy":
        return ids[name]
    return np.polyval([ids[each] + 1 for each in attributes], max(map(len, ATTRIBUTES.values())) + 1)
