"""Arrays on disk: every row computed once, whoever shares the work and whatever interrupts it."""

import os
import pickle
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_hf.kept import ROWS, KeptArray

COUNT = 5 * ROWS + 10


class Squares:
    """Row k is k and its square root; which rows it was asked for is appended to a file."""

    def __init__(self, log: Path, seconds: float = 0.0, dies_after: int = 10**9):
        self.log, self.seconds, self.left = log, seconds, dies_after

    def __call__(self, rows: range) -> torch.Tensor:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        time.sleep(self.seconds)
        with self.log.open("a") as file:  # one short write: those of other processes do not come between
            file.write("".join(f"{row}\n" for row in rows))
        numbers = torch.tensor(rows, dtype=torch.float64)
        return torch.stack([numbers, numbers.sqrt()], dim=1)

    @property
    def asked(self) -> list[int]:
        return sorted(map(int, self.log.read_text().split())) if self.log.exists() else []


def kept(folder: Path, key="key", shape=(COUNT, 2)) -> KeptArray:
    return KeptArray(folder, "roots", shape, key)


def fill(array: KeptArray, compute, at_once: int = ROWS // 2) -> None:
    array.fill(compute, at_once, "numbers", "roots")


def in_a_fork(function) -> int:
    """Its process, which ends with 0 if the function does."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def end_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_what_a_killed_process_had_finished_is_not_computed_again(tmp_path):
    first, rest = Squares(tmp_path / "first", dies_after=5), Squares(tmp_path / "rest")
    assert end_of(in_a_fork(lambda: fill(kept(tmp_path), first))) == -signal.SIGKILL
    assert len(first.asked) == 5 * ROWS // 2, "two files and half of one"
    array = kept(tmp_path)
    fill(array, rest)
    assert rest.asked == list(range(2 * ROWS, COUNT))
    indices = np.array([COUNT - 1, 3, 3, ROWS, 0])
    expected = np.stack([indices, np.sqrt(indices)], axis=1).astype(np.float16)
    assert np.array_equal(pickle.loads(pickle.dumps(array))[indices].numpy(), expected)
    assert np.array_equal(array[indices].numpy(), expected) and len(pickle.dumps(array)) < 500
    assert sum(file.stat().st_size for file in array.folder.iterdir()) == array.size == COUNT * 2 * 2, "nothing else"
    fill(kept(tmp_path), rest)
    assert len(rest.asked) == COUNT - 2 * ROWS


def test_processes_share_the_work_and_take_over_that_of_a_killed_one(tmp_path):
    sides = [Squares(tmp_path / str(number), 0.05, dies) for number, dies in enumerate((1, 10**9, 10**9))]

    def work(side: Squares) -> None:
        fill(kept(tmp_path), side)
        assert kept(tmp_path)[np.array([0, COUNT - 1])][1, 0] == COUNT - 1, "no one returns before all is there"

    ends = [end_of(pid) for pid in [in_a_fork(lambda side=side: work(side)) for side in sides]]
    assert ends == [-signal.SIGKILL, 0, 0]
    lost, *others = (side.asked for side in sides)
    assert len(lost) == ROWS // 2 and all(others)
    assert sorted(others[0] + others[1]) == list(range(COUNT))


def test_other_numbers_are_in_another_folder(tmp_path):
    arrays = [kept(tmp_path), kept(tmp_path, ["key", 1]), kept(tmp_path, shape=(COUNT, 2, 1))]
    assert len({array.folder for array in arrays}) == 3 and kept(tmp_path).folder == arrays[0].folder


def test_what_cannot_be_kept_is_said_and_leaves_nothing(tmp_path):
    for wrong in (70_000.0, float("nan")):
        array = kept(tmp_path, shape=(3,))
        with pytest.raises(ValueError, match="`roots` must give numbers below 65504, .* numbers 0 to 2"):
            fill(array, lambda rows, wrong=wrong: torch.tensor([1.0, wrong, 3.0]))
        assert not [file for file in array.folder.iterdir() if file.suffix != ".lock"]
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="`cache_dir` must be writable, got .*file': "):
        fill(kept(tmp_path / "file"), Squares(tmp_path / "log"))

    def on_a_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(ValueError, match="`cache_dir` must be writable, got .*: .*File too large"):
            fill(kept(tmp_path), Squares(tmp_path / "log"))

    assert end_of(in_a_fork(on_a_full_disk)) == 0
    assert not list(kept(tmp_path).folder.glob("*.f16")) + list(kept(tmp_path).folder.glob(".*"))
