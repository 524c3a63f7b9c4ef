"""A disk that will not take what the run writes: it costs what was to be written, and nothing else."""

import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_loop import assert_equal_weights, rows_of

from ddpm_hf.outputs.checkpoint import list_checkpoints


def mount(*words: object) -> None:
    """Mount, or skip the test where this user may not."""
    result = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
    if result.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {result.stderr.strip() or result.stdout.strip()}")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 4 MB, that is of three checkpoints of the tiny run with pictures and pipeline."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", folder)
    yield folder
    while os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path) -> Callable[[], None]:
    """Leave no byte; returns what frees it again."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    return ballast.unlink


def make_read_only(disk: Path) -> Callable[[], None]:
    """Forbid to write, even to root; files that are open stay so. Returns what allows it again."""
    mount("--bind", disk, disk)
    mount("-o", "remount,ro,bind", disk)
    return lambda: subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("trouble", [fill, make_read_only])
def test_a_disk_that_takes_nothing_for_a_while_costs_what_it_did_not_take(
    start, train, small_disk, tmp_path, capsys, trouble
):
    flags = "--max_train_steps 7 --checkpointing_steps 1 --preview_steps 4".split()
    unbroken = train(*flags, output_dir=tmp_path / "unbroken", ending=False)
    trainer = start(*flags, output_dir=small_disk / "out")
    after_step, ends = trainer._after_step, []

    def begin_and_end_the_trouble() -> None:
        if trainer.step == 2:
            ends.append(trouble(small_disk))
        if trainer.step == 5:
            assert checkpoints_of(trainer.output.path) == ["checkpoint-1", "checkpoint-2"]
            ends.pop()()
        after_step()

    trainer._after_step = begin_and_end_the_trouble
    trainer.train()
    told = capsys.readouterr().out
    reason = "No space left on device" if trouble is fill else "Read-only file system"
    for step in (3, 4, 5):
        assert f"checkpoint at step {step} was not saved; older ones stay, and the run continues" in told
    assert told.count("cannot write a checkpoint: ") == 3 and reason in told
    # A full disk may have room in the last block of the table.
    assert told.count("cannot write loss.csv: ") == 1 or trouble is fill, "three failures, told once"
    assert "cannot write previews/step-0000004.png: " in told
    assert checkpoints_of(trainer.output.path) == ["checkpoint-6", "checkpoint-7"]
    assert [row["loss"] for row in rows_of(trainer.output.path)] == [
        row["loss"] for row in rows_of(tmp_path / "unbroken")
    ]
    assert_equal_weights(unbroken, trainer)
    assert not [path.name for path in trainer.output.path.glob("*.partial")]


def checkpoints_of(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


@pytest.mark.processes
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux limits the files of another process")
def test_a_limit_on_the_size_of_files_costs_the_saves_it_cuts_off(real_run):
    """RLIMIT_FSIZE of 100 kB: lines of the table are written, the 180 kB of weights are not."""
    run = real_run("--checkpointing_steps", "20", "--logging_steps", "1")
    run.wait_for(lambda: len(list_checkpoints(run.out)) > 0)
    before = resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    run.wait_for(lambda: run.text().count("was not saved; older ones stay, and the run continues") >= 2)
    assert "cannot write a checkpoint: " in run.text()
    kept, lines = list_checkpoints(run.out), (run.out / "loss.csv").read_text().count("\n")
    run.wait_for_steps(lines + 1)
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, before)
    run.wait_for(lambda: list_checkpoints(run.out)[-1] != kept[-1])
    assert len(kept) <= 2 and run.process.poll() is None
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(60) == 128 + signal.SIGTERM
    newest = list_checkpoints(run.out)[-1].name
    assert f"Run the same command again to continue from {newest}." in run.text()
