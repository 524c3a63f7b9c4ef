"""Does a run that is killed many times end with the same bits as an uninterrupted one?

    python benchmarks/kills.py --kills 30

Runs the same command in two folders: once without interruption, and once killed by SIGKILL and restarted until the
last kill. Kills come at a random moment after the process starts, while a checkpoint is being written, or while the
final pictures are drawn. Each process is forked from this one, which has imported everything and computed nothing.
Prints one table and writes it as JSON (`kills.json`). The exit status is 1 if a bit differs, if an attempt did not
resume from the newest checkpoint, or if a kill came too late.
"""

import argparse
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets  # noqa: F401  (imported once here, not in every attempt)
import matplotlib.figure  # noqa: F401
import numpy as np
import torch
from measuring import describe_machine, machine, print_table, write_report
from PIL import Image
from safetensors.torch import load_file

from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.outputs.checkpoint import list_checkpoints
from ddpm_hf.training.start import prepare

# All sources of randomness in a step; small steps and many saves, so that kills hit all parts of the run.
SETTINGS = (
    "--base_channels 8 --channel_multipliers 1 2 --blocks_per_level 1 --attention_resolutions 4 --resolution 8 "
    "--dropout 0.1 --class_conditional --random_flip --train_batch_size 5 --gradient_accumulation_steps 2 "
    "--num_train_timesteps 10 --beta_schedule squaredcos_cap_v2 --timestep_sampling importance --lr_warmup_steps 5 "
    "--checkpointing_steps 3 --preview_steps 20 --preview_images 4 --preview_inference_steps 3 --logging_steps 1 "
    "--mixed_precision no --eval_num_images 20"
).split()
MOMENT, SAVE, END = "at a random moment", "while it wrote a checkpoint", "after the last step"
STEPS_A_KILL = 12  # an attempt takes fewer: at most 8 until its random moment, then 3 until the next save


@dataclass(frozen=True)
class Attempt:
    """One process: whether and how it was killed, the newest checkpoint it found, and where it started and stopped.

    `resumed_at` and `last_step` are None if it was killed before training started.
    """

    kind: str | None
    was_killed: bool
    found: int
    resumed_at: int | None
    last_step: int | None
    left_half_written: bool


class Run:
    """A training command that is run in a folder until it finishes."""

    def __init__(self, folder: Path, flags: list[str], steps: int):
        self.folder, self.steps = folder, steps
        self.command = [*SETTINGS, "--max_train_steps", str(steps), "--output_dir", str(folder), *flags]
        self.command += ["--cache_dir", str(folder) + "-cache"]

    def attempt(self, kind: str | None = None, wait: Callable[[], bool] = lambda: False) -> Attempt:
        """Start the command and kill it when `wait` returns True.

        Raises:
            RuntimeError: it fails before it is killed.
        """
        found = self.newest_checkpoint()
        log = self.folder.with_name(f"{self.folder.name}.log")
        process = os.fork()
        if process == 0:
            self._be_the_process(log)
        status = None
        while status is None and not wait():
            time.sleep(0.002)  # shorter than a save, yet leaves the CPU to the run
            ended, code = os.waitpid(process, os.WNOHANG)
            status = code if ended else None
        if status is None:
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
        if status not in (0, signal.SIGKILL):
            raise RuntimeError(f"an attempt ended with wait status {status}:\n{log.read_text()[-3000:]}")
        half_written = any(self.folder.glob("checkpoint-*.partial"))
        text = log.read_text()
        if not re.search(r"^training: ", text, re.MULTILINE):
            return Attempt(kind, status != 0, found, None, None, half_written)
        told = re.search(r"resuming from .*? at step (\d+) of", text)
        resumed_at = int(told[1]) if told else 0
        return Attempt(kind, status != 0, found, resumed_at, max(self.last_step(), resumed_at), half_written)

    def _be_the_process(self, log: Path) -> None:
        """In the forked process, do what scripts/train.py does. Never returns."""
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout.reconfigure(line_buffering=True)
        status = 1
        try:
            torch.set_num_threads(1)
            trainer = prepare(parse_training_arguments(self.command))
            if trainer is not None:
                trainer.train()
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def newest_checkpoint(self) -> int:
        """The step of the newest checkpoint; 0 without any."""
        present = list_checkpoints(self.folder)
        return int(present[-1].name.partition("-")[2]) if present else 0

    def last_step(self) -> int:
        """The last step in the loss table."""
        table = self.folder / "loss.csv"
        lines = table.read_text().splitlines() if table.is_file() else []
        return int(lines[-1].partition(",")[0]) if len(lines) > 1 else 0


class Killer:
    """Chooses when to kill."""

    def __init__(self, run: Run, seed: int, seconds_to_begin: float, step_seconds: float):
        self.run, self.random = run, random.Random(seed)
        self.seconds_to_begin, self.step_seconds = seconds_to_begin, step_seconds

    def kill(self, kind: str) -> Attempt:
        """One attempt with a kill of this kind."""
        return self.run.attempt(kind, {MOMENT: self._moment, SAVE: self._save, END: self._end}[kind]())

    def _moment(self) -> Callable[[], bool]:
        """At a random moment within one of the next 8 steps, or before the first step."""
        table, wanted = self.run.folder / "loss.csv", max(0, self.random.randrange(-2, 9))
        first = self.run.newest_checkpoint() + wanted
        before, begun = _changed_at(table), [time.monotonic()] if wanted == 0 else []
        delay = self.random.uniform(0, self.step_seconds if wanted else self.seconds_to_begin)

        def wait() -> bool:
            if not begun and _changed_at(table) != before and self.run.last_step() >= first:
                begun.append(time.monotonic())
            return bool(begun) and time.monotonic() > begun[0] + delay

        return wait

    def _save(self) -> Callable[[], bool]:
        """While saving the checkpoint of one of the next 4 steps."""
        first = self.run.newest_checkpoint() + self.random.randrange(4)
        delay, cleared, begun = self.random.uniform(0, 0.03), [], []

        def wait() -> bool:
            present = [int(path.stem.partition("-")[2]) for path in self.run.folder.glob("checkpoint-*.partial")]
            if not present:
                cleared.append(True)  # the leftovers of the last kill are removed
            if cleared and not begun and any(step > first for step in present):
                begun.append(time.monotonic())
            return bool(begun) and time.monotonic() > begun[0] + delay

        return wait

    def _end(self) -> Callable[[], bool]:
        """After one of the final pictures is rewritten."""
        picture = self.run.folder / self.random.choice(("samples.png", "denoising.png"))
        before = _changed_at(picture)
        return lambda: _changed_at(picture) != before


def _changed_at(file: Path) -> int | None:
    return file.stat().st_mtime_ns if file.is_file() else None


def compare(first: Path, second: Path) -> dict[str, bool]:
    """Result of two finished runs -> whether it is equal bit for bit."""
    contents_there = contents(second)
    return {name: _same(content, contents_there.get(name)) for name, content in contents(first).items()}


def contents(folder: Path) -> dict[str, torch.Tensor]:
    """Weights, EMA, optimizer and sampler state, pictures, and the columns of the loss table."""
    checkpoint = list_checkpoints(folder)[-1]
    found = {}
    for file in [*folder.glob("unet/*.safetensors"), *checkpoint.glob("*.safetensors")]:
        found |= {f"{file.name} {name}": tensor for name, tensor in load_file(file).items()}
    for number, state in torch.load(checkpoint / "optimizer.bin", weights_only=True)["state"].items():
        found |= {f"optimizer {number} {name}": tensor for name, tensor in state.items()}
    for file in [*folder.glob("*.png"), *folder.glob("previews/*.png")]:
        if file.name != "loss.png":
            found[file.name] = torch.from_numpy(np.array(Image.open(file)))
    table = np.genfromtxt(folder / "loss.csv", delimiter=",", names=True)
    return found | {name: torch.from_numpy(table[name].copy()) for name in ("step", "loss", "grad_norm")}


def _same(first: torch.Tensor, second: torch.Tensor | None) -> bool:
    return second is not None and first.dtype == second.dtype and torch.equal(first, second)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="Seed for the moments of the kills.")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/out/kills"), help="Replaced.")
    parser.add_argument("flags", nargs="*", help="Further flags of train.py, after --, e.g. -- --streaming")
    options = parser.parse_args()
    shutil.rmtree(options.output_dir, ignore_errors=True)
    options.output_dir.mkdir(parents=True)
    steps = STEPS_A_KILL * options.kills
    unbroken, broken = (Run(options.output_dir / name, options.flags, steps) for name in ("unbroken", "broken"))
    killer = Killer(broken, options.seed, *time_of(unbroken))
    at_end = max(1, options.kills // 10)
    kinds = [(MOMENT, SAVE)[number % 2] for number in range(options.kills - at_end)] + at_end * [END]
    attempts = [*map(killer.kill, kinds), broken.attempt()]
    same = compare(unbroken.folder, broken.folder)
    return report(options.output_dir, steps, attempts, same)


def time_of(run: Run) -> tuple[float, float]:
    """Run without interruption; seconds until the first step, and per step."""
    started, begun = time.monotonic(), []

    def look() -> bool:
        if not begun and run.last_step() > 0:
            begun.append(time.monotonic())
        return False

    run.attempt(wait=look)
    return begun[0] - started, (time.monotonic() - begun[0]) / run.steps


def report(output_dir: Path, steps: int, attempts: list[Attempt], same: dict[str, bool]) -> int:
    """Print and write the table; 1 if anything in it is wrong."""
    killed = [each for each in attempts if each.was_killed]
    wanted = [each for each in attempts if each.kind is not None]
    newest = [each.found for each in attempts]
    trained = [each for each in attempts if each.resumed_at is not None]
    lost = [each for each in trained if each.resumed_at != each.found]
    rows = {
        "kills": len(killed),
        **{f"kills {kind}": sum(each.kind == kind for each in killed) for kind in (MOMENT, SAVE, END)},
        "kills that left a half-written checkpoint": sum(each.left_half_written for each in killed),
        "kills before the process began to train": len(attempts) - len(trained),
        "steps of the run": steps,
        "steps taken over all attempts": sum(each.last_step - each.resumed_at for each in trained),
        "attempts that did not go on from the newest checkpoint": len(lost),
        "checkpoints lost": sum(later < earlier for earlier, later in zip(newest, newest[1:], strict=False)),
        "tensors, pictures and columns compared": len(same),
        "tensors, pictures and columns that differ": sum(not equal for equal in same.values()),
    }
    print(describe_machine(machine()) + "\n")
    table = [{"what": name, "count": value} for name, value in rows.items()]
    print_table(table)
    for name in [name for name, equal in same.items() if not equal]:
        print(f"differs: {name}")
    write_report(output_dir / "kills.json", table, {"attempts": [vars(each) for each in attempts]})
    return int(bool(lost) or not all(same.values()) or rows["checkpoints lost"] > 0 or len(killed) < len(wanted))


if __name__ == "__main__":
    sys.exit(main())
