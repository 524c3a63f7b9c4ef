"""Distances between two sets of images by their features: pure functions of arrays, float64.

Features are (n, D) arrays; which network made them is the business of `features.py`.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

_BLOCK = 1000  # rows of a matrix of pairs that are in memory at once


class GaussianStatistics:
    """Mean and covariance of features, batch by batch and over several processes, in float64.

    Args:
        dimension: D.
    """

    def __init__(self, dimension: int):
        self.count = 0
        self.mean = np.zeros(dimension)
        self._scatter = np.zeros((dimension, dimension))  # Σ (x - mean)(x - mean)ᵀ

    def add(self, features: np.ndarray) -> "GaussianStatistics":
        """Take in features (n, D); n may be 0."""
        for block in _blocks(features):
            block = np.asarray(block, dtype=np.float64)
            mean = block.mean(0)
            centred = block - mean
            self._take_in(len(block), mean, centred.T @ centred)
        return self

    def merge(self, other: "GaussianStatistics") -> "GaussianStatistics":
        """Take in what another one has seen."""
        if other.count:
            self._take_in(other.count, other.mean, other._scatter)
        return self

    def _take_in(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        """Chan, Golub and LeVeque 1979: sums about the mean, which lose no digits when the mean is large."""
        total = self.count + count
        shift = mean - self.mean
        self._scatter += scatter + np.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance, (D, D). ValueError for fewer than two images."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, there are {self.count}")
        return self._scatter / (self.count - 1)


def frechet_distance(first: GaussianStatistics, second: GaussianStatistics) -> float:
    """The squared Fréchet distance of two Gaussians, Heusel et al. 2017 (arXiv 1706.08500), Eq. 6.

    |m_1 - m_2|² + tr(C_1 + C_2 - 2 (C_1 C_2)^½), where the last trace is that of the square root of the symmetric
    C_1^½ C_2 C_1^½: real, and as exact for singular covariances.
    """
    values, vectors = np.linalg.eigh(first.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    overlap = np.sqrt(np.linalg.eigvalsh(root @ second.covariance @ root).clip(min=0)).sum()
    shift = first.mean - second.mean
    return float(shift @ shift + np.trace(first.covariance) + np.trace(second.covariance) - 2 * overlap)


def kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The unbiased squared MMD with the kernel (xᵀy/D + 1)³, "KID" of Bińkowski et al. 2018 (arXiv 1801.01401), §4.

    Over all pairs instead of subsets of 1,000: the same expectation, with less scatter. May be negative.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"a kernel distance needs at least 2 images of both kinds: {len(first)} and {len(second)}")

    first, second = (np.asarray(x, dtype=np.float64) for x in (first, second))
    between = _kernel_sum(first, second) / (len(first) * len(second))
    return _mean_of_pairs(first) + _mean_of_pairs(second) - 2 * between


def _mean_of_pairs(features: np.ndarray) -> float:
    """Mean of the kernel over all pairs of two different images."""
    own = float(((np.square(features).sum(1) / features.shape[1] + 1) ** 3).sum())
    return (_kernel_sum(features, features) - own) / (len(features) * (len(features) - 1))


def _kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
    return sum(float(((block @ b.T / a.shape[1] + 1) ** 3).sum()) for block in _blocks(a))


def manifold_scores(samples: np.ndarray, reference: np.ndarray, neighbours: int = 5) -> dict[str, float]:
    """Precision, recall, density and coverage.

    Precision is the share of samples that lie nearer to some reference image than its k-th neighbour, recall the
    reverse (Kynkäänniemi et al. 2019, arXiv 1904.06991). Density is how many such balls a sample lies in, over k;
    coverage the share of reference images in whose ball there is a sample (Naeem et al. 2020, arXiv 2002.09797). An
    image is not its own neighbour.

    Args:
        samples, reference: features, (n, D) and (m, D), each more than `neighbours`.
        neighbours: k, for all four.

    Returns:
        "precision", "recall", "density" and "coverage".
    """
    for name, features in (("samples", samples), ("reference images", reference)):
        if len(features) <= neighbours:
            raise ValueError(f"{len(features)} {name} are too few: precision and recall need more than {neighbours}")
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
    # Of the k + 1 nearest one is the image itself.
    return np.concatenate([np.partition(squared_distances(b, features), k, axis=1)[:, k] for b in _blocks(features)])


def class_score(probabilities: np.ndarray) -> float:
    """exp E KL(p(class | image) ‖ p(class)), the Inception score of Salimans et al. 2016 (arXiv 1606.03498), unsplit.

    Args:
        probabilities: (n, classes), each row with sum 1.

    Returns:
        From 1 (all alike or all undecided) to the number of classes.
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
    """Standard errors of what `measure` finds, by measuring random halves again and again.

    The bootstrap draws with repeats, and repeats make distances of covariances and of neighbours another quantity.
    Halves have none, and scatter about the whole as the whole does about the truth, by 1/(n/2) - 1/n = 1/n (the
    delete-half jackknife, Shao and Wu 1989). Of large sets smaller parts are taken, and the scatter is scaled.

    Args:
        measure: called with indices of samples and of reference images, sorted.
        samples, reference: how many there are.
        resamples: how many times.
        seed: of the choice.
        most: images of a kind in a part.
        mapper: calls a function on each of several things, as `map` does, perhaps with many hands.

    Returns:
        The standard error of each number that `measure` returns.
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
