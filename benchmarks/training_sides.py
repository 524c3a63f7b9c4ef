"""Training steps of ours and stock, each in its own process that takes steps on request.

So both can be timed in turns although they differ in process-wide settings (accelerate's precision), and their memory
is measured separately.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddpm_hf.training.loop import Trainer

RESOLUTION = 32
_TINY = "--base_channels 8 --channel_multipliers 1 2 --blocks_per_level 1 --attention_resolutions 16".split()


@dataclass(frozen=True)
class Side:
    """A side to measure: "stock" or "ours", "float32" or "bf16", and the network of a preset; 35.7 M by default.

    `compile` and `channels_last` are for ours. `decoded` gives stock the same few decoded batches again and again,
    because a GPU would wait for its data path.
    """

    name: str
    precision: str
    batch: int
    gradient_checkpointing: bool = False
    preset: str = "ddpm-cifar10"
    compile: bool = False
    channels_last: bool = False
    decoded: bool = False

    def __str__(self) -> str:
        how = {"checkpointing": self.gradient_checkpointing, "compiled": self.compile}
        how["channels_last"] = self.channels_last
        return ", ".join([f"{self.name} {self.precision}", *(name for name, given in how.items() if given)])


class Worker:
    """A process that trains one side; use it in a `with`.

    Args:
        side: the side to train.
        images: a folder of images.
    """

    def __init__(self, side: Side, images: Path):
        self.side = side
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(asdict(side)), str(images)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *problem: object) -> None:
        self.process.stdin.close()
        if problem[0] is not None:
            self.process.kill()
        self.process.wait()

    def train(self, steps: int) -> float:
        """Seconds of this many steps, until the device is done; sets `peak`, the most bytes it has used."""
        answer = self._ask({"steps": steps})
        self.peak = answer["peak"]
        return answer["seconds"]

    def memory(self) -> dict[str, int]:
        """Bytes: "libraries" before building the network, "peak" so far; for ours also the doctor's "forecast"."""
        return self._ask({"memory": True})

    def _ask(self, question: dict) -> dict:
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            self.log.seek(0)
            raise SystemExit(f"{self.side} ended:\n{self.log.read()[-3000:]}")
        return json.loads(answer)


# What follows runs in the process of a worker.


def serve(side: Side, images: Path) -> None:
    """Answer each line of stdin with a line on stdout."""
    import torch
    from accelerate import PartialState

    from ddpm_hf.training.device import peak_memory

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        make = our_steps if side.name == "ours" else stock_steps
        # A step of a tiny network first, on one image: libraries and kernels are there before memory is counted.
        make(replace(side, batch=1, compile=False), images, Path(folder) / "tiny", tiny=True)[0]()
        libraries = resident("VmRSS")
        step, about = make(side, images, Path(folder) / "run", tiny=False)
        device = PartialState().device
        for line in sys.stdin:
            question = json.loads(line)
            if "steps" in question:
                start = time.perf_counter()
                for _ in range(question["steps"]):
                    step()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                answer = {"seconds": time.perf_counter() - start, "peak": peak_memory(device)}
            else:
                answer = {"libraries": libraries, "peak": resident("VmHWM"), **about()}
            print(json.dumps(answer), file=answers, flush=True)


def resident(name: str) -> int:
    """Resident bytes of this process on Linux: VmRSS (now) or VmHWM (peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


Steps = tuple[Callable[[], object], Callable[[], dict[str, int]]]


def our_steps(side: Side, images: Path, folder: Path, tiny: bool) -> Steps:
    """The complete training step of scripts/train.py."""
    import torch

    from ddpm_hf.cli.parser import parse_training_arguments
    from ddpm_hf.systems.forecast import forecast
    from ddpm_hf.training.start import prepare

    flags = ["--train_data_dir", images, "--cache_dir", images.with_name("cache"), "--output_dir", folder]
    flags += ["--train_batch_size", side.batch, "--max_train_steps", 10**6, "--preview_steps", 0, "--holdout", 0]
    flags += ["--checkpointing_steps", 10**6, "--mixed_precision", "no" if side.precision == "float32" else "bf16"]
    flags += [*_TINY, "--resolution", RESOLUTION] if tiny else ["--preset", side.preset]
    flags += ["--gradient_checkpointing"] if side.gradient_checkpointing else []
    flags += ["--compile"] if side.compile else []
    trainer = prepare(parse_training_arguments(list(map(str, flags))))
    if side.channels_last:
        for network in (trainer.model, trainer.ema.model):
            network.to(memory_format=torch.channels_last)

    def about() -> dict[str, int]:
        cost = forecast(trainer.plan, trainer.accelerator)
        return {"forecast": cost.total, "parameters": trainer.plan.facts.parameters}

    return steps_of(trainer), about


def steps_of(trainer: "Trainer") -> Callable[[], None]:
    """Its complete steps, one a call; `train` makes everything ready for them, finds no batch and leaves nothing."""
    micro_steps, trainer._micro_steps = trainer._micro_steps(), lambda: iter(())
    trainer._finish = lambda: None
    trainer.train()

    def step() -> None:
        trainer._micro_step(*next(micro_steps))
        trainer._after_step()

    return step


def stock_steps(side: Side, images: Path, folder: Path, tiny: bool) -> Steps:
    """The recipe of train_unconditional.py on the same images and network."""
    from diffusers import UNet2DModel
    from stock import StockTrainer, endless, make_loader

    from ddpm_hf import get_preset
    from ddpm_hf.models.unet import paper_config

    small = {"base_channels": 8, "channel_multipliers": (1, 2), "blocks_per_level": 1}
    config = paper_config(RESOLUTION, **small) if tiny else paper_config(**get_preset(side.preset).model)
    model = UNet2DModel(**config)
    if side.gradient_checkpointing:  # which the example has no flag for and the network has
        model.enable_gradient_checkpointing()
    trainer = StockTrainer(model, "no" if side.precision == "float32" else "bf16")
    batches = endless(make_loader(images, config["sample_size"], side.batch))
    if side.decoded:
        batches = cycle(list(islice(batches, 4)))
    return lambda: trainer.step(next(batches)), dict


def interleaved_steps(workers: Sequence[Worker], turns: int, steps: int) -> dict[str, list[float]]:
    """Side -> seconds per step in each turn, after a warm-up step."""
    for worker in workers:
        worker.train(1)
    seconds = {str(worker.side): [] for worker in workers}
    for _ in range(turns):
        for worker in workers:
            seconds[str(worker.side)].append(worker.train(steps) / steps)
    return seconds


if __name__ == "__main__":
    serve(Side(**json.loads(sys.argv[1])), Path(sys.argv[2]))
