"""Training examples by position, read from a store."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from .order import position_bits, shuffled_rows, stream_key
from .store import PixelStore

# Separate streams of random bits under one seed.
CROP_STREAM, FLIP_STREAM = 1, 2


class TrainingData(Dataset):
    """Positions of an endless shuffled sequence -> batches: row, crop and flip are pure functions of (seed, position).

    Batches stay uint8 until they are on the device, where the codec scales them: a quarter of the
    bytes to copy.

    Args:
        indices: (n,) which images of the store to train on; all by default.
        random_flip: mirror each image left to right with probability 1/2.
        random_crop: crop larger images at a random position (the store must be built with `random_crop`).
    """

    def __init__(
        self,
        store: PixelStore,
        seed: int,
        *,
        indices: np.ndarray | None = None,
        random_flip: bool = False,
        random_crop: bool = False,
    ):
        self.store = store
        self.seed = seed
        self.indices = np.arange(len(store)) if indices is None else np.asarray(indices)
        if len(self.indices) == 0:
            raise ValueError("`holdout` leaves no image to train on.")
        self.random_flip = random_flip
        self.random_crop = random_crop

    def __len__(self) -> int:
        """Images in an epoch."""
        return len(self.indices)

    def __getitems__(self, positions: Sequence[int]) -> dict[str, torch.Tensor]:
        """The batch of examples at these positions (integers >= 0), in the format of `make_batch`."""
        positions = np.asarray(positions, dtype=np.int64)
        indices = self.indices[shuffled_rows(self.seed, positions, len(self))]
        crop_bits = crop_bits_at(self.seed, positions) if self.random_crop else None
        batch = self.store.batch(indices, crop_bits)
        if self.random_flip:
            flip_some(batch["images"].numpy(), self.seed, positions)
        return batch


def crop_bits_at(seed: int, positions: np.ndarray) -> np.ndarray:
    """uint64 random bits that choose the crop at each position."""
    return position_bits(stream_key(seed, CROP_STREAM), positions)


def flip_some(images: np.ndarray, seed: int, positions: np.ndarray) -> None:
    """Mirror images (B, C, H, W) left to right in place, each with probability 1/2."""
    heads = (position_bits(stream_key(seed, FLIP_STREAM), positions) >> np.uint64(63)).astype(bool)
    images[heads] = images[heads][..., ::-1]
