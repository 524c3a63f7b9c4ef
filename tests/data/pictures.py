"""Small images made on the spot."""

import io

import numpy as np
from PIL import Image


def noise(seed, size=(8, 8), channels=3):
    """Random uint8 pixels: (h, w) for one channel, (h, w, c) otherwise."""
    shape = size if channels == 1 else (*size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(pixels))
    return path


def parquet(path, columns, features=None):
    """A parquet file; features None for plain columns without any types of datasets."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    if features is None:
        pq.write_table(pa.table(columns), path)
    else:
        datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(path)
    return path
