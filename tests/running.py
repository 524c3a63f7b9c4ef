"""How the suite runs the project's commands: what a tiny run is, and processes that start at once."""

import contextlib
import gc
import importlib.util
import multiprocessing
import os
import runpy
import signal
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from torch.distributed import TCPStore

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
# float32, so that runs can be compared bit by bit. A flag that is given again after these wins.
TINY = (
    "--resolution 8 --base_channels 8 --channel_multipliers 1 2 --blocks_per_level 1 --attention_resolutions 4 "
    "--train_batch_size 4 --max_train_steps 6 --learning_rate 1e-3 --lr_warmup_steps 2 --mixed_precision no "
    "--preview_images 2 --preview_inference_steps 2 --preview_steps 0 --logging_steps 1 --holdout 0"
).split()

# Imports cost more than any tiny run does. A server process pays for them once and is forked for every command.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["ddpm_hf.training.start", "ddpm_hf.evaluation.evaluator", "datasets", "matplotlib.backends.backend_agg"]
)


def forget_accelerator() -> None:
    """Let the next Accelerator of this process have a configuration of its own."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


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
    """

    def __init__(self, folder: Path, script: str | Path, *arguments: object, processes: int = 1):
        self._files = [folder / "stdout", folder / "stderr"]
        for file in self._files:
            file.touch()
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        words = [str(SCRIPTS / script), *map(str, arguments)]
        self._process = _FORKS.Process(target=_be, args=(words, variables, self._files, processes))
        self._process.start()
        self.pid = self._process.pid

    @property
    def out(self) -> str:
        return self._files[0].read_text()

    @property
    def err(self) -> str:
        return self._files[1].read_text()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = 300.0) -> int:
        self._process.join(timeout)
        assert self.poll() is not None, f"it does not end; {self.err[-3000:]}"
        return self.poll()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """All of its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.join()


def _be(words: list[str], variables: dict[str, str], files: list[Path], processes: int) -> None:
    """The forked process: as if Python had been started with these words and variables."""
    import datasets

    gc.freeze()  # Accelerate collects garbage at the end of a run: not among all these imports
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # its own processes start as they do anywhere
    os.environ.clear()
    os.environ.update(variables)
    datasets.config.HF_DATASETS_CACHE = Path(variables["HF_DATASETS_CACHE"])  # which is read when it is imported
    for stream, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), stream)
    if processes > 1:
        _fork_ranks(processes)
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")


def _fork_ranks(count: int) -> None:
    """What torch's launcher does: a process for each rank, and the store in which they meet. Returns in the ranks."""
    port_of, tell_port = os.pipe()
    ranks = {}
    for rank in map(str, range(count)):
        pid = os.fork()
        if pid == 0:
            os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(int(os.read(port_of, 8)))}
            os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
            os.environ |= {"ACCELERATE_MIXED_PRECISION": "no"}
            return
        ranks[pid] = None
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.write(tell_port, f"{store.port:8d}".encode() * count)
    while None in ranks.values():
        pid, status = os.wait()
        ranks[pid] = os.waitstatus_to_exitcode(status)
        if ranks[pid] != 0:  # one that fails takes the others along
            for other in (pid for pid, status in ranks.items() if status is None):
                os.kill(other, signal.SIGKILL)
            sys.exit(ranks[pid] if ranks[pid] > 0 else 1)
    sys.exit(0)
