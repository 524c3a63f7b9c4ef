"""Arrays that take long to compute: computed once, and read from disk ever after."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from filelock import FileLock, Timeout

from .files import replacing, sync
from .progress import progress_bar

# Of a file. A kill costs each process at most so many.
ROWS = 256
# Of all pictures that are encoded together, if there are more than four. On a CPU an autoencoder took 1.2 ms for each
# of 64 pictures of 32x32, and 1.7 ms for each of 256.
_PIXELS_AT_ONCE = 2**16


class KeptArray:
    """Rows of numbers in half precision, in memory-mapped files that are there after `fill`.

    Workers to which it is pickled open them anew.

    Args:
        parent: of the folder of the files.
        kind: what they are, the first word of the folder's name.
        shape: (rows, ...).
        key: all that determines the numbers, as JSON; the rest of the name is a hash of it, the shape and `ROWS`.

    Attributes:
        folder: of the files.
        size: of all files, bytes.
    """

    def __init__(self, parent: Path, kind: str, shape: tuple[int, ...], key: Any):
        name = hashlib.sha256(json.dumps([ROWS, shape, key], sort_keys=True).encode()).hexdigest()[:32]
        self.folder, self._shape = parent / f"{kind}-{name}", shape
        self.size = np.dtype(np.float16).itemsize * prod(shape)

    def __len__(self) -> int:
        return self._shape[0]

    def __str__(self) -> str:
        return f"kept in {self.folder.parent}, {self.size / 1e9:.3g} GB"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_maps"}

    def __getitem__(self, indices: np.ndarray) -> torch.Tensor:
        """The rows at `indices` (B,), float16 (B, ...)."""
        files, places = np.divmod(indices, ROWS)
        places = zip(files.tolist(), places.tolist(), strict=True)
        return torch.from_numpy(np.stack([self._maps[file][place] for file, place in places]))

    @cached_property
    def _maps(self) -> list[np.ndarray]:
        shapes = ((len(rows), *self._shape[1:]) for rows in self._files.values())
        return [
            np.asarray(np.memmap(file, np.float16, "r", shape=shape))
            for file, shape in zip(self._files, shapes, strict=True)
        ]

    @property
    def _files(self) -> dict[Path, range]:
        """File -> its rows."""
        starts = range(0, len(self), ROWS)
        return {
            self.folder / f"{number:05}.f16": range(start, min(start + ROWS, len(self)))
            for number, start in enumerate(starts)
        }

    def fill(self, compute: Callable[[range], torch.Tensor], at_once: int, what: str, argument: str) -> None:
        """Compute what is missing.

        Processes that call this at once share the work, also those of another run or machine; each returns when all
        is there. What a killed one has finished is not computed again.

        Args:
            compute: some rows -> their numbers, float (len(rows), ...).
            at_once: rows to compute together.
            what: the rows are, in the plural.
            argument: to blame for numbers that half precision does not hold.

        Raises:
            ValueError: the folder is not writable, the disk is full, or a number is not below 65504.
        """

        def write(rows: range, path: Path) -> None:
            with path.open("wb") as file:
                for start in range(0, len(rows), at_once):
                    some = rows[start : start + at_once]
                    numbers = compute(some).half().cpu()
                    if not numbers.isfinite().all():
                        raise ValueError(
                            f"`{argument}` must give numbers below 65504, which half precision holds, got others for "
                            f"{what} {some[0]} to {some[-1]}."
                        )
                    file.write(numbers.numpy().tobytes())
            sync(path)

        missing = {file: rows for file, rows in self._files.items() if not file.exists()}
        if not missing:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with progress_bar(
                total=len(self),
                initial=len(self) - sum(map(len, missing.values())),
                desc=f"Encoding {what} once",
                unit=f" {what}",
                disable=not PartialState().is_local_main_process,
            ) as bar:
                for file, rows in missing.items():
                    _make(file, partial(write, rows), wait=False)
                    bar.update(len(rows))
                for file, rows in missing.items():
                    _make(file, partial(write, rows), wait=True)
            sync(self.folder)
        except OSError as error:
            raise ValueError(f"`cache_dir` must be writable, got {str(self.folder.parent)!r}: {error}") from error


@dataclass(frozen=True)
class KeptOfPictures:
    """What is computed once of pictures that have numbers.

    Attributes:
        array: a row for each picture.
        pictures: numbers -> uint8 (n, C, H, W).
    """

    array: KeptArray
    pictures: Callable[[np.ndarray], np.ndarray]

    def fill(self, compute: Callable[[torch.Tensor], torch.Tensor], argument: str) -> None:
        """Compute what is missing; arguments and errors as for `KeptArray.fill`.

        Args:
            compute: uint8 pictures (n, C, H, W) -> their rows.
        """
        _, _, height, width = self.pictures(np.arange(1)).shape
        at_once = max(4, _PIXELS_AT_ONCE // (height * width))

        def of_rows(numbers: range) -> torch.Tensor:
            return compute(torch.from_numpy(self.pictures(np.array(numbers))))

        self.array.fill(of_rows, at_once, "pictures", argument)


def _make(file: Path, write: Callable[[Path], None], wait: bool) -> None:
    """Write a file that is not there, unless another process does; `wait` until it has, and then see again."""
    lock = file.with_suffix(".lock")
    try:
        with FileLock(lock, timeout=-1 if wait else 0):
            if not file.exists():
                with replacing(file) as beside:
                    write(beside)
    except Timeout:
        return
    lock.unlink(missing_ok=True)  # whoever still gets it finds the file
