"""Images kept out of training, chosen by content and seed, so that a later evaluation finds the same ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from .decoding import decode_row, stack_batch
from .order import mix, stream_key
from .sources import ImageData, RawRow
from .store import PixelStore
from .transforms import Decoder, UnreadableImage, content_hash

# What is held out of data without a split of its own, when the user does not say.
SHARE, MOST = 0.1, 5000

HOLDOUT_STREAM = 3


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """Which images are held out. Plain values: `Holdout(**dataclasses.asdict(holdout))` equals `holdout`.

    Attributes:
        split: the data set's own split that is held out; None when training rows are, or nothing is.
        seed: of the choice among the training rows.
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
        """Content hashes, uint64 -> scores, uint64: uniform, equal for equal content, unrelated for another seed."""
        return mix(np.asarray(hashes, dtype=np.uint64) ^ stream_key(self.seed, HOLDOUT_STREAM))

    def mask(self, hashes: np.ndarray) -> np.ndarray:
        """Content hashes of training rows, uint64 -> bool: which of them are held out."""
        return self.scores(hashes) < np.uint64(self.threshold)


def choose_holdout(
    data: ImageData, holdout: int | float | None = None, seed: int = 0, hashes: np.ndarray | None = None
) -> Holdout:
    """Decide what is held out.

    The choice among training rows goes by content: neither the order of rows nor the resolution matters, and files
    that are equal byte for byte fall on the same side (so slightly fewer than asked may be held out). Images that are
    added to the data later fall by the same threshold.

    Args:
        data: the training data, from `load_images`.
        holdout: how many images (a whole number), or which share of them (below 1); 0 for none. By default the data
            set's own test or validation split, else a tenth, at most 5,000.
        seed: of the choice.
        hashes: (n,) of all training images, `PixelStore.hashes`; None for a stream, which meets the share on average.

    Raises:
        ValueError: `holdout` is negative, leaves nothing, or is a number for a stream that does not tell its length.
    """
    if holdout is None and data.holdout is not None:
        return Holdout(split=data.holdout_split, seed=seed)
    total = data.num_rows if hashes is None else len(hashes)
    if holdout is None:
        holdout = SHARE if total is None else min(SHARE, MOST / total)
    elif not (0 <= holdout < 1 or (holdout >= 1 and float(holdout).is_integer())):
        raise ValueError(f"holdout is {holdout}; give a number of images, a share below 1, or 0")
    if holdout < 1 and hashes is None:
        return Holdout(seed=seed, threshold=int(holdout * 2**64))
    if total is None:
        raise ValueError(
            f"holdout is {holdout}, but {data.name} does not tell how many rows it has; give a share below 1"
        )
    count = round(holdout * total) if holdout < 1 else int(holdout)
    if count >= total:
        raise ValueError(f"holdout is {holdout}, but {data.name} has {total} images; leave some to train on")
    if hashes is None:
        return Holdout(seed=seed, threshold=int(count / total * 2**64))
    first_kept = np.sort(Holdout(seed=seed).scores(hashes))[count]
    return Holdout(seed=seed, threshold=int(first_kept) if count else 0)


def rows_of_side(data: ImageData, holdout: Holdout, held_out: bool) -> Iterator[RawRow]:
    """The training rows that are held out, or those that are not, in file order and not decoded.

    A row whose file cannot be read has no content to go by; it is not held out.
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


def held_out_batches(
    data: ImageData,
    holdout: Holdout,
    batch_size: int,
    size: tuple[int, int],
    channels: int,
    *,
    most: int | None = None,
    skip_unreadable: bool = False,
    decoded: PixelStore | None = None,
    **store_arguments,
) -> Iterator[dict[str, torch.Tensor]]:
    """The held-out images in batches as training gets them, but centre-cropped, unflipped and in a fixed order.

    Out of a store they come by rising score, so that the first k are a fair sample; out of a stream in file order.

    Args:
        data: the training data, from `load_images`.
        holdout: from `choose_holdout`.
        batch_size: images; the last batch may be smaller.
        size, channels: of the model.
        most: how many images at most; None for all.
        decoded: the training images in any form, by whose hashes to choose; then no others are decoded.
        skip_unreadable, store_arguments: as for `PixelStore.build`.

    Raises:
        ValueError: the data has no such split, or what `PixelStore.build` raises.
    """
    source = data if holdout.split is None else data.holdout
    if holdout.split is not None and data.holdout_split != holdout.split:
        raise ValueError(f"holdout is the split {holdout.split!r}; that of {data.name} is {data.holdout_split!r}")
    if source.streaming:
        decoder = Decoder(size=tuple(size), channels=channels)
        rows = rows_of_side(source, holdout, held_out=holdout.split is None)  # of an own split, all
        images = (decode_row(source, decoder, row, skip_unreadable) for row in rows)
        images = islice((image for image in images if image.pixels is not None), most)
        while chosen := list(islice(images, batch_size)):
            yield stack_batch(chosen)
        return
    is_known = decoded is not None and holdout.split is None
    store = decoded
    if not is_known:
        store = PixelStore.build(source, size, channels, skip_unreadable=skip_unreadable, **store_arguments)
    chosen = np.arange(len(store)) if holdout.split else np.flatnonzero(holdout.mask(store.hashes))
    chosen = chosen[np.argsort(holdout.scores(store.hashes[chosen]), kind="stable")][:most]
    for start in range(0, len(chosen), batch_size):
        part = chosen[start : start + batch_size]
        if is_known:
            rows = (next(source.batches(int(row), 1))[0] for row in store.rows[part])
            decoder = Decoder(size=tuple(size), channels=channels)
            yield stack_batch([decode_row(source, decoder, row, skip_unreadable=False) for row in rows])
        else:
            yield store.batch(part)
