"""Detect memorization: compare samples' distances to the training images with those of held-out images."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from .distances import squared_distances
from .intervals import wilson_interval

# A sample counts as a copy if it is closer to a training image than all but this share of the held-out images.
QUANTILE = 0.01
_BLOCK = 1000


class Neighbours(NamedTuple):
    """The nearest candidate of each query: its Euclidean distance, and its index, int64; both of shape (n,)."""

    distances: np.ndarray
    positions: np.ndarray


def nearest(queries: np.ndarray, candidates: Iterable[np.ndarray], *, own: int | None = None) -> Neighbours:
    """Find the nearest candidate of each query.

    Args:
        queries: (n, D), any numeric type.
        candidates: batches of (m, D), in order.
        own: if the queries are candidates too, the position of the first; an image is not its own neighbour.
    """
    best = np.full(len(queries), np.inf)
    positions = np.zeros(len(queries), dtype=np.int64)
    offset = 0
    for batch in candidates:
        for start in range(0, len(queries), _BLOCK):
            rows = slice(start, start + _BLOCK)
            squares = squared_distances(queries[rows], batch)
            if own is not None:
                numbers = own + np.arange(len(queries))[rows, None]
                squares[numbers == offset + np.arange(len(batch))] = np.inf
            place = squares.argmin(1)
            square = squares[np.arange(len(squares)), place]
            nearer = square < best[rows]
            best[rows] = np.where(nearer, square, best[rows])
            positions[rows] = np.where(nearer, offset + place, positions[rows])
        offset += len(batch)
    return Neighbours(np.sqrt(best), positions)


def share_nearer(name: str, samples: Neighbours, real: Neighbours) -> dict[str, Any]:
    """The share of samples with a neighbour nearer than that of 99 % of real images, as a report entry.

    Among training images it is the share of copies. Among the other samples it is the share of duplicates, which is
    large after mode collapse.

    Args:
        name: of the entry.
        samples: nearest training images, or nearest other samples, of the samples.
        real: nearest training images of held-out images, or nearest others among as many real images as samples.
    """
    threshold = float(np.quantile(real.distances, QUANTILE, method="inverted_cdf"))
    share, floor = (float((found.distances <= threshold).mean()) for found in (samples, real))
    count = len(samples.distances)
    low, high = wilson_interval(share, count)
    return {
        "name": name,
        "value": share,
        "standard_error": None,
        "interval_low": low,
        "interval_high": high,
        "floor": floor,
        "n": count,
        "floor_n": len(real.distances),
        "threshold": threshold,
        "median_distance": float(np.median(samples.distances)),
        "floor_median_distance": float(np.median(real.distances)),
    }
