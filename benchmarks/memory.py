"""Peak memory of training the 35.7 M network at 32x32, ours against stock's, and how well the doctor foresaw it.

    OMP_NUM_THREADS=2 python benchmarks/memory.py

Each run is a process of its own; its peak is the resident memory that Linux reports, libraries included. Runs of one
side differ by some percent, so a goal is met by a median within the range of stock's runs. The forecast is of what
comes on top of the libraries, and is held against the median of that. Linux only.
"""

import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from image_files import write_png_folder
from measuring import finish, make_parser, start
from training_sides import RESOLUTION, Side, Worker

BATCH = {"quick": 4, "normal": 16, "full": 16}
STEPS = {"quick": 1, "normal": 2, "full": 4}
RUNS = {"quick": 1, "normal": 2, "full": 5}
GOAL = 0.15


def main(argv: list[str]) -> None:
    options = make_parser(__doc__, "memory").parse_args(argv)
    facts = start(options)
    cases = [(precision, again) for precision in ("float32", "bf16") for again in (False, True)]
    with tempfile.TemporaryDirectory() as folder:
        images = write_png_folder(Path(folder) / "images", 256, RESOLUTION)
        rows = [
            measure(images, Side("", precision, BATCH[options.size], again), options.size)
            for precision, again in (cases[:1] if options.size == "quick" else cases)
        ]
    finish(options, rows, facts)


def measure(images: Path, case: Side, size: str) -> dict[str, Any]:
    """A row of the table: both sides in turns."""
    found = {"stock": [], "ours": []}
    for _ in range(RUNS[size]):
        for name, runs in found.items():
            with Worker(replace(case, name=name), images) as worker:
                worker.train(STEPS[size])
                runs.append(worker.memory())
    peaks = {name: [run["peak"] / 1e9 for run in runs] for name, runs in found.items()}
    needed = statistics.median(run["peak"] - run["libraries"] for run in found["ours"])
    foreseen = found["ours"][0]["forecast"]
    error = foreseen / needed - 1
    return {
        "what": f"batch {case.batch}, {case.precision}{', checkpointing' if case.gradient_checkpointing else ''}",
        **{f"{name}, GB": _range(values) for name, values in peaks.items()},
        "not above stock": "met" if statistics.median(peaks["ours"]) <= max(peaks["stock"]) else "missed",
        "ours beyond libraries, GB": needed / 1e9,
        "forecast, GB": foreseen / 1e9,
        "error": f"{error:+.0%}",
        "within 15 %": "met" if abs(error) <= GOAL else "missed",
    }


def _range(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}..{max(values):.2f}]"


if __name__ == "__main__":
    main(sys.argv[1:])
