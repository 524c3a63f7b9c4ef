"""How near vectors are to the middle of those of a kind."""

import numpy as np

# Cosines that differ by less are equal, because features are float32.
RESOLUTION = 1e-6
_AT_ONCE = 256


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (n, D) of length 1, float64."""
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def centroids(vectors: np.ndarray, kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of vectors (n, D) of the kinds (n,) 0 to C - 1, each of which there is.

    Returns:
        Of each kind, float64 (C, D); and for each vector that of the others of its kind, float64 (n, D), or itself if
        there are no others.
    """
    vectors, counts = np.asarray(vectors, dtype=np.float64), np.bincount(kinds)
    sums = np.zeros((len(counts), vectors.shape[1]))
    np.add.at(sums, kinds, vectors)
    others = counts[kinds, None] - 1
    return sums / counts[:, None], np.where(others > 0, (sums[kinds] - vectors) / np.maximum(others, 1), vectors)


def nearness(
    vectors: np.ndarray, own: np.ndarray, centres: np.ndarray, kinds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How near vectors (n, D) are to what they shall be near to.

    Args:
        own: that, (n, D).
        centres: of all kinds, (C, D).
        kinds: of `own`, (n,): of the centre that it takes the place of.

    Returns:
        The cosine, float64 (n,); and 1 where no other centre is nearer, float64 (n,), which equally near ones share.
    """
    cosines, first, centres = [], [], unit(centres)
    for start in range(0, len(vectors), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        each = unit(vectors[some])
        mine, others = (each * unit(own[some])).sum(1), each @ centres.T
        others[np.arange(len(each)), kinds[some]] = -np.inf
        above, equal = (others > mine[:, None] + RESOLUTION).any(1), np.abs(others - mine[:, None]) <= RESOLUTION
        cosines.append(mine)
        first.append(~above / (1 + equal.sum(1)))
    return np.concatenate(cosines), np.concatenate(first)
