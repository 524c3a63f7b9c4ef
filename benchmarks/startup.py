"""Startup time: imports, --help, errors, and the first training step of the demo.

    python benchmarks/startup.py

CPU seconds of whole processes (user and system, which depend little on other load), taken in turns. The demo's first
step is wall time from the command of `make demo`, with an empty cache. Unix only.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import finish, make_parser, start

ROOT = Path(__file__).parents[1]
REPETITIONS = {"quick": 1, "normal": 2, "full": 9}
DEMO_REPETITIONS = {"quick": 1, "normal": 2, "full": 5}
MORE_THAN_IMPORT, FIRST_STEP = 1.5, 20.0  # seconds

STOCK, IMPORT = "from diffusers import DDPMPipeline", "import ddpm_hf"
SCRIPTS = ("train.py", "sample.py", "evaluate.py", "push.py")
# The first four are all that is measured in size quick.
COMMANDS = {
    STOCK: ["-c", STOCK],
    IMPORT: ["-c", IMPORT],
    "train.py, unknown flag": ["scripts/train.py", "--learning_rat", "1e-4"],
    **{f"{name} --help": [f"scripts/{name}", "--help"] for name in SCRIPTS},
    "train.py, value out of range": ["scripts/train.py", "--learning_rate", "-1"],
    "sample.py, value out of range": ["scripts/sample.py", "model", "--num_images", "0"],
    "evaluate.py, unknown flag": ["scripts/evaluate.py", "model", "--metric", "nll"],
    "push.py, no folder": ["scripts/push.py"],
}


def main(argv: list[str]) -> None:
    options = make_parser(__doc__, "startup").parse_args(argv)
    facts = start(options)
    commands = dict(list(COMMANDS.items())[: 4 if options.size == "quick" else None])
    seconds = {name: [] for name in commands}
    if options.size != "quick":
        for name in (STOCK, IMPORT):
            cpu_seconds(COMMANDS[name])  # fills the file cache
    for _ in range(REPETITIONS[options.size]):
        for name, command in commands.items():
            seconds[name].append(cpu_seconds(command))
    rows = [row(name, seconds) for name in commands]
    rows.append(demo_row([first_step() for _ in range(DEMO_REPETITIONS[options.size])]))
    finish(options, rows, facts)


def cpu_seconds(arguments: list[str]) -> float:
    """User plus system time of a Python process."""
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    usage = os.wait4(process.pid, 0)[2]
    return usage.ru_utime + usage.ru_stime


def row(name: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """The cost of a command relative to the import, turn by turn."""
    values = seconds[name]
    more = {"more than stock": _difference(values, seconds[STOCK]), "more than import": "", "goal": ""}
    if name not in (STOCK, IMPORT):
        over = statistics.median(a - b for a, b in zip(values, seconds[IMPORT], strict=True))
        more |= {"more than import": _difference(values, seconds[IMPORT])}
        more |= {"goal": f"{MORE_THAN_IMPORT} s: {'met' if over <= MORE_THAN_IMPORT else 'missed'}"}
    return {"what": name, "seconds": f"{statistics.median(values):.2f}", **more, "n": len(values)}


def _difference(values: list[float], base: list[float]) -> str:
    differences = [a - b for a, b in zip(values, base, strict=True)]
    return f"{statistics.median(differences):+.2f} [{min(differences):+.2f}..{max(differences):+.2f}]"


def demo_row(seconds: list[float]) -> dict[str, Any]:
    middle = statistics.median(seconds)
    return {
        "what": "first training step of `make demo`, by the clock",
        "seconds": f"{middle:.1f} [{min(seconds):.1f}..{max(seconds):.1f}]",
        "goal": f"{FIRST_STEP:g} s: {'met' if middle <= FIRST_STEP else 'missed'}",
        "n": len(seconds),
    }


def first_step() -> float:
    """Seconds from the command of the Makefile to the first step in its loss table."""
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    flags = "--num_processes 1 --num_machines 1 --dynamo_backend no --mixed_precision no scripts/train.py".split()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [*launcher, *flags, "--output_dir", f"{folder}/demo", "--logging_steps", "1"],
            cwd=ROOT,
            env={**os.environ, "HF_DATASETS_CACHE": f"{folder}/cache"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while not (table := Path(folder, "demo", "loss.csv")).is_file() or table.read_text().count("\n") < 2:
            if process.poll() is not None:
                raise SystemExit("the demo ended before its first step")
            time.sleep(0.01)
        seconds = time.perf_counter() - begin
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return seconds


if __name__ == "__main__":
    main(sys.argv[1:])
