"""Peak memory of training the 35.7 M network at 32x32, ours against stock's, and how well the doctor foresaw it.

    OMP_NUM_THREADS=2 python benchmarks/memory.py

Each side is a process of its own; its peak is the resident memory that Linux reports, libraries included. The forecast
is of what comes on top of the libraries, so that is what it is held against. Linux only.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from image_files import write_png_folder
from measuring import finish, make_parser, start
from training_sides import RESOLUTION, Side, Worker

BATCH = {"quick": 4, "normal": 16, "full": 16}
STEPS = {"quick": 1, "normal": 2, "full": 3}
GOAL = 0.15


def main(argv: list[str]) -> None:
    options = make_parser(__doc__, "memory").parse_args(argv)
    facts = start(options)
    cases = [(precision, again) for precision in ("float32", "bf16") for again in (False, True)]
    with tempfile.TemporaryDirectory() as folder:
        images = write_png_folder(Path(folder) / "images", 256, RESOLUTION)
        rows = [
            measure(images, precision, again, BATCH[options.size], STEPS[options.size])
            for precision, again in cases[:: 3 if options.size == "quick" else 1]
        ]
    finish(options, rows, facts)


def measure(images: Path, precision: str, checkpointing: bool, batch: int, steps: int) -> dict[str, Any]:
    """A row of the table: both sides one after the other."""
    found = {}
    for name in ("stock", "ours"):
        with Worker(Side(name, precision, batch, checkpointing), images) as worker:
            worker.train(steps)
            found[name] = worker.memory()
    ours, stock = found["ours"], found["stock"]
    needed = {name: memory["peak"] - memory["libraries"] for name, memory in found.items()}
    error = ours["forecast"] / needed["ours"] - 1
    return {
        "what": f"batch {batch}, {precision}{', checkpointing' if checkpointing else ''}",
        "stock peak GB": stock["peak"] / 1e9,
        "ours peak GB": ours["peak"] / 1e9,
        "not above stock": "met" if ours["peak"] <= stock["peak"] else "missed",
        "stock beyond libraries GB": needed["stock"] / 1e9,
        "ours beyond libraries GB": needed["ours"] / 1e9,
        "forecast GB": ours["forecast"] / 1e9,
        "forecast error": f"{error:+.0%}",
        "within 15 %": "met" if abs(error) <= GOAL else "missed",
    }


if __name__ == "__main__":
    main(sys.argv[1:])
