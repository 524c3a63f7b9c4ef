"""How the suite runs the project's commands: what a tiny run is, and processes that start at once."""

import contextlib
import importlib.util
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import forked
import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
# float32, so that runs can be compared bit by bit. A flag that is given again after these wins.
TINY = (
    "--resolution 8 --base_channels 8 --channel_multipliers 1 2 --blocks_per_level 1 --attention_resolutions 4 "
    "--train_batch_size 4 --max_train_steps 6 --learning_rate 1e-3 --lr_warmup_steps 2 --mixed_precision no "
    "--preview_images 2 --preview_inference_steps 2 --preview_steps 0 --logging_steps 1 --holdout 0"
).split()


def forget_accelerator() -> None:
    """Let the next Accelerator of this process have a configuration of its own."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


@contextlib.contextmanager
def killed_at(step: int, folder: Path | None = None) -> Iterator[None]:
    """A training in this context is killed when it has taken this step and before it reports it; if a folder is given,
    the training that writes there. It is an error if none is."""
    from ddpm_hf.training.loop import Trainer

    report = Trainer._report

    def report_or_die(trainer: Trainer) -> None:
        if trainer.step == step and folder in (None, trainer.output.path):
            raise KeyboardInterrupt
        report(trainer)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_report", report_or_die)
        yield


def write_pictures(folder: Path, each: int) -> Path:
    """Noise of 10x12 pixels, as many in each of two folders, that is classes: cats without red, dogs full of it."""
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for k in range(each):
            pixels = generator.integers(0, 256, (12, 10, 3), dtype=np.uint8)
            pixels[..., 0] = 255 * (name == "dog")
            Image.fromarray(pixels).save(folder / name / f"{k}.png")
    return folder


def load_script(name: str) -> ModuleType:
    """A script as a module, for what needs no process: `load_script("train.py").main(arguments)`."""
    specification = importlib.util.spec_from_file_location(name.removesuffix(".py"), SCRIPTS / name)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class Command:
    """A script that runs in a process of its own on the CPU, or in several under a launcher such as torch's.

    It has the methods of `subprocess.Popen`; of several processes they mean the launcher. Accelerate's own launcher is
    started by scripts/test_accelerate_configs.py and training/test_interruption.py.

    Args:
        folder: for what is printed.
        script: a path, absolute or within scripts/.
        variables: its environment, in place of this one on a CPU.
        bare: it starts without any module of Hugging Face or ours.
    """

    def __init__(
        self,
        folder: Path,
        script: str | Path,
        *arguments: object,
        processes: int = 1,
        variables: dict[str, str] | None = None,
        bare: bool = False,
    ):
        self._files = [folder / "stdout", folder / "stderr"]
        with open(os.devnull) as nothing, self._files[0].open("a") as out, self._files[1].open("a") as err:
            self._server, self.pid = forked.start(
                "bare" if bare else "full",
                [nothing.fileno(), out.fileno(), err.fileno()],
                words=[str(SCRIPTS / script), *map(str, arguments)],
                variables=variables or {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
                folder=str(folder if bare else Path.cwd()),
                processes=processes,
            )
        self._status = None

    @property
    def out(self) -> str:
        return self._files[0].read_text()

    @property
    def err(self) -> str:
        return self._files[1].read_text()

    def poll(self, timeout: float = 0.0) -> int | None:
        if self._status is None and select.select([self._server], [], [], timeout)[0]:
            self._status = forked.end_of(self._server)
        return self._status

    def wait(self, timeout: float = 300.0) -> int:
        assert self.poll(timeout) is not None, f"it does not end; {self.err[-3000:]}"
        return self.poll()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """All of its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.poll(None)
        self._server.close()
