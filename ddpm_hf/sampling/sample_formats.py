"""Output formats of samples: PNG files with a table, the .npz of OpenAI's evaluators, or parquet files.

All are written from PNG files, with one image or block of images in memory at a time.
"""

import csv
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files import replacing

_ROWS_PER_FILE, _ROWS_PER_GROUP = 10_000, 100


def read_pixels(file: Path) -> np.ndarray:
    """An image file as uint8 (H, W, C), C = 1 for grey."""
    with Image.open(file) as image:
        return np.atleast_3d(np.asarray(image))


def write_table(file: Path, images: Sequence[Path], table: Mapping[str, Sequence[Any]]) -> None:
    """Write `metadata.csv` for an image folder of HF datasets: file_name, and the columns of a table."""
    columns = {"file_name": [image.name for image in images], **table}
    with replacing(file) as beside, beside.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def write_npz(archive: Path, files: Sequence[Path], labels: Sequence[int] | None) -> None:
    """Write the .npz of OpenAI's evaluators: `arr_0` uint8 (N, H, W, C), and `arr_1` int64 (N,) if there are labels.

    Grey images keep their single channel, although those evaluators expect three.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(files), *read_pixels(files[0]).shape)}
    with replacing(archive) as beside, zipfile.ZipFile(beside, "w") as arrays:
        with arrays.open("arr_0.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for file in files:
                stream.write(read_pixels(file).tobytes())
        if labels is not None:
            with arrays.open("arr_1.npy", "w") as stream:
                np.lib.format.write_array(stream, np.asarray(labels, dtype=np.int64))


def write_dataset(
    folder: Path, files: Sequence[Path], table: Mapping[str, Sequence[Any]], names: Mapping[int, str] | None
) -> None:
    """Write the PNG files and a table to parquet files for `datasets.load_dataset`.

    Args:
        folder: created here; its parent is the data set.
        files: one per image.
        table: column -> one value per image; `class_name` is left out, because it follows from `label`.
        names: class number -> name, for 0, 1, …; without names, or with duplicates, labels are plain integers.
    """
    import datasets
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    features = datasets.Features({"image": datasets.Image()})
    table = {name: values for name, values in table.items() if name != "class_name"}
    for name, values in table.items():
        features[name] = datasets.Value("string" if isinstance(values[0], str) else "int64")
    if "label" in table and names is not None and len(set(names.values())) == len(names):
        features["label"] = datasets.ClassLabel(names=list(names.values()))
    schema = features.arrow_schema
    starts = range(0, len(files), _ROWS_PER_FILE)
    with replacing(folder) as beside:
        beside.mkdir()
        for number, start in enumerate(starts):
            end = min(start + _ROWS_PER_FILE, len(files))
            with ParquetWriter(beside / f"train-{number:05d}-of-{len(starts):05d}.parquet", schema) as writer:
                for first in range(start, end, _ROWS_PER_GROUP):
                    rows = range(first, min(first + _ROWS_PER_GROUP, end))
                    columns = {"image": [{"bytes": files[k].read_bytes(), "path": files[k].name} for k in rows]}
                    columns |= {name: [values[k] for k in rows] for name, values in table.items()}
                    writer.write_table(pa.table(columns, schema=schema))
