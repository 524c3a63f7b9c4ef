"""Distances of feature sets against closed forms, brute force, scipy and torchmetrics."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from ddpm_hf.statistics.distances import (
    GaussianStatistics,
    class_score,
    frechet_distance,
    kernel_distance,
    manifold_scores,
    resampled_error,
    squared_distances,
)


def features(n, dimension, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dimension))


def with_moments(n, mean, covariance, seed=0):
    """Features whose sample mean and unbiased covariance are exactly these."""
    x = features(n, len(mean), seed)
    x = x - x.mean(0)
    whitened = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return whitened @ np.linalg.cholesky(covariance).T + mean


def statistics(x):
    return GaussianStatistics(x.shape[1]).add(x)


def random_covariance(dimension, seed):
    x = features(dimension, dimension, seed)
    return x @ x.T + 0.1 * np.eye(dimension)


# Statistics


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_statistics_over_shards_are_those_of_the_whole(shards, offset):
    x = features(101, 7) * np.arange(1, 8) + offset
    parts = [GaussianStatistics(7) for _ in range(shards)]
    for k, batch in enumerate(np.array_split(x, 11)):
        parts[k % shards].add(batch.astype(np.float64)).add(batch[:0])
    whole = GaussianStatistics(7)
    for part in [GaussianStatistics(7), *parts]:
        whole.merge(part)
    assert whole.count == 101
    np.testing.assert_allclose(whole.mean, x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(whole.covariance, np.cov((x - offset).T), rtol=1e-7 if offset else 1e-12, atol=1e-8)


def test_one_image_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        _ = statistics(np.zeros((1, 3))).covariance


# Fréchet distance


def test_frechet_distance_of_axis_aligned_gaussians():
    a, b = np.array([4.0, 1.0, 0.25]), np.array([1.0, 9.0, 0.25])
    first = statistics(with_moments(50, np.zeros(3), np.diag(a), 1))
    second = statistics(with_moments(70, np.array([1.0, 2.0, -2.0]), np.diag(b), 2))
    # |m|² + Σ (√a - √b)²
    assert frechet_distance(first, second) == pytest.approx(9 + 1 + 4, rel=1e-10)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_any_gaussians():
    covariances = [random_covariance(12, seed) for seed in (1, 2)]
    first, second = (statistics(with_moments(40, np.full(12, s), covariances[s], s)) for s in (0, 1))
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = 12 + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_with_fewer_images_than_features():
    # In the span of one direction each: |m|² + a + b, since the product of the covariances has no trace.
    x, y = np.zeros((3, 10)), np.zeros((3, 10))
    x[:, 0], y[:, 1] = [-1, 0, 1], [-2, 0, 2]
    assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(1 + 4, rel=1e-7)


# Kernel distance


def test_kernel_distance_of_one_dimensional_gaussians():
    # With D = 1 it is 3 (E x - E y)² + 3 (E x² - E y²)² + (E x³ - E y³)².
    m, s = 0.4, 1.3
    expected = 3 * m**2 + 3 * (m**2 + s**2 - 1) ** 2 + (m**3 + 3 * m * s**2) ** 2
    found = [kernel_distance(m + s * features(40, 1, seed), features(30, 1, seed + 10_000)) for seed in range(1500)]
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / np.sqrt(1500))


def test_kernel_distance_is_unbiased_on_equal_sets():
    found = [kernel_distance(features(20, 5, seed), features(25, 5, seed + 10_000)) for seed in range(600)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(600)
    assert min(found) < 0 < max(found)


def test_kernel_distance_by_brute_force():
    x, y = features(2300, 3, 1), features(7, 3, 2)

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    few = x[:9]
    within = [np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (few, y)]
    expected = sum(within) - 2 * np.mean([kernel(a, b) for a in few for b in y])
    assert kernel_distance(few, y) == pytest.approx(expected, rel=1e-10)
    # More rows than fit a block, and the same array twice, whose own pairs count once.
    assert kernel_distance(x, x[::-1]) == pytest.approx(kernel_distance(x, x), rel=1e-9)
    assert kernel_distance(x, x) < 0
    with pytest.raises(ValueError, match="2 images per set, got 9 and 1"):
        kernel_distance(few, y[:1])


def test_agreement_with_torchmetrics():
    reason = "the comparison with torchmetrics needs an extra: pip install torchmetrics"
    fid, kid, inception = (
        pytest.importorskip(f"torchmetrics.image.{name}", reason=reason) for name in ("fid", "kid", "inception")
    )

    class Flatten(torch.nn.Module):
        num_features = 12

        def forward(self, x):
            return x.flatten(1)

    pixels = np.random.default_rng(0).integers(0, 256, (2, 60, 3, 2, 2)).astype(np.uint8)
    pixels[1, :, 0] //= 2
    x, y = (part.reshape(60, 12).astype(np.float64) for part in pixels)
    tensors = [torch.from_numpy(part) for part in pixels]
    distance = fid.FrechetInceptionDistance(feature=Flatten(), input_img_size=(3, 2, 2)).set_dtype(torch.float64)
    distance.update(tensors[0].double(), real=True)
    distance.update(tensors[1].double(), real=False)
    assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(float(distance.compute()), rel=1e-5)
    kernel = kid.KernelInceptionDistance(feature=Flatten(), subsets=1, subset_size=60)
    kernel.update(tensors[0].double(), real=True)
    kernel.update(tensors[1].double(), real=False)
    assert kernel_distance(x, y) == pytest.approx(float(kernel.compute()[0]), rel=1e-5)
    score = inception.InceptionScore(feature=Flatten(), splits=1)
    score.update((tensors[0] / 64).double())
    logits = x / 64
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert class_score(probabilities) == pytest.approx(float(score.compute()[0]), rel=1e-5)


# Manifolds


def test_precision_and_recall_of_separate_clusters():
    left, right = features(60, 4, 1) * 0.1, features(60, 4, 2) * 0.1 + 10
    reference = np.concatenate([left, right])
    half = manifold_scores(features(80, 4, 3) * 0.1, reference)
    assert half["precision"] > 0.9 and half["recall"] == pytest.approx(0.5, abs=0.06)
    assert half["coverage"] == pytest.approx(0.5, abs=0.06)
    junk = manifold_scores(features(40, 4, 4) + 100, reference)
    assert junk == {"precision": 0.0, "recall": 0.0, "density": 0.0, "coverage": 0.0}
    mixed = manifold_scores(np.concatenate([reference, features(120, 4, 4) * 0.1 + 100]), reference)
    assert mixed["precision"] == 0.5 and mixed["recall"] == mixed["coverage"] == 1.0
    same = manifold_scores(reference + 1e-9, reference)
    assert same["precision"] == same["recall"] == same["coverage"] == 1.0


def test_manifold_scores_by_brute_force():
    samples, reference, k = features(1100, 2, 1) * 1.5, features(25, 2, 2), 3

    def radius(points, i):
        return np.sort([np.linalg.norm(points[i] - other) for other in points])[k]

    inner = [radius(reference, j) for j in range(25)]
    outer = [np.sort(np.linalg.norm(samples - sample, axis=1))[k] for sample in samples]
    distances = np.array([[np.linalg.norm(a - b) for b in reference] for a in samples])
    inside = distances <= inner
    assert manifold_scores(samples, reference, k) == pytest.approx(
        {
            "precision": inside.any(1).mean(),
            "recall": (distances <= np.array(outer)[:, None]).any(0).mean(),
            "density": inside.sum(1).mean() / k,
            "coverage": inside.any(0).mean(),
        }
    )
    with pytest.raises(ValueError, match="Precision and recall need more than 3 samples, got 3"):
        manifold_scores(samples[:3], reference, k)


def test_distances_of_near_duplicates_are_exact():
    x = np.random.default_rng(0).integers(0, 256, (5, 784)).astype(np.uint8)
    y = x.copy()
    y[:, 0] ^= 1
    assert np.diag(squared_distances(x, y)).tolist() == [1.0] * 5
    assert np.diag(squared_distances(x, x)).tolist() == [0.0] * 5


# Class score


def test_class_score():
    assert class_score(np.full((6, 4), 0.25)) == pytest.approx(1)
    assert class_score(np.eye(4).repeat(3, axis=0)) == pytest.approx(4)
    assert class_score(np.tile([1.0, 0.0], (5, 1))) == pytest.approx(1)
    # Two kinds of image: KL to the mean (0.5, 0.5) is log 2 - H(0.9).
    expected = 2 * 0.9**0.9 * 0.1**0.1
    assert class_score(np.array([[0.9, 0.1], [0.1, 0.9]])) == pytest.approx(expected)


# Errors


@pytest.mark.parametrize("most", [5000, 60])
def test_error_of_a_mean_is_that_of_the_textbook(most):
    x, y = features(400, 1, 1), 3 * features(200, 1, 2)

    def measure(i, j):
        return {"difference": float(x[i].mean() - y[j].mean()), "first": float(x[i].mean())}

    found = resampled_error(measure, 400, 200, resamples=600, most=most)
    textbook = {"difference": np.sqrt(x.var() / 400 + y.var() / 200), "first": x.std() / 20}
    for name, expected in textbook.items():
        assert found[name] == pytest.approx(expected, rel=0.12)


def test_error_of_a_distance_is_its_scatter_over_new_samples():
    def distance(x, y):
        return frechet_distance(statistics(x), statistics(y))

    scatter = np.std([distance(features(200, 3, s), 0.5 + features(200, 3, s + 9000)) for s in range(300)], ddof=1)
    x, y = features(200, 3, 1), 0.5 + features(200, 3, 2)
    found = resampled_error(lambda i, j: {"d": distance(x[i], y[j])}, 200, 200, resamples=300)
    assert found["d"] == pytest.approx(scatter, rel=0.3)
