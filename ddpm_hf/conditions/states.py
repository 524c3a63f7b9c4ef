"""What a frozen text encoder says of captions: computed once, and read from disk ever after."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from ..kept import KeptArray

_AT_ONCE = 64


class KeptStates:
    """The states of captions, there after `fill`.

    Args:
        folder: of the folder of the files.
        encoder: a hash of encoder and tokenizer.
        captions: gives all that will be asked for, with repetitions.
        shape: (length, width) of the states of one.

    Attributes:
        array: of the states, in the order of the captions' hashes.
    """

    def __init__(self, folder: Path, encoder: str, captions: Callable[[], Iterable[str]], shape: tuple[int, int]):
        self._captions = captions  # the texts are in memory only while they are encoded
        self._hashes = np.unique(np.fromiter(map(_hash, captions()), np.uint64))  # sorted
        key = [encoder, hashlib.sha256(self._hashes.tobytes()).hexdigest()]
        self.array = KeptArray(folder, "text", (len(self), *shape), key)

    def __len__(self) -> int:
        return len(self._hashes)

    def fill(self, encode: Callable[[Sequence[str]], torch.Tensor]) -> None:
        """Compute what is missing, as `KeptArray.fill`.

        Args:
            encode: captions -> their states, (n, length, width).
        """

        @cache
        def ordered() -> list[str]:
            by_hash = {_hash(caption): caption for caption in self._captions()}
            return [by_hash[number] for number in self._hashes.tolist()]

        self.array.fill(lambda rows: encode(ordered()[rows.start : rows.stop]), _AT_ONCE, "captions", "text_encoder")

    def __getitem__(self, captions: Sequence[str]) -> torch.Tensor:
        """Of these captions, float16 (n, length, width)."""
        wanted = np.array([_hash(caption) for caption in captions], np.uint64)
        places = np.searchsorted(self._hashes, wanted)
        assert np.array_equal(self._hashes[places], wanted), "a caption that was not among those given"
        return self.array[places]


def _hash(caption: str) -> int:
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "little")
