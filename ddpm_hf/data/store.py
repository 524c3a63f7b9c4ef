"""Images decoded once into a memory-mapped file of uint8 pixels in the cache folder, and read from it ever after."""

import hashlib
import json
import os
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
import torch

from ..files import replacing, sync, write_json
from .decoding import decode_rows, make_batch, make_decoder
from .order import below
from .sources import ImageData
from .transforms import Decoder

# Part of the key: increase it when the same data would give different pixels or files.
LAYOUT = 2


class Texts:
    """Strings in a memory-mapped file of UTF-8: an array of strings would be as wide as the longest in every row."""

    def __init__(self, path: Path, ends: np.ndarray):
        """`ends` (n,): where each string ends in the file, bytes."""
        self._bytes = np.memmap(path, np.uint8, mode="r") if ends[-1] else np.empty(0, np.uint8)
        self._bounds = np.concatenate([[0], ends])

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """The strings at `indices` (B,), an array (B,)."""
        bounds = zip(self._bounds[indices].tolist(), self._bounds[np.add(indices, 1)].tolist(), strict=True)
        return np.array([self._bytes[start:end].tobytes().decode() for start, end in bounds], dtype=np.str_)


class PixelStore:
    """Decoded images of one data set; create or open one with `PixelStore.build`. Can be pickled to workers.

    Attributes:
        size: (height, width) of the images from `gather`, pixels.
        channels: 1, 3 or 4.
        rows: (n,) int64, the data set row of each image.
        extra: what else the rows have, (n,) each, by key in batches: arrays of numbers, or `Texts`.
        hashes: (n,) uint64 hashes of the undecoded images.
        is_uniform: whether all images are stored in this size, so that no crop changes them.
        unreadable: the images that could not be decoded and were left out, as "row 17 (path): reason".
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        about = json.loads((self.folder / "store.json").read_text(encoding="utf-8"))
        self.size = tuple(about["size"])
        self.channels = about["channels"]
        self.unreadable = tuple(about["unreadable"])
        self.rows = self._array("rows")
        self.hashes = self._array("hashes")
        texts = {key: self.folder / f"{key}.utf8" for key in about["columns"]}
        self.extra = {
            key: Texts(path, self._array(key)) if path.exists() else self._array(key) for key, path in texts.items()
        }
        self._sides = self._array("sides")
        areas = self._sides.astype(np.int64).prod(axis=1) * self.channels
        self._ends = np.cumsum(areas)
        self.is_uniform = bool((self._sides == self.size).all())

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict:
        return {"folder": self.folder}  # pickling a memory map would copy the whole file

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["folder"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return (self.channels, *self.size)

    @cached_property
    def _pixels(self) -> np.ndarray:
        flat = np.memmap(self.folder / "pixels.u8", dtype=np.uint8, mode="r") if len(self) else np.empty(0, np.uint8)
        return flat.reshape(-1, *self.shape) if self.is_uniform else flat

    def _array(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy", allow_pickle=False)

    def gather(self, indices: np.ndarray, crop_bits: np.ndarray | None = None) -> np.ndarray:
        """Copies of the images at `indices`, uint8 (batch, channels, height, width).

        Args:
            indices: (batch,) of any integer type, below `len(self)`.
            crop_bits: (batch,) uint64 random bits that choose the crops; None for centre crops.
        """
        if self.is_uniform:
            return self._pixels[indices]
        shapes = [(self.channels, *sides) for sides in self._sides[indices].tolist()]
        places = zip(self._ends[indices].tolist(), shapes, strict=True)
        stored = [self._pixels[end - prod(shape) : end].reshape(shape) for end, shape in places]
        return crop(stored, self.size, crop_bits)

    def batch(
        self, indices: np.ndarray, crop_bits: np.ndarray | None = None, caption_bits: np.ndarray | None = None
    ) -> dict[str, torch.Tensor]:
        """`gather` with rows and what else they have, as `make_batch` makes it."""
        extra = {key: values[indices] for key, values in self.extra.items()}
        return make_batch(self.gather(indices, crop_bits), self.rows[indices], extra, caption_bits)

    @classmethod
    def build(
        cls,
        data: ImageData,
        size: tuple[int, int],
        channels: int | None = None,
        *,
        random_crop: bool = False,
        skip_unreadable: bool = False,
        cache_dir: str | os.PathLike | None = None,
        progress: bool = True,
    ) -> "PixelStore":
        """Open the store of these images at this size, decoding them first if needed.

        Several processes may call this at once: one decodes, the others wait. The folder is renamed into place when
        it is complete; the leftovers of an interrupted call are removed by the next.

        Args:
            data: from `load_images`, not streaming.
            size: (height, width) in pixels.
            channels: 1, 3 or 4; if None, deduced from the images, which must all agree.
            random_crop: keep the full longer side for random crops.
            skip_unreadable: leave out images that cannot be decoded and list them in `unreadable`.
            cache_dir: parent of the stores; the cache folder of `datasets` by default.

        Raises:
            ValueError: an image cannot be decoded (names its row and file), none can, channels differ, or the cache
                folder is not writable.
        """
        import datasets
        from filelock import FileLock

        parent = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "ddpm_hf"
        channels, random_crop = _existing(parent, data, size, channels, random_crop)
        folder = parent / store_key(data, size, channels, random_crop)
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not folder.exists():
                    decoder = make_decoder(data, size, channels, random_crop)
                    with replacing(folder) as partial:
                        _write(partial, data, decoder, skip_unreadable, progress)
        except OSError as error:
            raise ValueError(f"`cache_dir` must be writable, got {str(parent)!r}: {error}") from error
        store = cls(folder)
        if store.unreadable and not skip_unreadable:
            raise ValueError(f"{data.name}: {store.unreadable[0]}; `skip_unreadable` leaves such images out.")
        return store


def _existing(
    parent: Path, data: ImageData, size: tuple[int, int], channels: int | None, random_crop: bool
) -> tuple[int | None, bool]:
    """What a store with the same pixels was asked for, if there is one; else as given.

    Deduced channels may be those given now, and where all images have this shape no crop is random.
    """
    for other in product((channels, None), (random_crop, True)):
        folder = parent / store_key(data, size, *other)
        if folder.exists():
            store = PixelStore(folder)
            if channels in (None, store.channels) and (other[1] == random_crop or store.is_uniform):
                return other
    return channels, random_crop


def crop(images: list[np.ndarray], size: tuple[int, int], crop_bits: np.ndarray | None) -> np.ndarray:
    """Crops (B, C, *size) of images (C, H, W) that just cover `size`: at random places, or centred without bits."""
    margins = np.array([image.shape[1:] for image in images]) - size  # one of the two is 0, so both use the same bits
    starts = margins // 2 if crop_bits is None else below(crop_bits[:, None], margins + 1)
    (height, width), places = size, zip(images, starts, strict=True)
    return np.stack([image[:, top : top + height, left : left + width] for image, (top, left) in places])


def store_key(data: ImageData, size: tuple[int, int], channels: int | None, random_crop: bool) -> str:
    """The name of a store's folder: a hash of the data's fingerprint and everything else that affects the pixels."""
    about = {
        "layout": LAYOUT,
        "fingerprint": data.fingerprint,
        "columns": [data.image_column, repr(data.columns)],
        "size": list(size),
        "channels": channels,
        "random_crop": random_crop,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


def _write(folder: Path, data: ImageData, decoder: Decoder, skip_unreadable: bool, progress: bool) -> None:
    """Write the pixels of all images, and arrays of their rows, what else these have, hashes and sides, to disk."""
    folder.mkdir()
    rows, hashes, sides, unreadable, extra = [], [], [], [], {key: [] for key in data.columns}
    with open(folder / "pixels.u8", "wb") as file:
        for image in decode_rows(data, decoder, skip_unreadable, progress):
            if image.pixels is None:
                unreadable.append(image.problem)
                continue
            file.write(image.pixels)
            rows.append(image.row.index)
            hashes.append(image.content_hash)
            sides.append(image.pixels.shape[1:])
            for key, values in extra.items():
                values.append(image.row.extra[key])
    if not rows:
        raise ValueError(f"{data.name} has no readable image; {unreadable[0]}.")
    arrays = {
        "rows": np.array(rows, np.int64),
        "hashes": np.array(hashes, np.uint64),
        "sides": np.array(sides, np.int32),
    }
    for key, values in extra.items():
        if isinstance(values[0], str):
            texts = [value.encode() for value in values]
            (folder / f"{key}.utf8").write_bytes(b"".join(texts))
            values = np.cumsum([len(text) for text in texts])
        arrays[key] = np.array(values)
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values, allow_pickle=False)
    about = {"size": decoder.size, "channels": decoder.channels, "columns": list(extra), "unreadable": unreadable}
    write_json(folder / "store.json", about)
    sync(*folder.iterdir())
