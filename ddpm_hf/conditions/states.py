"""What a frozen text encoder says of captions: computed once, and read from disk ever after."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from ..files import partial_path, sync
from ..progress import progress_bar

_AT_ONCE = 64


class KeptStates:
    """The states of captions in half precision, in a memory-mapped file that is there after `fill`.

    Args:
        folder: of the file.
        encoder: a hash of encoder and tokenizer; with that of the captions it is the file's name.
        captions: gives all that will be asked for, with repetitions.
        shape: (length, width) of the states of one.

    Attributes:
        size: of the file, bytes.
    """

    def __init__(self, folder: Path, encoder: str, captions: Callable[[], Iterable[str]], shape: tuple[int, int]):
        self._captions = captions  # the texts are in memory only while they are encoded
        self._hashes = np.unique(np.fromiter(map(_hash, captions()), np.uint64))  # sorted
        name = hashlib.sha256(encoder.encode() + self._hashes.tobytes()).hexdigest()[:32]
        self.file, self._shape = folder / f"text-{name}.f16", (len(self), *shape)
        self.size = np.dtype(np.float16).itemsize * prod(self._shape)

    def __len__(self) -> int:
        return len(self._hashes)

    def fill(self, encode: Callable[[Sequence[str]], torch.Tensor]) -> None:
        """Open the file, computing it first if needed.

        Several processes may call this at once: one computes, the others wait. An interrupted call is continued by
        the next.

        Args:
            encode: captions -> their states, (n, length, width).

        Raises:
            ValueError: the folder is not writable, or a state is too large for half precision.
        """
        try:
            with FileLock(f"{self.file}.lock"):
                if not self.file.exists():
                    self._write(encode)
        except OSError as error:
            raise ValueError(f"`cache_dir` must be writable, got {str(self.file.parent)!r}: {error}") from error
        self._states = np.memmap(self.file, np.float16, "r", shape=self._shape)

    def _write(self, encode: Callable[[Sequence[str]], torch.Tensor]) -> None:
        by_hash = {_hash(caption): caption for caption in self._captions()}
        captions, each = [by_hash[number] for number in self._hashes.tolist()], self.size // len(self)
        partial = partial_path(self.file)
        with partial.open("ab") as file:
            done = file.tell() // each
            file.truncate(done * each)
            about = {"desc": "Encoding captions once", "unit": " captions"}
            with progress_bar(total=len(self), initial=done, **about) as bar:
                for start in range(done, len(self), _AT_ONCE):
                    batch = captions[start : start + _AT_ONCE]
                    states = encode(batch).half().cpu()
                    if not states.isfinite().all():
                        raise ValueError(f"`text_encoder` must have states below 65504, got more for {batch[0]!r}.")
                    file.write(states.numpy().tobytes())
                    file.flush()  # a kill loses what Python holds back
                    bar.update(len(batch))
        sync(partial)
        os.replace(partial, self.file)

    def __getitem__(self, captions: Sequence[str]) -> torch.Tensor:
        """Of these captions, float16 (n, length, width)."""
        wanted = np.array([_hash(caption) for caption in captions], np.uint64)
        places = np.searchsorted(self._hashes, wanted)
        assert np.array_equal(self._hashes[places], wanted), "a caption that was not among those given"
        return torch.from_numpy(self._states[places])


def _hash(caption: str) -> int:
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "little")
