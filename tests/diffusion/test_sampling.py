"""Sampling Gaussian data with its optimal predictor: every step is linear, so mean and variance are known exactly."""

import functools

import numpy as np
import pytest
import torch
from gaussian_data import MEAN, STD, optimal_gain, optimal_network, optimal_variance
from scipy import stats

from ddpm_hf.diffusion.process import PREDICTION_TYPES, VARIANCE_TYPES
from ddpm_hf.diffusion.scheduler import LinearDDPMScheduler

ALPHA_BAR = np.cumprod(1 - np.linspace(0.0001, 0.02, 1000))
CHAINS = {"full": tuple(range(999, -1, -1)), "strided": (999, 700, 400, 150, 40, 5, 0), "odd": (999, 350, 60)}
# The full chain once for each kind of variance, the short ones with every prediction too.
CASES = [(p, v, c) for p in PREDICTION_TYPES for v in VARIANCE_TYPES for c in ("strided", "odd")]
CASES += [(PREDICTION_TYPES[i % 3], v, "full") for i, v in enumerate(VARIANCE_TYPES)]


@functools.cache
def exact_reverse_log_variances(chain):
    """log Var[x_prev | x_t] for Gaussian data, as a table by timestep."""
    table = np.zeros(1000)
    for t, previous in zip(chain, [*chain[1:], -1], strict=True):
        now, before = ALPHA_BAR[t], ALPHA_BAR[previous] if previous >= 0 else 1.0
        beta = 1 - now / before
        variance = (1 - before) / (1 - now) * beta + before * (beta / (1 - now)) ** 2 * optimal_variance(now)
        table[t] = np.log(variance)
    return table


def sampler(prediction_type, variance_type, chain):
    scheduler = LinearDDPMScheduler(
        prediction_type=prediction_type, variance_type=variance_type, clip_sample=False
    )  # fmt: skip
    scheduler.set_timesteps(timesteps=chain)
    second = {"learned": exact_reverse_log_variances(chain), "learned_range": 0.5}.get(variance_type)
    network = optimal_network(ALPHA_BAR, prediction_type, second)

    def step(x, t, generator):
        return scheduler.step(network(x, torch.full((len(x),), t)), t, x, generator=generator).prev_sample

    return step


def expected_step(t, previous, variance_type, chain):
    """a, b and the variance in x_prev = a x_t + b + noise."""
    now, before = ALPHA_BAR[t], ALPHA_BAR[previous] if previous >= 0 else 1.0
    beta, gain = 1 - now / before, optimal_gain(ALPHA_BAR[t])
    of_x_0, of_x_t = np.sqrt(before) * beta / (1 - now), np.sqrt(now / before) * (1 - before) / (1 - now)
    small = (1 - before) / (1 - now) * beta
    if previous < 0:
        variance = 0.0
    elif variance_type == "learned":
        variance = np.exp(exact_reverse_log_variances(chain)[t])
    elif variance_type == "learned_range":
        variance = beta**0.75 * small**0.25
    else:
        variance = beta if "large" in variance_type else small
    return of_x_t + of_x_0 * gain, of_x_0 * MEAN * (1 - gain * np.sqrt(now)), variance


@pytest.mark.parametrize(("prediction_type", "variance_type", "chain"), CASES)
def test_mean_and_variance_after_every_step(prediction_type, variance_type, chain):
    chain = CHAINS[chain]
    step = sampler(prediction_type, variance_type, chain)
    mean, variance, expected_mean, expected_variance = 0.0, 1.0, 0.0, 1.0
    generators = [torch.Generator(), torch.Generator()]
    inputs = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    for t, previous in zip(chain, [*chain[1:], -1], strict=True):
        # Both rows get the noise of one seed, and the noise itself is known.
        low, high = step(inputs, t, [generator.manual_seed(t) for generator in generators]).flatten().tolist()
        z = torch.randn(1, 1, 1, 1, generator=generators[0].manual_seed(t), dtype=torch.float64).item()
        a, b, noise_variance = expected_step(t, previous, variance_type, chain)
        noise = (low - b) / z
        assert high - low == pytest.approx(a, abs=1e-10)
        assert noise == pytest.approx(np.sqrt(noise_variance), rel=1e-8, abs=1e-9)
        mean, variance = (high - low) * mean + low - noise * z, (high - low) ** 2 * variance + noise**2
        expected_mean, expected_variance = a * expected_mean + b, a**2 * expected_variance + noise_variance
        assert mean == pytest.approx(expected_mean, abs=1e-9)
        assert variance == pytest.approx(expected_variance, abs=1e-9)
        if variance_type == "learned" and previous >= 0:
            # With the true reverse process, x_t of the distribution q(x_t) goes to x_prev of q(x_prev).
            now, before = ALPHA_BAR[t], ALPHA_BAR[previous]
            reached = (high - low) ** 2 * (now * STD**2 + 1 - now) + noise**2
            assert (high - low) * np.sqrt(now) * MEAN + low - noise * z == pytest.approx(np.sqrt(before) * MEAN)
            assert reached == pytest.approx(before * STD**2 + 1 - before)


@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
def test_samples_have_the_distribution_of_the_formulas(variance_type):
    chain = CHAINS["strided"]
    step, generator = sampler("v_prediction", variance_type, chain), torch.Generator().manual_seed(0)
    x = torch.randn(20000, 1, 1, 1, generator=generator, dtype=torch.float64)
    mean, variance = 0.0, 1.0
    for t, previous in zip(chain, [*chain[1:], -1], strict=True):
        x = step(x, t, generator)
        a, b, noise_variance = expected_step(t, previous, variance_type, chain)
        mean, variance = a * mean + b, a**2 * variance + noise_variance
        assert stats.kstest(x.flatten().numpy(), "norm", args=(mean, np.sqrt(variance))).pvalue > 1e-3


@pytest.mark.parametrize("chain", [[999, 998], [500, 499], [700, 200], [5, 2]])
def test_posterior_is_bayes_rule_on_a_grid(chain):
    # q(x_prev | x_t, x_0) ∝ q(x_t | x_prev) q(x_prev | x_0), normalized and integrated on a fine grid.
    t, previous = chain
    x_0, x_t = 0.4, -0.2
    alpha, before = ALPHA_BAR[t] / ALPHA_BAR[previous], ALPHA_BAR[previous]
    grid = np.linspace(-8, 8, 400001)
    log_density = -((x_t - np.sqrt(alpha) * grid) ** 2) / (2 * (1 - alpha))
    log_density -= (grid - np.sqrt(before) * x_0) ** 2 / (2 * (1 - before))
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    mean = (grid * density).sum()
    variance = ((grid - mean) ** 2 * density).sum()
    scheduler, images = LinearDDPMScheduler(), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    scheduler.set_timesteps(timesteps=chain)
    found = scheduler.posterior_mean(x_0 * images, x_t * images, t)
    assert found.item() == pytest.approx(mean, abs=1e-10)
    log_variance = scheduler.posterior_log_variance(t, like=images)
    assert log_variance.item() == pytest.approx(np.log(variance), abs=1e-8)
