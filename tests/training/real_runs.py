"""scripts/train.py in processes of its own, to be killed and limited."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from running import SCRIPTS, TINY, Command

ENDLESS = [*TINY, "--max_train_steps", "100000", "--checkpointing_steps", "100000"]


class RealRun:
    """scripts/train.py in processes of its own, which ends with the test at the latest."""

    def __init__(
        self, folder: Path, images: Path | None, *flags: str, processes: int | None = None, threads: int | None = 1
    ):
        """`processes`: how many accelerate's launcher starts by our configuration for it; None for no launcher.
        `threads`: what the launcher is told; None for no choice."""
        self.out, self.log = folder / "out", folder / "log"
        arguments = [*ENDLESS, "--output_dir", self.out, *flags]
        arguments += ["--train_data_dir", images] if images is not None else []
        self.launched = processes is not None
        if not self.launched:
            self.process = Command(folder, "train.py", *arguments)
            return
        config = SCRIPTS / "accelerate" / ("one_gpu.yaml" if processes == 1 else "multi_gpu.yaml")
        command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", config]
        command += ["--num_processes", processes, "--main_process_port", "0", SCRIPTS / "train.py", *arguments]
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
        return self.log.read_text() if self.launched else self.process.out + self.process.err

    def pids(self) -> list[int]:
        """Of the processes that train and load."""
        return [process.pid for process in psutil.process_iter(["cmdline"]) if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        if self.launched:  # each worker in a session of its own
            words = process.info["cmdline"] or []
            return str(self.out) in words and "launch" not in words
        try:
            return os.getsid(process.pid) == self.process.pid
        except ProcessLookupError:
            return False
