"""Images decoded once: uint8 pixels in a memory-mapped file in the cache directory, read for every epoch after."""

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np

from .order import below
from .sources import ImageData, RawRow
from .transforms import Decoder, UnreadableImage, content_hash, native_channels, open_image

# Part of the key: raise it when the same data would give other pixels or other files.
LAYOUT = 1
ROWS_IN_A_BATCH = 256
ROWS_LOOKED_AT = 64


def deduce_channels(data: ImageData, rows_looked_at: int = ROWS_LOOKED_AT) -> int:
    """The channels that the images need: 1 (grey modes), 4 (some transparent pixel) or 3.

    Rows spread over the data are looked at; of a stream, the first. Unreadable ones are passed over here: the store or
    stream reports them.

    Raises:
        ValueError: they differ, or none of them can be read.
    """
    found = {}
    for row in _rows_to_look_at(data, rows_looked_at):
        try:
            found.setdefault(native_channels(open_image(data.payload(row))), row)
        except UnreadableImage as error:
            problem = f"{data.describe(row)}: {error}"
    if not found:
        raise ValueError(f"image_column {data.image_column!r} of {data.name} has no readable image; {problem}")
    if len(found) > 1:
        examples = "; ".join(f"{channels} in {data.describe(row)}" for channels, row in sorted(found.items()))
        raise ValueError(f"channels is not given and the images differ ({examples}); choose channels 1, 3 or 4")
    return next(iter(found))


def _rows_to_look_at(data: ImageData, count: int) -> list[RawRow]:
    if data.streaming:
        return next(data.batches(0, count))
    places = np.unique(np.linspace(0, data.num_rows - 1, count).astype(int))
    return [next(data.batches(int(place), 1))[0] for place in places]


class PixelStore:
    """Decoded images of one data set. Make or open one with `PixelStore.build`; it can be sent to worker processes.

    Attributes:
        size: (height, width) of what `gather` gives, pixels.
        channels: 1, 3 or 4.
        class_names: name of each class id, or None.
        rows: (n,) int64, the row of the data set that each image came from.
        labels: (n,) int64 class ids, or None.
        hashes: (n,) uint64 hashes of the images as the data set stores them.
        unreadable: what could not be decoded and was left out, as "row 17 (path): reason".
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        about = json.loads((self.folder / "store.json").read_text(encoding="utf-8"))
        self.size = tuple(about["size"])
        self.channels = about["channels"]
        self.class_names = about["class_names"] and tuple(about["class_names"])
        self.unreadable = tuple(about["unreadable"])
        self.rows = self._array("rows")
        self.hashes = self._array("hashes")
        self.labels = self._array("labels") if self.class_names else None
        self._sides = self._array("sides")
        areas = self._sides.astype(np.int64).prod(axis=1) * self.channels
        self._ends = np.cumsum(areas)
        self._uniform = bool((self._sides == self.size).all())

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict:
        return {"folder": self.folder}  # a copy maps the file itself; pickled as it is, a map would be read whole

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["folder"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return (self.channels, *self.size)

    @property
    def has_room_to_crop(self) -> bool:
        """Whether some image is larger than its crop."""
        return not self._uniform

    @cached_property
    def _pixels(self) -> np.ndarray:
        flat = np.memmap(self.folder / "pixels.u8", dtype=np.uint8, mode="r") if len(self) else np.empty(0, np.uint8)
        return flat.reshape(-1, *self.shape) if self._uniform else flat

    def _array(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy", allow_pickle=False)

    def gather(self, indices: np.ndarray, crop_bits: np.ndarray | None = None) -> np.ndarray:
        """Images by index.

        Args:
            indices: (batch,) of any integer type, below `len(self)`.
            crop_bits: (batch,) uint64 random bits that choose the crops; None for centre crops.

        Returns:
            uint8 (batch, channels, height, width), a copy.
        """
        if self._uniform:
            return self._pixels[indices]
        height, width = self.size
        rooms = self._sides[indices].astype(np.int64) - self.size
        starts = rooms // 2 if crop_bits is None else below(crop_bits[:, None], rooms + 1)
        images = np.empty((len(indices), *self.shape), dtype=np.uint8)
        for image, index, (top, left) in zip(images, indices, starts, strict=True):
            stored_height, stored_width = map(int, self._sides[index])
            end = self._ends[index]
            stored = self._pixels[end - self.channels * stored_height * stored_width : end]
            stored = stored.reshape(self.channels, stored_height, stored_width)
            image[:] = stored[:, top : top + height, left : left + width]
        return images

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
        """Open the store of these images in this form, decoding them first if that was never done.

        Several processes may call this at once: one decodes, the others wait. The folder appears under its name when
        it is complete; what an interrupted call left is removed by the next.

        Args:
            data: from `load_images`, not streaming.
            size: (height, width) in pixels.
            channels: 1, 3 or 4; deduced from the images when None, and then every image must agree.
            random_crop: keep what lies beside the centre for crops that `gather` places.
            skip_unreadable: leave images out that cannot be decoded, listed in `unreadable`.
            cache_dir: parent of the stores; the cache folder of `datasets` by default.
            progress: show a bar while decoding.

        Raises:
            ValueError: an image cannot be decoded (its row and file are named), none can, or channels differ.
            OSError: the cache folder cannot be written, or its disk is full.
        """
        import datasets
        from filelock import FileLock

        parent = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "ddpm_hf"
        folder = parent / store_key(data, size, channels, random_crop)
        parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                partial = folder.with_name(f"{folder.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                try:
                    _write(partial, data, make_decoder(data, size, channels, random_crop), skip_unreadable, progress)
                except BaseException:
                    shutil.rmtree(partial, ignore_errors=True)
                    raise
                partial.rename(folder)
        store = cls(folder)
        if store.unreadable and not skip_unreadable:
            raise ValueError(f"{data.name}: {store.unreadable[0]}; skip_unreadable leaves such images out")
        return store


def make_decoder(data: ImageData, size: tuple[int, int], channels: int | None, random_crop: bool) -> Decoder:
    """A decoder for these images; with channels None, their channels are deduced and then bind every image."""
    deduced = deduce_channels(data) if channels is None else channels
    return Decoder(size=tuple(size), channels=deduced, keep_sides=random_crop, same_channels=channels is None)


def store_key(data: ImageData, size: tuple[int, int], channels: int | None, random_crop: bool) -> str:
    """The name of a store's folder: a hash of the data's fingerprint and of everything that decides the pixels."""
    about = {
        "layout": LAYOUT,
        "fingerprint": data.fingerprint,
        "columns": [data.image_column, data.label_column],
        "class_names": data.class_names,
        "size": list(size),
        "channels": channels,
        "random_crop": random_crop,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


def decoded(
    data: ImageData, decoder: Decoder, progress: bool
) -> Iterator[tuple[RawRow, int, np.ndarray | UnreadableImage]]:
    """(row, content hash, pixels or the reason why there are none), in order, decoded by several threads.

    Pillow lets go of the interpreter while it decodes and resizes, so threads share the work on all but tiny images.
    """
    from tqdm.auto import tqdm

    def decode(rows: list[RawRow]) -> list:
        return [(row, *_decode_row(data, decoder, row)) for row in rows]

    threads = min(16, os.cpu_count() or 1)
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=data.num_rows, desc="Decoding images once", unit=" images", disable=not progress) as bar,
    ):
        waiting = deque()
        for rows in data.batches(batch_size=ROWS_IN_A_BATCH):
            waiting.append(pool.submit(decode, rows))
            if len(waiting) > 2 * threads:
                yield from _finished(waiting.popleft(), bar)
        while waiting:
            yield from _finished(waiting.popleft(), bar)


def _finished(future, bar):
    results = future.result()
    bar.update(len(results))
    return results


def _decode_row(data: ImageData, decoder: Decoder, row: RawRow) -> tuple[int, np.ndarray | UnreadableImage]:
    try:
        payload = data.payload(row)
        return content_hash(payload), decoder(payload)
    except UnreadableImage as error:
        return 0, error
    except ValueError as error:
        raise ValueError(f"{data.name}: {data.describe(row)}: {error}") from None


def _write(folder: Path, data: ImageData, decoder: Decoder, skip_unreadable: bool, progress: bool) -> None:
    """Decode everything into `folder`: the pixels one image after the other, and what is known of each in arrays."""
    rows, labels, hashes, sides, unreadable = [], [], [], [], []
    with open(folder / "pixels.u8", "wb") as file:
        for row, hash_, pixels in decoded(data, decoder, progress):
            if isinstance(pixels, UnreadableImage):
                unreadable.append(f"{data.describe(row)}: {pixels}")
                if not skip_unreadable:
                    raise ValueError(f"{data.name}: {unreadable[0]}; skip_unreadable leaves such images out")
                continue
            file.write(pixels)
            rows.append(row.index)
            hashes.append(hash_)
            sides.append(pixels.shape[1:])
            labels.append(row.label)
        file.flush()
        os.fsync(file.fileno())
    if not rows:
        raise ValueError(f"{data.name} has no readable image; {unreadable[0]}")
    arrays = {"rows": (rows, np.int64), "hashes": (hashes, np.uint64), "sides": (sides, np.int32)}
    if data.class_names:
        arrays["labels"] = (labels, np.int64)
    for name, (values, dtype) in arrays.items():
        np.save(folder / f"{name}.npy", np.array(values, dtype=dtype), allow_pickle=False)
    about = {"size": decoder.size, "channels": decoder.channels}
    about |= {"class_names": data.class_names, "unreadable": unreadable}
    (folder / "store.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
