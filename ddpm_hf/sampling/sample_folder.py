"""The output folder of a sampling command. Every image is saved as soon as it is drawn, so that the same command can
resume; the chosen output format is written at the end."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from ..files import remove, replacing, write_json
from .pictures import captioned_grid, image_grid, to_pil
from .sample_formats import read_pixels, write_dataset, write_npz, write_table

FORMATS = ("png", "npz", "dataset")
RECORD_FILE, OVERVIEW, GRID_FILE = "samples.json", "overview", "grid.png"
_SHOWN_IN_GRID = 100
_PRODUCTS = {"png": "metadata.csv", "npz": "samples.npz", "dataset": "data"}


@dataclass(kw_only=True)
class SampleFolder:
    """An output folder of samples.

    With the format "png", images stay as 00000.png, … next to `metadata.csv`. Otherwise they are collected in `drawn/`
    until all are there, converted to `samples.npz` or `data/*.parquet`, and removed.

    Attributes:
        path: the folder, which may not exist yet; shared by all processes.
        output_format: one of `FORMATS`.
        table: column -> one value an image: what each was asked to show.
        class_names: class number -> name, of the column `label`.
    """

    path: Path
    output_format: str
    num_images: int
    table: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    class_names: Mapping[int, str] | None = None

    @property
    def product(self) -> Path:
        """The file or folder that is written last."""
        return self.path / _PRODUCTS[self.output_format]

    @property
    def result(self) -> Path:
        """The path to report to the user: the .npz file, or the folder with the images."""
        return self.product if self.output_format == "npz" else self.path

    @property
    def files(self) -> list[Path]:
        """The PNG file of each image."""
        return [self._file(index) for index in range(self.num_images)]

    def _file(self, index: int) -> Path:
        return self._images / f"{index:05d}.png"

    @property
    def _images(self) -> Path:
        return self.path if self.output_format == "png" else self.path / "drawn"

    def check(self, settings: Mapping[str, Any]) -> None:
        """Check, without writing, that the folder is new, empty or can be resumed.

        Args:
            settings: everything that determines the images, as JSON values.

        Raises:
            ValueError: the path is a file, or the folder has other files or images drawn with other settings.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self._place} must be a folder, but is a file")
        record = self._record()
        if record is None:
            visible = (entry.name for entry in self.path.glob("*") if not entry.name.startswith("."))
            names = sorted(set(visible) - {OVERVIEW})
            if names:
                some = ", ".join(names[:3]) + ", …" * (len(names) > 3)
                raise ValueError(f"{self._place} must be new, empty or a folder of sample.py, but has {some}")
            return
        differences = list(_differences(record["settings"], self._settings(settings)))
        there = record["num_images"]
        if self.num_images < there or (self.num_images > there and self.output_format != "png" and self.finished):
            differences.append(f"num_images was {there}, is {self.num_images}")
        if differences:
            listed = "; ".join(differences)
            raise ValueError(f"{self._place} has images drawn with other settings ({listed}); choose another folder")

    def open(self, settings: Mapping[str, Any], **about: Any) -> list[int]:
        """Lock the folder until `close` or the end of this process. Only for the main process.

        Args:
            settings: as in `check`.
            about: further facts to record.

        Returns:
            The indices of the images still to be drawn.

        Raises:
            ValueError: as in `check`, or another process is using the folder.
        """
        self.check(settings)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / ".lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise ValueError(f"{self._place} is in use by another command; wait for it") from None
        self.check(settings)
        for leftover in (*self.path.glob(".*.partial"), *self._images.glob(".*.partial")):
            remove(leftover)
        record = {**about, "num_images": self.num_images, "settings": self._settings(settings)}
        write_json(self.path / RECORD_FILE, record)
        if self.finished and self.output_format != "png":
            return []
        self._images.mkdir(exist_ok=True)
        present = {file.name for file in self._images.iterdir()}
        return [index for index, file in enumerate(self.files) if file.name not in present]

    def write(self, indices: Sequence[int], images: np.ndarray) -> None:
        """Save uint8 images (B, H, W, C) under their indices. Any process may call this."""
        for index, image in zip(indices, images, strict=True):
            # Shared, because a process whose launcher died may still draw when the command is run again.
            with replacing(self._file(index), shared=True) as beside:
                to_pil(image).save(beside, format="PNG")

    def finish(self, beside: Mapping[str, np.ndarray] = MappingProxyType({})) -> Path:
        """Write a grid of the first images, with their prompts, and the output format, once all images are there.

        Args:
            beside: name -> an image to show before them, uint8 (H, W, C).

        Returns:
            The grid's file.
        """
        grid, files = self.path / OVERVIEW / GRID_FILE, self.files
        if self.output_format == "png" or not self.finished:
            grid.parent.mkdir(exist_ok=True)
            shown = files[:_SHOWN_IN_GRID]
            images = np.stack([*beside.values(), *map(read_pixels, shown)])
            prompts = self.table.get("prompt", [""] * len(shown) if beside else [])[:_SHOWN_IN_GRID]
            prompts = [*beside, *prompts]
            (captioned_grid(images, prompts) if prompts else image_grid(images)).save(grid)
            if self.output_format == "png":
                write_table(self.product, files, self.table)
            elif self.output_format == "npz":
                write_npz(self.product, files, self.table.get("label"))
            else:
                write_dataset(self.product, files, self.table, self.class_names)
        if self.output_format != "png":
            shutil.rmtree(self._images, ignore_errors=True)
        return grid

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()

    @property
    def finished(self) -> bool:
        """Whether the output format has been written."""
        return self.product.exists()

    @property
    def _place(self) -> str:
        return f"--output_dir {self.path}"

    def _settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings as JSON returns them, with lists for tuples."""
        return json.loads(json.dumps({"output_format": self.output_format, **settings}))

    def _record(self) -> dict[str, Any] | None:
        file = self.path / RECORD_FILE
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """ "name was old, is new" for each value that differs, including those in nested mappings."""
    for name in sorted(there.keys() | now.keys()):
        old, new = there.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new)
        elif old != new:
            yield f"{name} was {old}, is {new}"
