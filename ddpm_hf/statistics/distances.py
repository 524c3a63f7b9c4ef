"""Distances between two sets of image features, (n, D) arrays: pure functions, float64."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

_BLOCK = 1000  # rows of a pairwise matrix in memory at once


class GaussianStatistics:
    """Mean and covariance of features in float64, accumulated over batches and processes.

    Args:
        dimension: D.
    """

    def __init__(self, dimension: int):
        self.count = 0
        self.mean = np.zeros(dimension)
        self._scatter = np.zeros((dimension, dimension))  # Σ (x - mean)(x - mean)ᵀ

    def add(self, features: np.ndarray) -> "GaussianStatistics":
        """Add features (n, D); n may be 0."""
        for block in _blocks(features):
            block = np.asarray(block, dtype=np.float64)
            mean = block.mean(0)
            centred = block - mean
            self._update(len(block), mean, centred.T @ centred)
        return self

    def merge(self, other: "GaussianStatistics") -> "GaussianStatistics":
        """Add the features of another instance."""
        if other.count:
            self._update(other.count, other.mean, other._scatter)
        return self

    def _update(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        """Chan, Golub and LeVeque 1979: sums about the mean, accurate even if the mean is large."""
        total = self.count + count
        shift = mean - self.mean
        self._scatter += scatter + np.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance, (D, D). ValueError for fewer than two images."""
        if self.count < 2:
            raise ValueError(f"A covariance needs at least 2 images, got {self.count}.")
        return self._scatter / (self.count - 1)


def frechet_distance(first: GaussianStatistics, second: GaussianStatistics) -> float:
    """The squared Fréchet distance of two Gaussians, Heusel et al. 2017 (arXiv 1706.08500), Eq. 6.

    |m_1 - m_2|² + tr(C_1 + C_2 - 2 (C_1 C_2)^½). The last trace is computed from the symmetric C_1^½ C_2 C_1^½, which
    keeps it real, and accurate for singular covariances.
    """
    values, vectors = np.linalg.eigh(first.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    overlap = np.sqrt(np.linalg.eigvalsh(root @ second.covariance @ root).clip(min=0)).sum()
    shift = first.mean - second.mean
    return float(shift @ shift + np.trace(first.covariance) + np.trace(second.covariance) - 2 * overlap)


def kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The unbiased squared MMD with the kernel (xᵀy/D + 1)³, "KID" of Bińkowski et al. 2018 (arXiv 1801.01401), §4.

    Over all pairs instead of subsets of 1,000: the same expectation, lower variance. May be negative.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"A kernel distance needs at least 2 images per set, got {len(first)} and {len(second)}.")

    first, second = (np.asarray(x, dtype=np.float64) for x in (first, second))
    between = _kernel_sum(first, second) / (len(first) * len(second))
    return _mean_of_pairs(first) + _mean_of_pairs(second) - 2 * between


def _mean_of_pairs(features: np.ndarray) -> float:
    """Mean of the kernel over all pairs of different images."""
    own = float(((np.square(features).sum(1) / features.shape[1] + 1) ** 3).sum())
    return (_kernel_sum(features, features) - own) / (len(features) * (len(features) - 1))


def _kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
    return sum(float(((block @ b.T / a.shape[1] + 1) ** 3).sum()) for block in _blocks(a))


def manifold_scores(samples: np.ndarray, reference: np.ndarray, neighbours: int = 5) -> dict[str, float]:
    """Precision, recall, density and coverage.

    Each image has a ball with the distance to its k-th neighbour as radius; an image is not its own neighbour.
    Precision is the share of samples inside the ball of some reference image, recall the share of reference images
    inside the ball of some sample (Kynkäänniemi et al. 2019, arXiv 1904.06991). Density is the mean number of
    reference balls a sample lies in, divided by k; coverage is the share of reference balls that contain a sample
    (Naeem et al. 2020, arXiv 2002.09797).

    Args:
        samples, reference: features, (n, D) and (m, D), each more than `neighbours`.
        neighbours: k, for all four.

    Returns:
        "precision", "recall", "density" and "coverage".
    """
    for name, features in (("samples", samples), ("reference images", reference)):
        if len(features) <= neighbours:
            raise ValueError(f"Precision and recall need more than {neighbours} {name}, got {len(features)}.")
    radii, own_radii = (_neighbour_distances(features, neighbours) for features in (reference, samples))
    inside, recalled, nearest = [], np.zeros(len(reference), dtype=bool), np.full(len(reference), np.inf)
    start = 0
    for block in _blocks(samples):
        squares = squared_distances(block, reference)
        inside.append((squares <= radii).sum(1))
        recalled |= (squares <= own_radii[start : start + len(block), None]).any(0)
        nearest = np.minimum(nearest, squares.min(0))
        start += len(block)
    inside = np.concatenate(inside)
    return {
        "precision": float((inside > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(inside.mean() / neighbours),
        "coverage": float((nearest <= radii).mean()),
    }


def squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances of all pairs, (n, m), float64, at least 0."""
    first, second = (np.asarray(x, dtype=np.float64) for x in (first, second))
    lengths = np.square(first).sum(1)[:, None] + np.square(second).sum(1)
    return np.maximum(lengths - 2 * (first @ second.T), 0)


def _neighbour_distances(features: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each image to its k-th neighbour among the others, (n,)."""
    # k, not k - 1: the nearest is the image itself.
    return np.concatenate([np.partition(squared_distances(b, features), k, axis=1)[:, k] for b in _blocks(features)])


def class_score(probabilities: np.ndarray) -> float:
    """exp E KL(p(class | image) ‖ p(class)), the Inception score of Salimans et al. 2016 (arXiv 1606.03498), unsplit.

    Args:
        probabilities: (n, classes), rows sum to 1.

    Returns:
        1 (all images get the same probabilities) to the number of classes.
    """
    mean = probabilities.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(probabilities > 0, probabilities * np.log(probabilities / mean), 0)
    return float(np.exp(terms.sum(1).mean()))


def resampled_error(
    measure: Callable[[np.ndarray, np.ndarray], dict[str, float]],
    samples: int,
    reference: int,
    *,
    resamples: int = 50,
    seed: int = 0,
    most: int = 5000,
    mapper: Callable[[Callable, Iterable], Iterable] = map,
) -> dict[str, float]:
    """Standard errors of what `measure` returns, from its spread over random halves (delete-half jackknife).

    A bootstrap would draw images repeatedly, which biases distances based on covariances and neighbours. Halves have
    no repeats, and their variance about the full set, 1/(n/2) - 1/n = 1/n, is that of the full set about the truth
    (Shao and Wu 1989). Large sets use smaller parts, with the spread scaled accordingly.

    Args:
        measure: called with sorted indices of samples and of reference images.
        samples, reference: their numbers.
        resamples: number of random halves.
        most: the maximum number of images of either set in a part.
        mapper: `map`, or a parallel version of it.
    """
    share = min(0.5, most / max(samples, reference))

    def measure_part(number: int) -> dict[str, float]:
        generator = np.random.default_rng((seed, number))
        parts = (generator.permutation(n)[: round(share * n)] for n in (samples, reference))
        return measure(*(np.sort(part) for part in parts))

    found = list(mapper(measure_part, range(resamples)))
    scale = np.sqrt(share / (1 - share))
    return {name: float(np.std([values[name] for values in found], ddof=1) * scale) for name in found[0]}


def _blocks(features: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(features), _BLOCK):
        yield features[start : start + _BLOCK]
