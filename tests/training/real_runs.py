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

    def __init__(self, folder: Path, images: Path | None, *flags: str, processes: int = 1, launched: bool = False):
        """`launched`: by accelerate's launcher and our configuration for this many, instead of forked by the tests."""
        self.out, self.log, self.has_launcher = folder / "out", folder / "log", launched or processes > 1
        arguments = [*ENDLESS, "--output_dir", self.out, *flags]
        arguments += ["--train_data_dir", images] if images is not None else []
        if not launched:
            self.process = Command(folder, "train.py", *arguments, processes=processes)
            return
        config = SCRIPTS / "accelerate" / ("one_gpu.yaml" if processes == 1 else "multi_gpu.yaml")
        command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", config]
        command += ["--num_processes", processes, "--main_process_port", "0", SCRIPTS / "train.py", *arguments]
        # A process of its own, in whose environment the run finds that no number of threads was chosen.
        variables = {**os.environ, "ACCELERATE_USE_CPU": "true"}
        variables.pop("OMP_NUM_THREADS", None)
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
        return self.log.read_text() if self.log.is_file() else self.process.out + self.process.err

    def pids(self) -> list[int]:
        """Of the processes that train and load, but not of a launcher."""
        ours = [process.pid for process in psutil.process_iter(["cmdline"]) if self._is_ours(process)]
        return [pid for pid in ours if pid != self.process.pid or not self.has_launcher]

    def _is_ours(self, process: psutil.Process) -> bool:
        """Torch's agent gives each process a session of its own; those that are forked here have no command line."""
        try:
            return os.getsid(process.pid) == self.process.pid or str(self.out) in (process.info["cmdline"] or [])
        except ProcessLookupError:
            return False
