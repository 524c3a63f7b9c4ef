"""Bits/dim of sets of images against closed forms, and what they may not depend on."""

import csv

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from scipy.stats import norm

from ddpm_hf.codecs.pixels import PixelCodec
from ddpm_hf.diffusion.bound import VariationalBound
from ddpm_hf.diffusion.scheduler import LinearDDPMScheduler
from ddpm_hf.evaluation.likelihood import (
    bound_of,
    draw_terms,
    measure_likelihood,
    term_chances,
    write_images,
    write_terms,
)

T = 60
ALPHA_BAR = np.cumprod(1 - np.linspace(0.01, 0.15, T))
MEAN, STD = 0.1, 0.3
LN2 = np.log(2)
CODEC = PixelCodec((2, 3, 3))


def gain(a):
    """k in E[x_0 | x_t] = MEAN + k (x_t - √a MEAN), for data N(MEAN, STD²)."""
    return np.sqrt(a) * STD**2 / (a * STD**2 + 1 - a)


def linear_network(x_t, timesteps):
    """E[x_0 | x_t] of that data."""
    a = torch.from_numpy(ALPHA_BAR)[timesteps].reshape(-1, 1, 1, 1)
    k = torch.from_numpy(gain(a.numpy()))
    return (MEAN + k * (x_t - a.sqrt() * MEAN)).float()


@pytest.fixture
def bound():
    scheduler = LinearDDPMScheduler(num_train_timesteps=T, beta_start=0.01, beta_end=0.15, prediction_type="sample")
    return VariationalBound(scheduler, clip=None)


def gaussian_images(count):
    generator = np.random.default_rng(0)
    pixels = np.rint((MEAN + STD * generator.standard_normal((count, 2, 3, 3)) + 1) * 127.5).clip(0, 255)
    return torch.from_numpy(pixels.astype(np.uint8))


def batches(images, size):
    rows = torch.arange(len(images)) + 100
    return [{"images": i, "rows": r} for i, r in zip(images.split(size), rows.split(size), strict=True)]


def expected(images):
    """L_T, and every term with its square error of x_0, in expectation over the noise; numpy, float64."""
    x_0 = images.numpy().astype(np.float64) / 127.5 - 1
    before = np.append(1.0, ALPHA_BAR[:-1])
    beta = 1 - ALPHA_BAR / before
    small = (1 - before) / (1 - ALPHA_BAR) * beta
    k = gain(ALPHA_BAR)
    # x̂_0 - x_0 = (k√a - 1)(x_0 - MEAN) + k√(1-a) eps
    error = (1 - k * np.sqrt(ALPHA_BAR)) ** 2 * ((x_0 - MEAN) ** 2).mean() + k**2 * (1 - ALPHA_BAR)
    kl = before[1:] * (beta[1:] / (1 - ALPHA_BAR[1:])) ** 2 * error[1:] / (2 * small[1:]) / LN2
    a = ALPHA_BAR[-1]
    prior = 0.5 * (a * (x_0**2).mean() + (1 - a) - 1 - np.log(1 - a)) / LN2
    # The decoder's mean is x̂_0(x_1), its variance that of the second step; by quadrature for each of 256 pixels.
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    values, counts = np.unique(x_0, return_counts=True)
    a = ALPHA_BAR[0]
    mean = MEAN + k[0] * (np.sqrt(a) * (values[:, None] - MEAN) + np.sqrt(1 - a) * nodes)
    scale = np.sqrt(small[1])
    far, half = -np.abs(values[:, None] - mean) / scale, 1 / 255 / scale  # in the left tail, where cdf is exact
    mass = norm.cdf(far + half) - norm.cdf(far - half)
    mass[values < -0.999] = norm.cdf((values[0] - mean[0]) / scale + half)
    mass[values > 0.999] = norm.sf((values[-1] - mean[-1]) / scale - half)
    decoder = float(counts @ (-np.log2(mass) @ weights / weights.sum()) / counts.sum())
    return prior, np.append(decoder, kl)[::-1], error[::-1]


def test_every_term_of_gaussian_images(bound):
    images = gaussian_images(400)
    found = measure_likelihood(bound, linear_network, batches(images, 150), CODEC, batch_size=1000)
    prior, terms, error = expected(images)
    assert found.prior.mean() == pytest.approx(prior, abs=1e-6)
    assert (found.counts == 400).all() and (found.sent == found.terms).all()
    # Within 4.5 standard errors each, and in the mean as often within one as they should be.
    deviation = (found.terms - terms) / found.term_errors
    assert np.abs(deviation).max() < 4.5
    assert 0.5 < np.sqrt((deviation**2).mean()) < 1.5
    np.testing.assert_allclose(found.x_0_mse, error, rtol=0.05)
    # The scatter over images is that of their contents too, so the sum is checked by its own noise alone.
    assert found.value == pytest.approx(prior + terms.sum(), abs=4 * np.sqrt((found.term_errors**2).sum()))
    record = found.record()
    assert record["rate"] + record["distortion"] == pytest.approx(record["value"])
    assert record["distortion"] == pytest.approx(terms[-1], abs=4 * found.term_errors[-1])


@pytest.mark.parametrize("num_terms", [1, 8])
def test_drawn_terms_estimate_the_sum_without_bias(bound, num_terms):
    images = gaussian_images(3000)
    found = measure_likelihood(
        bound, linear_network, batches(images, 1000), CODEC, num_terms=num_terms, batch_size=4000
    )
    prior, terms, error = expected(images)
    assert found.counts.sum() == 3000 * num_terms
    assert abs(found.value - prior - terms.sum()) < 4 * found.standard_error
    # So are its two parts, and each term by itself.
    for part, truth in ((found.distortion, terms[-1]), (found.bits - found.distortion, prior + terms[:-1].sum())):
        assert abs(part.mean() - truth) < 4 * part.std(ddof=1) / np.sqrt(3000)
    assert found.sent.sum() + found.prior.mean() == pytest.approx(found.value)
    assert np.abs((found.terms - terms) / found.term_errors)[found.counts > 30].max() < 4.5
    np.testing.assert_allclose(found.x_0_mse[found.counts > 300], error[found.counts > 300], rtol=0.15)


def test_chances_are_better_than_none(bound):
    chances = term_chances(bound, 0.25)
    assert chances.sum() == pytest.approx(1) and chances.min() > 0.05 / T
    _, terms, _ = expected(gaussian_images(500))
    # Variance of one draw of a sum of terms L with chances q: Σ L²/q - (Σ L)².
    scatter = (terms**2 / chances).sum() - terms.sum() ** 2
    assert scatter < 0.1 * ((terms**2).sum() * T - terms.sum() ** 2)
    single = VariationalBound(bound.scheduler, timesteps=[T - 1])
    assert term_chances(single, 0.25).tolist() == [1.0]


def test_draws_follow_their_chances():
    chances = np.array([0.5, 0.05, 0.25, 0.2])
    generators = [torch.Generator().manual_seed(seed) for seed in range(20_000)]
    places, weights = draw_terms(chances, 3, generators)
    share = np.bincount(places.numpy().ravel(), minlength=4) / places.numel()
    np.testing.assert_allclose(share, chances, atol=4 * np.sqrt(0.25 / places.numel()))
    np.testing.assert_allclose(weights.numpy() * 3 * chances[places.numpy()], 1)
    # The first fills half of the scale: one or two of three evenly spaced points fall on it, never none.
    assert set((places == 0).sum(1).tolist()) == {1, 2}


def test_standard_error_is_the_scatter_of_repeated_estimates(bound):
    images = gaussian_images(100)
    repeated = [
        measure_likelihood(bound, linear_network, batches(images, 100), CODEC, num_terms=3, seed=seed)
        for seed in range(60)
    ]
    scatter = np.std([found.value for found in repeated], ddof=1)
    stated = np.mean([found.standard_error for found in repeated])
    # The images are the same each time; what their contents add to the stated error is small beside that of the draws.
    assert stated == pytest.approx(scatter, rel=0.35)


@pytest.mark.parametrize("num_terms", [None, 5])
def test_batches_leave_no_trace(bound, num_terms):
    images = gaussian_images(11)
    options = {"num_terms": num_terms, "seed": 3}
    whole = measure_likelihood(bound, linear_network, batches(images, 11), CODEC, batch_size=500, **options)
    # Other batches, in reverse.
    parts = measure_likelihood(bound, linear_network, batches(images, 4)[::-1], CODEC, batch_size=3, **options)
    assert whole.rows.tolist() == parts.rows.tolist() == list(range(100, 111))
    np.testing.assert_allclose(whole.bits, parts.bits, rtol=1e-5)
    np.testing.assert_allclose(whole.terms, parts.terms, rtol=1e-4, atol=1e-7)
    assert whole.counts.tolist() == parts.counts.tolist()
    other = measure_likelihood(bound, linear_network, batches(images, 11), CODEC, num_terms=num_terms, seed=4)
    assert np.abs(other.bits - whole.bits).max() > 1e-3


def test_labels_reach_the_network(tiny_pipeline):
    pipeline = tiny_pipeline(num_classes=3, num_train_timesteps=10)
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = {"images": images, "rows": torch.arange(6)}
    found = [
        measure_likelihood(
            bound_of(pipeline),
            pipeline.network.eval(),
            [batch | {"class_labels": torch.full((6,), label)}],
            pipeline.codec,
            pipeline.conditions,
        ).bits
        for label in (0, 0, 2)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).min() > 1e-6


def test_a_learned_variance_needs_twice_the_channels(tiny_pipeline):
    pipeline = tiny_pipeline(learned_variance=True)
    assert bound_of(pipeline).scheduler.config.variance_type == "learned_range"
    plain = tiny_pipeline()
    plain.scheduler = pipeline.scheduler
    with pytest.raises(ValueError, match="must have 6 output channels .*'learned_range', got 3"):
        bound_of(plain)
    with pytest.raises(ValueError, match="`cdf` must be one of erf, tanh, got 'probit'"):
        bound_of(pipeline, cdf="probit")


def test_the_bound_of_a_learned_variance_is_that_of_any_sampler_with_it(tiny_text_pipeline):
    pipeline = tiny_text_pipeline(variance_type="learned_range", num_train_timesteps=10)
    images = torch.arange(384, dtype=torch.uint8).view(2, 3, 8, 8)
    batch = {"rows": torch.arange(2), "images": images, "captions": ["a red apple", ""]}

    def bits():
        return measure_likelihood(
            bound_of(pipeline), pipeline.network, [batch], pipeline.codec, pipeline.conditions
        ).bits

    expected = bits()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    np.testing.assert_array_equal(bits(), expected)


def test_what_has_no_bound_is_refused(bound):
    images = gaussian_images(3)
    with pytest.raises(ValueError, match="`num_terms` must be between 1 and 60, got 61"):
        measure_likelihood(bound, linear_network, batches(images, 3), CODEC, num_terms=61)
    with pytest.raises(ValueError, match="no images to measure"):
        measure_likelihood(bound, linear_network, [], CODEC)

    def broken(x_t, timesteps):
        return torch.where(timesteps.reshape(-1, 1, 1, 1) == 7, torch.nan, linear_network(x_t, timesteps))

    with pytest.raises(ValueError, match="3 of 3 images is NaN or infinite, first in row 100"):
        measure_likelihood(bound, broken, batches(images, 3), CODEC)


def test_tables(bound, tmp_path):
    images = gaussian_images(5)
    found = measure_likelihood(bound, linear_network, batches(images, 5), CODEC)
    write_terms(found, tmp_path / "terms.csv")
    write_images(found, tmp_path / "images.csv")
    with (tmp_path / "terms.csv").open() as lines:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)]
    assert [row["timestep"] for row in rows] == list(range(T - 1, -1, -1))
    # Fig. 5: the more bits are sent the better is the picture, and what is missing at the end is the decoder's.
    rates, distortions = (np.array([row[name] for row in rows]) for name in ("rate", "distortion_rmse"))
    assert (np.diff(rates) > 0).all() and rates[0] == pytest.approx(found.prior.mean(), rel=1e-6)
    assert rates[-1] == pytest.approx(found.record()["rate"], rel=1e-6)
    assert distortions[0] == pytest.approx(127.5 * np.sqrt(found.x_0_mse[0]), rel=1e-6)
    assert (distortions[:10].mean() > distortions[-10:].mean()) and (distortions < 255).all()
    with (tmp_path / "images.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [int(row["row"]) for row in rows] == list(range(100, 105))
    assert np.mean([float(row["bits_per_dim"]) for row in rows]) == pytest.approx(found.value, rel=1e-6)
    one = measure_likelihood(bound, linear_network, batches(images[:1], 1), CODEC, num_terms=2)
    write_terms(one, tmp_path / "terms.csv")
    with (tmp_path / "terms.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert sum(row["n"] == "0" and row["bits_per_dim"] == row["distortion_rmse"] == "" for row in rows) == T - 2
    assert float(rows[-1]["rate"]) == pytest.approx(one.record()["rate"], rel=1e-6) and one.standard_error is None
