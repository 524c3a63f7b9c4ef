"""Data loading throughput: images decoded once and memory-mapped, against decoded and transformed in every epoch.

    OMP_NUM_THREADS=1 python benchmarks/data_path.py

The baseline is the data path of train_unconditional.py: datasets, its transforms, torch's DataLoader. Both give
float32 batches in [-1, 1] with random flips. A turn is one epoch for stock and twenty for ours, and starts new
workers. Our decoding pass is not included; it has its own column.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import stock
from image_files import write_parquet, write_png_folder
from measuring import compare, finish, interleaved, make_parser, start

from ddpm_hf.data.examples import StoredImages
from ddpm_hf.data.holdout import Holdout
from ddpm_hf.data.order import PositionSampler
from ddpm_hf.data.sources import ImageData, load_images
from ddpm_hf.data.store import PixelStore
from ddpm_hf.pixels import normalize

BATCH, EPOCHS = 64, 20
GOALS = {32: 15.0, 64: 8.0}
# size -> (images, turns)
AMOUNTS = {"quick": (1024, 2), "normal": (2048, 5), "full": (20_480, 15)}


def main(argv: list[str]) -> None:
    options = make_parser(__doc__, "data_path").parse_args(argv)
    facts = start(options)
    count, turns = AMOUNTS[options.size]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for side in GOALS:
            for kind, write in (("PNG files", write_png_folder), ("parquet", write_parquet)):
                images = write(Path(folder) / f"{side} {kind}" / "images", count, side)
                rows += throughput(images, side, kind, turns)
    finish(options, rows, facts)


def throughput(images: Path, side: int, kind: str, turns: int) -> Iterator[dict[str, Any]]:
    """One row without workers and one with two."""
    cache = images.with_name("store")
    source = load_images(train_data_dir=images, cache_dir=cache)
    start = time.perf_counter()
    store = PixelStore.build(source, (side, side), cache_dir=cache, progress=False)
    building = time.perf_counter() - start
    for workers in (0, 2):
        sides = {"stock": stock_epoch(images, side, workers), "ours": our_epochs(source, store, workers)}
        seconds = interleaved(sides, turns)
        found = compare("", seconds["stock"], [turn / EPOCHS for turn in seconds["ours"]])
        goal = GOALS[side] if workers == 0 else None
        yield {
            "what": f"{side}x{side}, {kind}, {workers} workers",
            "stock images/s": round(len(store) / found.stock_seconds),
            "ours images/s": round(len(store) / found.ours_seconds),
            "times faster": f"{found.ratio:.1f} [{found.low:.1f}..{found.high:.1f}]",
            "n": turns,
            "goal": "" if goal is None else f"{goal:g}: {'met' if found.ratio >= goal else 'missed'}",
            "decoded once at images/s": round(len(store) / building),
        }


def stock_epoch(images: Path, side: int, workers: int) -> Callable[[], None]:
    loader = stock.make_loader(images, side, BATCH, workers)

    def epoch() -> None:
        for batch in loader:
            assert batch["input"].shape[1:] == (3, side, side)

    return epoch


def our_epochs(source: ImageData, store: PixelStore, workers: int) -> Callable[[], None]:
    data = StoredImages(source, store, 0, holdout=Holdout(), random_flip=True)
    sampler = PositionSampler(BATCH, num_steps=EPOCHS * len(store) // BATCH)

    def epochs() -> None:
        for batch in data.loader(sampler, num_workers=workers):
            assert normalize(batch["images"]).shape[1:] == store.shape

    return epochs


if __name__ == "__main__":
    main(sys.argv[1:])
