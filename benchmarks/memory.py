"""Peak memory of training at 32x32, ours against stock's, and the doctor's forecast of it.

    OMP_NUM_THREADS=1 python benchmarks/memory.py

Each run is a separate process. Measures its peak resident memory minus the memory after importing libraries (stock's
example would import torchvision in addition, which is not installed here). Runs vary by a few percent, so the goal is
met if our median is within the range of stock's runs. The forecast is compared with our median. Linux only.
"""

import statistics
import sys
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from image_files import write_png_folder
from measuring import finish, make_parser, start
from training_sides import RESOLUTION, Side, Worker

BATCH = {"quick": 4, "normal": 16, "full": 16}
STEPS = {"quick": 1, "normal": 2, "full": 4}
RUNS = {"quick": 1, "normal": 3, "full": 5}
PRESETS = ("ddpm-cifar10", "small-32")


def main(argv: list[str]) -> None:
    options = make_parser(__doc__, "memory").parse_args(argv)
    facts = start(options)
    cases = list(product(PRESETS, ("float32", "bf16"), (False, True)))
    with tempfile.TemporaryDirectory() as folder:
        images = write_png_folder(Path(folder) / "images", 256, RESOLUTION)
        rows = [
            measure(images, Side("", precision, BATCH[options.size], again, preset), options.size)
            for preset, precision, again in (cases[:1] if options.size == "quick" else cases)
        ]
    finish(options, rows, facts)


def measure(images: Path, case: Side, size: str) -> dict[str, Any]:
    """One row of the table, with both sides measured in turns."""
    found = {"stock": [], "ours": []}
    for _ in range(RUNS[size]):
        for name, runs in found.items():
            with Worker(replace(case, name=name), images) as worker:
                worker.train(STEPS[size])
                runs.append(worker.memory())
    needed = {name: [(run["peak"] - run["libraries"]) / 1e9 for run in runs] for name, runs in found.items()}
    ours, foreseen = statistics.median(needed["ours"]), found["ours"][0]["forecast"] / 1e9
    whole = (statistics.median(run["peak"] / 1e9 for run in runs) for runs in found.values())
    again = ", checkpointing" if case.gradient_checkpointing else ""
    return {
        "what": f"{case.preset}, batch {case.batch}, {case.precision}{again}",
        **{f"{name}, GB": _range(values) for name, values in needed.items()},
        "not above stock": "met" if ours <= max(needed["stock"]) else "missed",
        "with libraries, GB": " and ".join(f"{value:.2f}" for value in whole),
        "forecast, GB": f"{foreseen:.2f}",
        "error": f"{foreseen / ours - 1:+.0%}",
    }


def _range(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}..{max(values):.2f}]"


if __name__ == "__main__":
    main(sys.argv[1:])
