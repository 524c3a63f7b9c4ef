"""Shuffling: position p of an endless sequence -> row, crop and flip.

Position p = step * global_batch + k. Everything is a pure function of (seed, p), so resuming needs no saved state, and
the order does not depend on the number of processes, accumulation steps or workers.
"""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache

import numpy as np

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def mix(state: np.ndarray) -> np.ndarray:
    """SplitMix64's output function, a bijection of uint64: Steele, Lea, Flood 2014, doi 10.1145/2660193.2660195."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def stream_key(*words: int) -> np.uint64:
    """A 64-bit key from integers >= 0, such as (seed, purpose); different inputs give independent keys."""
    return np.random.SeedSequence(words).generate_state(1, np.uint64)[0]


def position_bits(key: np.uint64, positions: np.ndarray) -> np.ndarray:
    """uint64 random bits in the shape of `positions`: output p of the SplitMix64 generator seeded with `key`."""
    counts = np.asarray(positions).astype(np.uint64) + np.uint64(1)
    return mix(key + counts * GOLDEN_GAMMA)


def below(bits: np.ndarray, bounds: np.ndarray | int) -> np.ndarray:
    """Random bits -> int64 integers in [0, bounds), uniform to within bounds / 2^32 (bounds < 2^31)."""
    return ((bits >> np.uint64(32)) * np.asarray(bounds).astype(np.uint64) >> np.uint64(32)).astype(np.int64)


@lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of `count` rows in an epoch, read-only. Cached, because a batch may span two epochs."""
    rows = np.arange(count, dtype=np.uint32 if count <= 2**32 else np.uint64)
    np.random.Generator(np.random.Philox(key=[seed, epoch])).shuffle(rows)
    rows.flags.writeable = False
    return rows


def spread(count: int, most: int) -> np.ndarray:
    """Up to `most` of the rows 0 to `count` - 1, evenly spaced, int64."""
    return np.unique(np.linspace(0, count - 1, most).astype(np.int64))


def shuffled_rows(seed: int, positions: np.ndarray, count: int) -> np.ndarray:
    """Positions -> int64 rows: entry p % count of the permutation of epoch p // count."""
    epochs, places = np.divmod(np.asarray(positions, dtype=np.int64), count)
    rows = np.empty(len(places), dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = epoch_permutation(seed, int(epoch), count)[places[here]]
    return rows


@dataclass(frozen=True)
class PositionSampler:
    """The positions this process reads in each micro-step.

    Micro-step a of step s reads positions s*G + (a*R + r)*b to s*G + (a*R + r + 1)*b - 1, where b is the batch size
    per process and micro-step, r of R the process, A the accumulation and G = A*R*b the global batch size. Steps are
    counted from 0; starting at a later one costs nothing. Without `num_steps` there is no end.
    """

    batch_size: int
    _: KW_ONLY
    start_step: int = 0
    num_steps: int | None = None
    gradient_accumulation_steps: int = 1
    num_processes: int = 1
    process_index: int = 0

    @property
    def global_batch_size(self) -> int:
        """Images per optimizer step, over all processes and micro-steps."""
        return self.batch_size * self.gradient_accumulation_steps * self.num_processes

    def positions(self, step: int, micro_step: int) -> range:
        """The positions of one micro-step of this process."""
        place = micro_step * self.num_processes + self.process_index
        start = step * self.global_batch_size + place * self.batch_size
        return range(start, start + self.batch_size)

    def __iter__(self) -> Iterator[range]:
        step = self.start_step
        while self.num_steps is None or step < self.start_step + self.num_steps:
            for micro_step in range(self.gradient_accumulation_steps):
                yield self.positions(step, micro_step)
            step += 1
