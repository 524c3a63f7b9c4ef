"""What small runs are started with, and scripts/train.py in processes of its own, to be killed and limited."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

TRAIN = Path(__file__).parents[2] / "scripts" / "train.py"
# float32, so that runs can be compared bit by bit.
TINY = (
    "--resolution 8 --base_channels 8 --channel_multipliers 1 2 --blocks_per_level 1 --attention_resolutions 4 "
    "--train_batch_size 4 --max_train_steps 6 --learning_rate 1e-3 --lr_warmup_steps 2 --mixed_precision no "
    "--preview_images 2 --preview_inference_steps 2 --preview_steps 0 --logging_steps 1 --holdout 0"
).split()
ENDLESS = (
    "--resolution 8 --base_channels 8 --channel_multipliers 1 2 --blocks_per_level 1 --train_batch_size 4 "
    "--max_train_steps 100000 --mixed_precision no --preview_steps 0 --checkpointing_steps 100000"
).split()


class RealRun:
    """scripts/train.py in processes of its own, which ends with the test at the latest."""

    def __init__(
        self, folder: Path, images: Path | None, *flags: str, processes: int | None = None, threads: int | None = 1
    ):
        """`processes`: how many a launcher starts; None for one without a launcher. `threads`: None for no choice."""
        self.out, self.log = folder / "out", folder / "log"
        command = [sys.executable]
        if processes is not None:
            launch = f"launch --num_processes {processes} --num_machines 1 --mixed_precision no --dynamo_backend no"
            command += ["-m", "accelerate.commands.accelerate_cli", *launch.split()]
            command += ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else []
        command += [TRAIN, *ENDLESS, "--output_dir", self.out, *flags]
        command += ["--train_data_dir", images] if images is not None else []
        variables = {**os.environ, "ACCELERATE_USE_CPU": "true"}
        variables.pop("OMP_NUM_THREADS", None)
        variables |= {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), stdout=log, stderr=log, env=variables, start_new_session=True
            )

    def wait_for_steps(self, count: int) -> None:
        table = self.out / "loss.csv"
        self.wait_for(lambda: table.is_file() and table.read_text().count("\n") > count)

    def wait_for(self, condition, seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"it did not happen in time; {self.text()[-3000:]}"
            time.sleep(0.02)

    def text(self) -> str:
        return self.log.read_text()

    def pids(self) -> list[int]:
        """Of the processes that train: those that hold the output folder's name among their arguments."""
        return [
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if str(self.out) in (process.info["cmdline"] or []) and "launch" not in process.info["cmdline"]
        ]
