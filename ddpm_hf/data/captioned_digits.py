"""Captioned pictures composed from the bundled digits, to try text-to-image models on without a download.

Every picture shows real handwriting, and its caption is true by construction, so a program can check whether a
generated picture follows its caption (`judges.prompt_judge`). All arithmetic is on integers: the same pixels on
every machine.
"""

import io
import os
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..files import replacing
from ..progress import is_shown
from .order import below, position_bits, shuffled_rows, stream_key

if TYPE_CHECKING:
    import datasets

DATA_SET = "captioned digits"  # its name in reports
DIGITS = Path(__file__).with_name("digits.parquet")
PALETTE = {
    "black": (24, 24, 30),
    "white": (250, 250, 246),
    "red": (222, 44, 50),
    "yellow": (254, 206, 54),
    "green": (34, 154, 78),
    "cyan": (94, 214, 232),
    "blue": (38, 72, 190),
    "purple": (162, 76, 216),
}
# What can be asked of a picture: attribute -> values in the order of their ids.
ATTRIBUTES = {
    "digit": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "colour": tuple(PALETTE),
    "ground": tuple(PALETTE),
    "size": ("small", "large"),
    "place": ("top left", "top right", "bottom left", "bottom right", "centre"),
}
# Level -> the wordings of a caption; a level asks for the attributes that its captions name.
CAPTIONS = {
    "coloured": (
        "a {colour} {digit} on a {ground} ground",
        "{colour} {digit}, {ground} background",
        "the number {digit} written in {colour} on {ground}",
        "a {ground} picture of a {colour} {digit}",
        "on {ground} paper there is a {colour} {digit}",
    ),
    "placed": (
        "a {size} {colour} {digit} on a {ground} ground, {place}",
        "{place}: {size} {colour} {digit}, {ground} background",
        "the number {digit} written {size} in {colour} on {ground}, at the {place}",
        "a {ground} picture of a {size} {colour} {digit} at the {place}",
        "on {ground} paper there is a {size} {colour} {digit}, {place}",
    ),
}
SIDE = 32
# Rows of the bundled digits. None is shared: the judge has neither learned what a generator may know by heart, nor
# what its own ceiling is measured on.
HANDWRITING = {"train": range(0, 2500), "judge": range(2500, 4000), "test": range(4000, 5000)}
# Size (None at the level without) -> side of a digit's frame in pixels: 28 in MNIST, and 20 the digit's longer side.
FRAMES = {None: 36, "small": 16, "large": 25}
# From the middle of a picture to the middle of a digit in one of its corners, pixels.
CORNER = {"small": 8, "large": 6}
_TIMES_SHOWN = 8  # each training digit, in different combinations
_JITTER_STREAM = 3
# Increase it when the same level would give different rows.
_VERSION = 1


def attributes_of(level: str) -> tuple[str, ...]:
    """The attributes that the captions of a level ask for.

    Raises:
        ValueError: there is no such level.
    """
    if level not in CAPTIONS:
        raise ValueError(f"`level` must be one of {', '.join(CAPTIONS)}, got {level!r}.")
    return tuple(ATTRIBUTES)[: 3 if level == "coloured" else 5]


def level_for(size: tuple[int, int]) -> str:
    """The level for pictures of this (height, width): a small digit cannot be read below 32 pixels."""
    return "coloured" if min(size) < SIDE else "placed"


def never_shown(digit: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Whether no training picture shows digits of this id in the colour of this id: one of the colours for each."""
    return (3 * np.asarray(digit) + 1) % len(PALETTE) == np.asarray(colour)


def captioned_digits(level: str = "coloured", cache_dir: str | os.PathLike | None = None) -> Path:
    """The folder of a `datasets.DatasetDict` of 32x32 RGB pictures, composed in seconds if it is not in the cache.

    Columns: `image`, `caption` (a list: every wording), one ClassLabel for each attribute, and `handwriting`, the row
    of the bundled digits. "train" shows each of 2,500 digits in 8 pictures. "test" shows each of 1,000 others in two,
    one after the other: a combination of digit and colour that training pictures show, and one that they never do.

    Several processes may call this at once.

    Args:
        level: "coloured" (digit, colour and ground; fills the picture, so that it can be read at 16x16 too), or
            "placed" (size and place as well).
        cache_dir: where it is kept; the cache of `datasets` by default.

    Raises:
        ValueError: there is no such level, or the cache folder is not writable.
    """
    import datasets
    from filelock import FileLock

    attributes_of(level)
    parent = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "ddpm_hf"
    folder = parent / f"captioned-digits-{level}-{_VERSION}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                if not is_shown():
                    datasets.disable_progress_bars()
                with replacing(folder) as partial:
                    splits = {name: _rows(level, plan) for name, plan in plans(level).items()}
                    datasets.DatasetDict(splits).save_to_disk(partial)
    except OSError as error:
        raise ValueError(f"`cache_dir` must be writable, got {str(parent)!r}: {error}") from error
    return folder


def coverage(
    handwriting: np.ndarray, frame: int, right: np.ndarray | int = 0, down: np.ndarray | int = 0
) -> np.ndarray:
    """How far ink covers each pixel of a 32x32 picture, uint8 (n, 32, 32), 255 for wholly.

    Args:
        handwriting: (n,) rows of the bundled digits.
        frame: the side that 28x28 pixels of a digit are resized to.
        right, down: (n,) pixels from the middle of the picture to the middle of the digit's bounding box.
    """
    known, which = np.unique(handwriting, return_inverse=True)
    weights = _resizing(28, frame)
    stamps = weights @ digits()[0][known].astype(np.int64) @ weights.T
    # As dark as before: strokes thinner than a pixel would be pale.
    stamps = (stamps * 255 // stamps.max(axis=(1, 2), keepdims=True)).astype(np.uint8)
    around = SIDE + 8  # more than any digit is moved
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(stamps, ((0, 0), (around, around), (around, around))), (SIDE, SIDE), axis=(1, 2)
    )
    top, left = (_doubled_middle(stamps.max(axis)) for axis in (2, 1))
    top, left = ((middle - SIDE) // 2 + around for middle in (top, left))
    return windows[which, top[which] - down, left[which] - right]


@lru_cache(maxsize=1)
def digits() -> tuple[np.ndarray, np.ndarray]:
    """The bundled digits, uint8 (5000, 28, 28) with white ink on black, and their classes, int64 (5000,)."""
    import pyarrow.parquet as pq

    table = pq.read_table(DIGITS)
    pixels = [np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in table["image"].to_pylist()]
    return np.stack(pixels), table["label"].to_numpy()


def _doubled_middle(profile: np.ndarray) -> np.ndarray:
    """Twice the middle of where a profile (n, length) is at least half ink: an integer."""
    inked = profile > 127
    return inked.argmax(1) + profile.shape[1] - inked[:, ::-1].argmax(1)


def _resizing(given: int, wanted: int) -> np.ndarray:
    """Antialiased linear interpolation from `given` pixels to `wanted`, as integers: 4,096 for a weight of 1."""
    scale = given / wanted
    middles = (np.arange(wanted) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(middles[:, None] - np.arange(given)) / max(scale, 1))
    return np.rint(4096 * weights / weights.sum(1, keepdims=True)).astype(np.int64)


def plans(level: str) -> dict[str, dict[str, np.ndarray]]:
    """Split -> `handwriting` and the ids of attributes of each picture."""
    train = _combined(level, np.tile(HANDWRITING["train"], _TIMES_SHOWN), shown=True, stream=0)
    test = np.array(HANDWRITING["test"])
    shown, unseen = (_combined(level, test, shown=shown, stream=2 - shown) for shown in (True, False))
    return {"train": train, "test": {name: np.stack([shown[name], unseen[name]], 1).reshape(-1) for name in shown}}


def _combined(level: str, handwriting: np.ndarray, *, shown: bool, stream: int) -> dict[str, np.ndarray]:
    """Attributes for each digit: no combination comes again before all others have come."""
    names = attributes_of(level)
    classes = digits()[1][handwriting]
    asked = np.empty((len(handwriting), len(names)), dtype=np.int64)
    for digit in range(10):
        others = product(*(range(len(ATTRIBUTES[name])) for name in names[1:]))
        choices = [c for c in others if c[0] != c[1] and never_shown(digit, c[0]) != shown]
        here = np.flatnonzero(classes == digit)
        order = shuffled_rows(int(stream_key(stream, digit)), np.arange(len(here)), len(choices))
        asked[here] = np.column_stack([np.full(len(here), digit), np.array(choices)[order]])
    return {"handwriting": handwriting} | dict(zip(names, asked.T, strict=True))


def _rows(level: str, plan: dict[str, np.ndarray]) -> "datasets.Dataset":
    import datasets

    names = attributes_of(level)
    features = {"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))}
    features |= {name: datasets.ClassLabel(names=list(ATTRIBUTES[name])) for name in names}
    features["handwriting"] = datasets.Value("int32")
    columns = {"image": [_png(picture) for picture in compose(plan)]} | plan
    columns["caption"] = [captions(level, ids) for ids in zip(*(plan[name] for name in names), strict=True)]
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def captions(level: str, ids: Sequence[int]) -> list[str]:
    """All wordings for the ids of the attributes of a level."""
    words = {name: ATTRIBUTES[name][number] for name, number in zip(attributes_of(level), ids, strict=True)}
    return [wording.format(**words) for wording in CAPTIONS[level]]


def understand(asked: Sequence[str]) -> tuple[str, dict[str, np.ndarray]]:
    """The level of captions, and attribute -> the ids (n,) that they ask for.

    Raises:
        ValueError: there are none, or they are not all captions of one level.
    """
    for level in CAPTIONS:
        known = _meanings(level)
        if asked and all(caption in known for caption in asked):
            ids = np.array([known[caption] for caption in asked])
            return level, dict(zip(attributes_of(level), ids.T, strict=True))
    strange = [caption for caption in asked if not any(caption in _meanings(level) for level in CAPTIONS)]
    found = repr((strange or asked)[0]) if asked else "none"
    raise ValueError(f"`asked` must hold captions of captioned digits, all of one level, got {found}.")


@lru_cache(maxsize=len(CAPTIONS))
def _meanings(level: str) -> dict[str, tuple[int, ...]]:
    """Each caption of a level -> the ids of its attributes."""
    every = product(*(range(len(ATTRIBUTES[name])) for name in attributes_of(level)))
    return {caption: ids for ids in every for caption in captions(level, ids)}


def compose(plan: dict[str, np.ndarray]) -> np.ndarray:
    """Pictures, uint8 (n, 32, 32, 3), of `handwriting` and the ids of attributes, each moved by up to one pixel."""
    handwriting = plan["handwriting"]
    bits = position_bits(stream_key(_JITTER_STREAM), np.arange(2 * len(handwriting)).reshape(2, -1))
    right, down = below(bits, 3) - 1
    ink = np.empty((len(handwriting), SIDE, SIDE), dtype=np.uint8)
    for size, frame in FRAMES.items():
        if (size is None) != ("size" not in plan):
            continue
        here = np.arange(len(handwriting))
        if size is not None:
            here = np.flatnonzero(plan["size"] == ATTRIBUTES["size"].index(size))
            place = plan["place"][here]
            right[here] += np.where(place < 4, CORNER[size] * (2 * (place % 2) - 1), 0)
            down[here] += np.where(place < 4, CORNER[size] * (place - place % 2 - 1), 0)
        ink[here] = coverage(handwriting[here], frame, right[here], down[here])
    palette = np.array(list(PALETTE.values()))
    colour, ground = (palette[plan[name]][:, None, None] for name in ("colour", "ground"))
    pictures = np.empty((*ink.shape, 3), dtype=np.uint8)
    for some in np.array_split(np.arange(len(ink)), len(ink) // 1000 + 1):  # for little memory
        covered = ink[some, ..., None].astype(np.int64)
        pictures[some] = (covered * colour[some] + (255 - covered) * ground[some] + 127) // 255
    return pictures


def _png(picture: np.ndarray) -> dict[str, bytes | None]:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}
