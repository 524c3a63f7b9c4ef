"""Small real runs: a folder of images, a tiny network, a few steps."""

import os
import signal
from pathlib import Path

import pytest
from real_runs import RealRun
from running import TINY, forget_accelerator, write_pictures

from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.training.loop import Trainer
from ddpm_hf.training.start import prepare


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("images"), each=12)


@pytest.fixture
def start(image_folder, tmp_path):
    """Starts a run in this process: `start(*flags)` returns a prepared Trainer, or None."""

    def run(*flags: str, output_dir: Path = tmp_path / "out", tiny: bool = True, data: bool = True) -> Trainer | None:
        forget_accelerator()
        arguments = ["--output_dir", str(output_dir), *(TINY if tiny else [])]
        arguments += ["--train_data_dir", str(image_folder)] if data else []
        arguments += flags
        return prepare(parse_training_arguments(arguments))

    return run


@pytest.fixture
def train(start):
    """Runs to the end and returns the Trainer. `ending=False`: of what follows the last step, only the checkpoint."""

    def run(*flags: str, ending: bool = True, **places) -> Trainer:
        trainer = start(*flags, **places)
        if not ending:
            trainer._finish = trainer._checkpoint
        trainer.train()
        return trainer

    return run


@pytest.fixture
def real_run(tmp_path, image_folder):
    runs = []

    def begin(*flags: str, images: Path | None = image_folder, **choices: int) -> RealRun:
        runs.append(RealRun(tmp_path, images, *flags, **choices))
        return runs[-1]

    yield begin
    for run in runs:
        run.process.kill()
        run.process.wait()
        for pid in run.pids():
            os.kill(pid, signal.SIGKILL)
