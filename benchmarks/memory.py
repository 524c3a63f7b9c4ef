"""Peak memory of training at 32x32, ours against stock's, and how well it was forecast.

    OMP_NUM_THREADS=1 python benchmarks/memory.py

Each run is a process of its own; counted is its peak of resident memory, as Linux reports it, beyond what libraries
took before there was a network. (With libraries the example would have more than stated: it imports torchvision, which
is not here.) Runs of one side differ by some percent, so a goal is met by a median within the range of stock's runs.
The forecast is held against the median of ours; `ddpm_hf.training.forecast` states its error. Linux only.
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
    """A row of the table: both sides in turns."""
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
