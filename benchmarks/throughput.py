"""Training steps of the 35.7 M network of Ho et al. at 32x32, float32 and bf16, ours against stock's recipe.

    OMP_NUM_THREADS=1 python benchmarks/throughput.py

Ours is the complete training step of scripts/train.py; stock's is the loop of train_unconditional.py (its AdamW,
EMAModel, clipping and data path), with autocast for bf16. Both use the same network, batch size and images.
"""

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from image_files import write_png_folder
from measuring import compare, finish, make_parser, readable_seconds, start
from training_sides import RESOLUTION, Side, Worker, interleaved_steps

# size -> (turns, steps in a turn, images in a batch)
AMOUNTS = {"quick": (2, 1, 4), "normal": (7, 1, 16), "full": (15, 3, 16)}
# (side, baseline, goal for the ratio)
COMPARISONS = (
    ("ours float32", "stock float32", None),
    ("ours bf16", "stock float32", 1.9),
    ("ours bf16", "stock bf16", 1.0),
    ("stock bf16", "stock float32", None),
)


def main(argv: list[str]) -> None:
    options = make_parser(__doc__, "throughput").parse_args(argv)
    facts = start(options)
    turns, steps, batch = AMOUNTS[options.size]
    sides = [Side(name, precision, batch) for precision in ("float32", "bf16") for name in ("stock", "ours")]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        images = write_png_folder(Path(folder) / "images", 256, RESOLUTION)
        workers = [running.enter_context(Worker(side, images)) for side in sides]
        seconds = interleaved_steps(workers, turns, steps)
    rows = [row(side, other, goal, seconds, batch) for side, other, goal in COMPARISONS]
    finish(options, rows, facts)


def row(side: str, other: str, goal: float | None, seconds: dict[str, list[float]], batch: int) -> dict[str, Any]:
    found = compare(side, seconds[other], seconds[side], goal)
    return {
        "side": side,
        "a step": readable_seconds(found.ours_seconds),
        "images/s": batch / found.ours_seconds,
        "compared with": other,
        "its images/s": batch / found.stock_seconds,
        **{name: found.row()[name] for name in ("times faster", "n", "goal")},
    }


if __name__ == "__main__":
    main(sys.argv[1:])
