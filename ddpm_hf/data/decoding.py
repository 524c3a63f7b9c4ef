"""Decode the rows of a data set to pixels."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import default_convert

from ..progress import progress_bar
from .captions import CAPTIONS, choose_captions, meanings_of
from .sources import ImageData, RawRow
from .transforms import Decoder, UnreadableImage, content_hash, native_channels, open_image

ROWS_LOOKED_AT = 64


class DecodedRow(NamedTuple):
    """A row and its pixels, uint8 (channels, height, width); if unreadable, None and a problem naming row and file."""

    row: RawRow
    pixels: np.ndarray | None
    content_hash: int = 0
    problem: str = ""


def decode_row(data: ImageData, decoder: Decoder, row: RawRow, skip_unreadable: bool) -> DecodedRow:
    """Decode one row.

    Raises:
        ValueError: it cannot be decoded and `skip_unreadable` is False, or its channels differ from the deduced ones.
    """
    try:
        payload = data.payload(row)
        return DecodedRow(row, decoder(payload), content_hash(payload))
    except UnreadableImage as error:
        problem = f"{data.describe(row)}: {error}"
        if skip_unreadable:
            return DecodedRow(row, None, problem=problem)
        raise ValueError(f"{data.name}: {problem}; `skip_unreadable` leaves such images out.") from None
    except ValueError as error:
        raise ValueError(f"{data.name}: {data.describe(row)}: {error}") from None


def decode_rows(data: ImageData, decoder: Decoder, skip_unreadable: bool, progress: bool) -> Iterator[DecodedRow]:
    """All rows in order, decoded by several threads: Pillow releases the GIL while it decodes and resizes."""

    def decode(rows: list[RawRow]) -> list[DecodedRow]:
        return [decode_row(data, decoder, row, skip_unreadable) for row in rows]

    threads = min(16, os.cpu_count() or 1)
    with (
        ThreadPoolExecutor(threads) as pool,
        progress_bar(total=data.num_rows, desc="Decoding images once", unit=" images", disable=not progress) as bar,
    ):
        waiting = deque()
        for rows in data.batches():
            waiting.append(pool.submit(decode, rows))
            if len(waiting) > 2 * threads:
                yield from _finished(waiting.popleft(), bar)
        for future in waiting:
            yield from _finished(future, bar)


def _finished(future: Future, bar) -> list[DecodedRow]:
    images = future.result()
    bar.update(len(images))
    return images


def deduce_channels(data: ImageData) -> int:
    """The number of channels the images need: 1 (grey modes), 4 (some pixel is transparent) or 3.

    Looks at some rows only. Unreadable ones are ignored here and reported by `decode_row`.

    Raises:
        ValueError: the images differ, or none can be read.
    """
    found = {}
    for row in data.some_rows(ROWS_LOOKED_AT):
        try:
            found.setdefault(native_channels(open_image(data.payload(row), needed_side=1)), row)
        except UnreadableImage as error:
            problem = f"{data.describe(row)}: {error}"
    if not found:
        raise ValueError(f"`image_column` {data.image_column!r} of {data.name} has no readable image; {problem}.")
    if len(found) > 1:
        examples = "; ".join(f"{channels} in {data.describe(row)}" for channels, row in sorted(found.items()))
        raise ValueError(f"`channels` must be given (1, 3 or 4), because the images differ: {examples}.")
    return next(iter(found))


def make_decoder(data: ImageData, size: tuple[int, int], channels: int | None, random_crop: bool = False) -> Decoder:
    """A decoder for these images. If `channels` is None, it is deduced and every image must agree."""
    deduced = deduce_channels(data) if channels is None else channels
    return Decoder(size=tuple(size), channels=deduced, keep_sides=random_crop, same_channels=channels is None)


def make_batch(
    images: np.ndarray, rows: np.ndarray, extra: dict[str, np.ndarray], caption_bits: np.ndarray | None = None
) -> dict[str, torch.Tensor]:
    """A training batch.

    Args:
        caption_bits: (B,) uint64 random bits that choose among the captions of a row; None for the first.

    Returns:
        "images": uint8 (B, C, H, W); "rows": int64 (B,), data set rows; and for each of `ImageData.columns` its
        values (B,), such as "class_labels", int64: a tensor of numbers, or an array of strings. With captions
        there are "meanings" too, int64 (B,), equal for rows that have the same captions.
    """
    if CAPTIONS in extra:
        cells = extra[CAPTIONS]
        extra = extra | {CAPTIONS: choose_captions(cells, caption_bits), "meanings": meanings_of(cells)}
    return default_convert({"images": images, "rows": rows, **extra})


def stack_batch(images: list[DecodedRow], caption_bits: np.ndarray | None = None) -> dict[str, torch.Tensor]:
    """Decoded rows of equal shape -> one batch, as `make_batch` makes it."""
    rows = [image.row for image in images]
    extra = {key: np.array([row.extra[key] for row in rows]) for key in rows[0].extra}
    pixels, indices = np.stack([image.pixels for image in images]), np.array([row.index for row in rows])
    return make_batch(pixels, indices, extra, caption_bits)
