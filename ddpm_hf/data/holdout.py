"""Hold images out of training, chosen by content and seed, so that a later evaluation finds the same ones."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .order import mix, stream_key
from .sources import ImageData, RawRow
from .transforms import UnreadableImage, content_hash

# The default for data without a test or validation split: this share, but at most this many images.
SHARE, MOST = 0.1, 5000

HOLDOUT_STREAM = 3


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """Which images are held out, in plain values that can be saved as JSON.

    Attributes:
        split: the data set's own test or validation split; None if training rows are held out, or nothing.
        seed: for the choice among the training rows.
        threshold: an image is held out if its score, a hash of content and seed in [0, 2^64), is below this.
    """

    split: str | None = None
    seed: int = 0
    threshold: int = 0

    @property
    def holds_out(self) -> bool:
        """Whether any image may be held out."""
        return self.split is not None or self.threshold > 0

    def scores(self, hashes: np.ndarray) -> np.ndarray:
        """Content hashes, uint64 -> uniform scores, uint64; independent for different seeds."""
        return mix(np.asarray(hashes, dtype=np.uint64) ^ stream_key(self.seed, HOLDOUT_STREAM))

    def mask(self, hashes: np.ndarray) -> np.ndarray:
        """Content hashes of training rows, uint64 -> bool, True if held out."""
        return self.scores(hashes) < np.uint64(self.threshold)


def choose_holdout(
    data: ImageData, holdout: int | float | None = None, seed: int = 0, hashes: np.ndarray | None = None
) -> Holdout:
    """Choose the images to hold out.

    Training rows are chosen by content, so the choice does not depend on row order or resolution, and identical files
    are either all held out or all kept (so slightly fewer than asked may be held out). Images added to the data later
    are split by the same threshold.

    Args:
        data: the training data, from `load_images`.
        holdout: a number of images (integer) or a share of them (below 1); 0 for none. By default the data set's own
            test or validation split, else a tenth of the images, at most 5,000.
        seed: for the choice.
        hashes: (n,) of all training images, `PixelStore.hashes`; None for a stream, where the share holds on average.

    Raises:
        ValueError: `holdout` is negative, leaves nothing to train on, or is a number for a stream of unknown length.
    """
    if holdout is None and data.own_split is not None:
        return Holdout(split=data.own_split, seed=seed)
    total = data.num_rows if hashes is None else len(hashes)
    if holdout is None:
        holdout = SHARE if total is None else min(SHARE, MOST / total)
    elif not (0 <= holdout < 1 or (holdout >= 1 and float(holdout).is_integer())):
        raise ValueError(f"`holdout` must be a number of images, a share below 1, or 0, got {holdout}.")
    if holdout < 1 and hashes is None:
        return Holdout(seed=seed, threshold=int(holdout * 2**64))
    if total is None:
        raise ValueError(
            f"`holdout` must be a share below 1, because the length of {data.name} is unknown, got {holdout}."
        )
    count = round(holdout * total) if holdout < 1 else int(holdout)
    if count >= total:
        raise ValueError(f"`holdout` must be less than the {total} images of {data.name}, got {holdout}.")
    if hashes is None:
        return Holdout(seed=seed, threshold=int(count / total * 2**64))
    first_kept = np.sort(Holdout(seed=seed).scores(hashes))[count]
    return Holdout(seed=seed, threshold=int(first_kept) if count else 0)


def rows_of_side(data: ImageData, holdout: Holdout, held_out: bool) -> Iterator[RawRow]:
    """The training rows that are held out, or the others, undecoded and in file order.

    Rows whose file cannot be read are never held out.
    """
    for rows in data.batches():
        if holdout.threshold == 0:
            yield from () if held_out else rows
            continue
        hashes = [_hash(data, row) for row in rows]
        scores = holdout.mask(np.array([hash_ or 0 for hash_ in hashes], dtype=np.uint64))
        for row, hash_, is_out in zip(rows, hashes, scores, strict=True):
            if (hash_ is not None and is_out) == held_out:
                yield row


def _hash(data: ImageData, row: RawRow) -> int | None:
    try:
        return content_hash(data.payload(row))
    except UnreadableImage:
        return None
