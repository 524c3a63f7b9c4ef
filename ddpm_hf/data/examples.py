"""Training images by position, so that a run can start anywhere and needs only a seed to repeat itself."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..kept import KeptArray
from .captions import CAPTIONS, captions_of
from .holdout import Holdout
from .order import PositionSampler, position_bits, shuffled_rows, spread, stream_key
from .sources import ROWS_AT_ONCE, ImageData, RawRow
from .store import PixelStore

# Separate streams of random bits under one seed.
CROP_STREAM, FLIP_STREAM, CAPTION_STREAM = 1, 2, 5

SAMPLE_SIZE = 256


class TrainingImages(ABC):
    """Positions of an endless shuffled sequence -> batches.

    Row, crop, flip and which of its captions are pure functions of (seed, position).

    Batches stay uint8 until they are on the device, where the codec scales them: a quarter of the
    bytes to copy.

    Attributes:
        source: the data set.
        seed: of order, crops, flips and choice of captions.
        holdout: which images of the data set to leave out, from `choose_holdout`.
        random_flip: mirror each image left to right with probability 1/2.
        random_crop: crop larger images at a random position.
        shape: (channels, height, width) of one image.
        count: images in an epoch; None for a stream of unknown length.
        store: the decoded images of the whole data set; None for a stream.
        skipped: row -> "row 17 (path): reason", of a stream's images that could not be decoded so far.
    """

    store: PixelStore | None = None
    shape: tuple[int, int, int]
    count: int | None

    def __init__(
        self, source: ImageData, seed: int, *, holdout: Holdout, random_flip: bool = False, random_crop: bool = False
    ):
        self.source, self.seed, self.holdout = source, seed, holdout
        self.random_flip, self.random_crop = random_flip, random_crop
        self.skipped: dict[int, str] = {}

    @abstractmethod
    def batches(self, slices: Iterable[range]) -> Iterator[dict[str, torch.Tensor]]:
        """One batch in the format of `make_batch` per range of positions (>= 0); the ranges must be increasing."""

    def loader(
        self, sampler: PositionSampler, *, num_workers: int = 0, pin_memory: bool = False
    ) -> Iterator[dict[str, torch.Tensor]]:
        """One batch per micro-step of `sampler`, in the format of `make_batch`, on the CPU.

        Do not pass it to `accelerator.prepare`: the sampler has already divided the batches among processes. It has
        its own generator, so starting it leaves torch's global one unchanged.

        Args:
            num_workers: processes that read and, from a stream, decode; 0 for none.
            pin_memory: for faster copies to a GPU.
        """
        workers = {"num_workers": num_workers, "pin_memory": pin_memory, "generator": torch.Generator()}
        for batch, skipped in DataLoader(_Batches(self, sampler), batch_size=None, **workers):
            if isinstance(batch, ValueError):
                raise batch
            self.skipped.update(skipped)
            yield batch

    @abstractmethod
    def some_rows(self, most: int) -> list[RawRow]:
        """Up to `most` undecoded images, spread over the data; the first ones of a stream."""

    @abstractmethod
    def some_batch(self, most: int) -> dict[str, torch.Tensor]:
        """The readable ones of `some_rows`, cropped in one place, with their first captions."""

    def some_pixels(self) -> np.ndarray:
        """Up to 256 images of `some_batch`, uint8 (n, C, H, W)."""
        return self.some_batch(SAMPLE_SIZE)["images"].numpy()

    @abstractmethod
    def caption_cells(self) -> Iterator[tuple[int, str]]:
        """Data set row and captions, as `CaptionColumn` reads them, of each training image with or without captions.

        None if the data have no captions. Of a stream, only the first `shuffle_buffer` training images, in file order.
        """

    def captions(self) -> Iterator[str]:
        """Every caption of the images of `caption_cells`."""
        for _, cell in self.caption_cells():
            yield from captions_of(cell)

    def some_captions(self, most: int) -> list[str]:
        """The first caption of each of `some_rows` that has one; if none has, the first of `captions`."""
        cells = [row.extra.get(CAPTIONS) for row in self.some_rows(most)]
        return [captions_of(cell)[0] for cell in cells if cell] or list(islice(self.captions(), most))

    def uncaptioned(self, most: int = 3) -> tuple[int, list[str]]:
        """How many images of `caption_cells` have no caption, and the first of them as "row 17 (path)"."""
        rows = [row for row, cell in self.caption_cells() if not cell]
        return len(rows), [self.source.describe(self.source.row(row)) for row in rows[:most]]

    @property
    def unreadable(self) -> list[str]:
        """Images left out so far because they could not be decoded, as "row 17 (path): reason"."""
        return list(self.skipped.values())

    def gather_skipped(self) -> dict[str, str]:
        """`skipped` of all processes, which call this together, by row as text."""
        for found in gather_object([self.skipped]):
            self.skipped.update(found)
        return {str(row): problem for row, problem in sorted(self.skipped.items())}

    def add_skipped(self, found: dict[str, str]) -> None:
        """Restore what an earlier session gathered."""
        self.skipped.update({int(row): problem for row, problem in found.items()})

    def facts(self) -> dict[str, Any]:
        """What must be unchanged for a run to continue."""
        names, columns = self.source.class_names, self.source.columns
        captions = {"caption_column": columns[CAPTIONS].name} if CAPTIONS in columns else {}
        return captions | {
            "dataset": self.source.name,
            "training_images": self.count,
            "image_shape": list(self.shape),
            "class_names": None if names is None else list(names),
            "holdout": asdict(self.holdout),
        }


class StoredImages(TrainingImages):
    """Training images out of a store, shuffled all together.

    Args:
        store: of `source`, built with `random_crop` if that is set.
        seed, holdout, **draws: as for `TrainingImages`.

    Attributes:
        kept: name -> an array with a row for each number of `pictures`; batches have those of their images by that
            name.

    Raises:
        ValueError: `holdout` leaves no image to train on.
    """

    def __init__(self, source: ImageData, store: PixelStore, seed: int, *, holdout: Holdout, **draws: bool):
        super().__init__(source, seed, holdout=holdout, **draws)
        self.store, self.shape, self.kept = store, store.shape, dict[str, KeptArray]()
        self.indices = np.flatnonzero(~holdout.mask(store.hashes))
        self.count = len(self.indices)
        if self.count == 0:
            raise ValueError("`holdout` leaves no image to train on.")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"source": None}  # workers need only the store; a source may hold millions of paths

    def batches(self, slices: Iterable[range]) -> Iterator[dict[str, torch.Tensor]]:
        for positions in slices:
            positions = np.asarray(positions, dtype=np.int64)
            indices = self.indices[shuffled_rows(self.seed, positions, self.count)]
            crop_bits = crop_bits_at(self.seed, positions) if self.random_crop else None
            batch = self.store.batch(indices, crop_bits, caption_bits_at(self.seed, positions))
            if self.random_flip:
                flip_some(batch["images"].numpy(), self.seed, positions)
            if self.kept:
                numbers = indices + len(self.store) * (self.random_flip & flips_at(self.seed, positions))
                batch |= {name: array[numbers] for name, array in self.kept.items()}
            yield batch

    @property
    def picture_count(self) -> int:
        """How many numbers `pictures` has."""
        return len(self.store) * (2 if self.random_flip else 1)

    def pictures(self, numbers: np.ndarray) -> np.ndarray:
        """Pictures (B, C, H, W) by number, centre-cropped: those of the store; for random flips then their mirror
        images."""
        mirrored, indices = np.divmod(numbers, len(self.store))
        images = self.store.gather(indices)
        mirror(images, mirrored == 1)
        return images

    def caption_cells(self) -> Iterator[tuple[int, str]]:
        for start in range(0, self.count if CAPTIONS in self.store.extra else 0, ROWS_AT_ONCE):
            indices = self.indices[start : start + ROWS_AT_ONCE]
            cells = self.store.extra[CAPTIONS][indices]
            yield from zip(self.store.rows[indices].tolist(), cells.tolist(), strict=True)

    def some_rows(self, most: int) -> list[RawRow]:
        return self.source.rows_at(self.store.rows[self.indices[spread(self.count, most)]])

    def some_batch(self, most: int) -> dict[str, torch.Tensor]:
        return self.store.batch(self.indices[spread(self.count, most)])

    @property
    def unreadable(self) -> list[str]:
        return list(self.store.unreadable)


class _Batches(IterableDataset):
    """Batches of `TrainingImages` for a DataLoader. Each of n workers makes every n-th batch."""

    def __init__(self, images: TrainingImages, sampler: PositionSampler):
        self.images, self.sampler = images, sampler

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor] | ValueError, dict[int, str]]]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        told = 0
        try:
            for batch in self.images.batches(islice(self.sampler, first, None, step)):
                news = dict(islice(self.images.skipped.items(), told, None))
                told += len(news)
                yield batch, news
        except ValueError as problem:  # raised in the main process, because DataLoader would add a traceback
            yield problem, {}


def crop_bits_at(seed: int, positions: np.ndarray) -> np.ndarray:
    """uint64 random bits that choose the crop at each position."""
    return position_bits(stream_key(seed, CROP_STREAM), positions)


def caption_bits_at(seed: int, positions: np.ndarray) -> np.ndarray:
    """uint64 random bits that choose among an image's captions at each position."""
    return position_bits(stream_key(seed, CAPTION_STREAM), positions)


def flip_some(images: np.ndarray, seed: int, positions: np.ndarray) -> None:
    """Mirror images (B, C, H, W) in place, each with probability 1/2."""
    mirror(images, flips_at(seed, positions))


def flips_at(seed: int, positions: np.ndarray) -> np.ndarray:
    """Where random flips mirror the image, bool."""
    return (position_bits(stream_key(seed, FLIP_STREAM), positions) >> np.uint64(63)).astype(bool)


def mirror(images: np.ndarray, which: np.ndarray) -> None:
    """Mirror some of the images (B, C, H, W) left to right in place."""
    images[which] = images[which][..., ::-1]
