"""Synthetic photographs for benchmarks: smooth colours with some noise, which PNG compresses about like photos."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

datasets.disable_progress_bars()

_SHARD = 1000  # rows of a parquet file


def write_png_folder(folder: Path, count: int, side: int) -> Path:
    """`count` RGB images, side x side, as PNG files."""
    folder.mkdir(parents=True)
    for number, image in enumerate(_images(count, side)):
        image.save(folder / f"{number:06d}.png")
    return folder


def write_parquet(folder: Path, count: int, side: int) -> Path:
    """The same images as PNG in parquet files of a thousand rows, as on the Hub."""
    features = datasets.Features({"image": datasets.Image()})
    folder.mkdir(parents=True)
    data = datasets.Dataset.from_generator(
        _examples,
        features=features,
        gen_kwargs={"count": count, "side": side},
        cache_dir=str(folder.with_name("made")),
    )
    for number, first in enumerate(range(0, count, _SHARD)):
        rows = data.select(range(first, min(first + _SHARD, count)))
        rows.to_parquet(folder / f"train-{number:05d}.parquet")
    return folder


def _examples(count: int, side: int) -> Iterator[dict[str, Image.Image]]:
    return ({"image": image} for image in _images(count, side))


def _images(count: int, side: int) -> Iterator[Image.Image]:
    draw = np.random.default_rng(0)
    for _ in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((side, side), Image.BICUBIC)
        noise = draw.normal(0, 8, (side, side, 3))
        yield Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))
