"""Training examples by position, out of a store."""

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

    Batches carry uint8 pixels, a quarter of float32's bytes on the way through workers and to the device; the loop
    applies `transforms.normalize` there.

    Args:
        store: decoded images.
        seed: of order, crops and flips.
        indices: (n,) which images of the store to train on; all by default.
        random_flip: mirror each image left to right with probability 1/2.
        random_crop: place the crop at random where an image is larger (the store must keep the sides).
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
            raise ValueError("holdout leaves no image to train on")
        self.random_flip = random_flip
        self.random_crop = random_crop

    def __len__(self) -> int:
        """Images in an epoch."""
        return len(self.indices)

    def __getitems__(self, positions: Sequence[int]) -> dict[str, torch.Tensor]:
        """The examples at these positions (whole numbers >= 0).

        Returns:
            "images": uint8 (B, C, H, W); "rows": int64 (B,), of the data set; "class_labels": int64 (B,), if labelled.
        """
        positions = np.asarray(positions, dtype=np.int64)
        indices = self.indices[shuffled_rows(self.seed, positions, len(self))]
        crop_bits = crop_bits_at(self.seed, positions) if self.random_crop else None
        batch = self.store.batch(indices, crop_bits)
        if self.random_flip:
            flip_some(batch["images"].numpy(), self.seed, positions)
        return batch


def crop_bits_at(seed: int, positions: np.ndarray) -> np.ndarray:
    """Random bits that place the crop of each position, uint64."""
    return position_bits(stream_key(seed, CROP_STREAM), positions)


def flip_some(images: np.ndarray, seed: int, positions: np.ndarray) -> None:
    """Mirror (B, C, H, W) images left to right, in place, where the coin of their position says so."""
    heads = (position_bits(stream_key(seed, FLIP_STREAM), positions) >> np.uint64(63)).astype(bool)
    images[heads] = images[heads][..., ::-1]
