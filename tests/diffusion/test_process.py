"""The forward process, the posterior and the chains of `LinearDDPMScheduler`, against numpy float64 and diffusers."""

import numpy as np
import pytest
import torch

from ddpm_hf.diffusion.process import PREDICTION_TYPES
from ddpm_hf.diffusion.scheduler import LinearDDPMScheduler

SHAPE = (2, 3, 4, 4)


def alpha_bar_table():
    return np.cumprod(1 - np.linspace(0.0001, 0.02, 1000))


def random_images(seed, shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_batched_timesteps_equal_one_at_a_time():
    timesteps = torch.tensor([0, 999, 500, 1])
    x, eps = random_images(0, (4, 3, 2, 2)), random_images(1, (4, 3, 2, 2))
    for prediction_type in PREDICTION_TYPES:
        s = LinearDDPMScheduler(prediction_type=prediction_type, variance_type="fixed_large")
        for formula in (s.add_noise, s.get_velocity, s.predict_original_sample, s.posterior_mean):
            together = formula(x, eps, timesteps)
            for k, t in enumerate(timesteps):
                for one in (t, int(t), t[None], t.int()[None]):
                    alone = formula(x[k : k + 1], eps[k : k + 1], one)
                    torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-6, atol=1e-6)
        for formula in (s.snr, s.posterior_log_variance, s.model_log_variance, s.previous_timestep):
            assert formula(timesteps).shape == timesteps.shape
            assert formula(timesteps).tolist() == [formula(t).item() for t in timesteps]


def test_forward_process_equals_numpy():
    scheduler, alpha_bar, timesteps = LinearDDPMScheduler(), alpha_bar_table(), torch.arange(1000)
    x_0, eps = random_images(0, (1000, 2), torch.float64), random_images(1, (1000, 2), torch.float64)
    signal, noise = np.sqrt(alpha_bar)[:, None], np.sqrt(1 - alpha_bar)[:, None]
    x_t = scheduler.add_noise(x_0, eps, timesteps)
    np.testing.assert_allclose(x_t.numpy(), signal * x_0.numpy() + noise * eps.numpy(), rtol=1e-12)
    v = scheduler.get_velocity(x_0, eps, timesteps)
    np.testing.assert_allclose(v.numpy(), signal * eps.numpy() - noise * x_0.numpy(), rtol=1e-11)
    np.testing.assert_allclose(scheduler.snr(timesteps).numpy(), alpha_bar / (1 - alpha_bar), rtol=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_predictions_there_and_back(schedule):
    timesteps = torch.arange(1000)
    x_0, eps = random_images(0, (1000, 2), torch.float64), random_images(1, (1000, 2), torch.float64)
    for prediction_type in PREDICTION_TYPES:
        scheduler = LinearDDPMScheduler(prediction_type=prediction_type, beta_schedule=schedule)
        x_t = scheduler.add_noise(x_0, eps, timesteps)
        perfect = {"epsilon": eps, "sample": x_0, "v_prediction": scheduler.get_velocity(x_0, eps, timesteps)}
        output = perfect[prediction_type]
        torch.testing.assert_close(scheduler.predict_original_sample(output, x_t, timesteps), x_0, rtol=0, atol=1e-7)


def bayes(alpha_bar_t, alpha_bar_previous, x_0, x_t):
    """q(x_prev | x_t, x_0) as the product of two Gaussians: q(x_t | x_prev) and q(x_prev | x_0)."""
    alpha = alpha_bar_t / alpha_bar_previous
    precision = alpha / (1 - alpha) + 1 / (1 - alpha_bar_previous)
    mean = np.sqrt(alpha) * x_t / (1 - alpha) + np.sqrt(alpha_bar_previous) * x_0 / (1 - alpha_bar_previous)
    return mean / precision, np.log(1 / precision)


@pytest.mark.parametrize("chain", [list(range(999, -1, -1)), [999, 666, 333, 0], [900, 11, 10, 3]])
def test_posterior_is_bayes_rule(chain):
    scheduler, alpha_bar = LinearDDPMScheduler(), alpha_bar_table()
    scheduler.set_timesteps(timesteps=chain)
    t = torch.tensor(chain[:-1])
    x_0, x_t = random_images(0, (len(t), 1), torch.float64), random_images(1, (len(t), 1), torch.float64)
    mean, log_variance = bayes(alpha_bar[chain[:-1]][:, None], alpha_bar[chain[1:]][:, None], x_0.numpy(), x_t.numpy())
    np.testing.assert_allclose(scheduler.posterior_mean(x_0, x_t, t).numpy(), mean, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(scheduler.posterior_log_variance(t, like=x_t).numpy(), log_variance, rtol=1e-10)
    assert scheduler.posterior_log_variance(t).dtype == torch.float32


@pytest.mark.parametrize("chain", [list(range(999, -1, -1)), [999, 600, 40, 7]])
def test_log_variance_of_the_last_step_is_that_of_the_step_before(chain):
    scheduler = LinearDDPMScheduler()
    scheduler.set_timesteps(timesteps=chain)
    last, before = scheduler.posterior_log_variance(torch.tensor([chain[-1], chain[-2]])).tolist()
    assert last == before
    scheduler.set_timesteps(timesteps=[999])
    assert scheduler.posterior_log_variance(999).item() == pytest.approx(np.log(1 - alpha_bar_table()[999]), rel=1e-6)


def test_model_log_variance():
    alpha_bar, t = alpha_bar_table(), torch.tensor([1, 500, 999])
    before = alpha_bar[t - 1]
    log_beta = np.log(1 - alpha_bar[t] / before)
    log_small = np.log((1 - before) / (1 - alpha_bar[t])) + log_beta
    predicted = random_images(0, (3, 1, 2, 2), torch.float64)
    fraction = (predicted.numpy() + 1) / 2
    blend = fraction * log_beta[:, None, None, None] + (1 - fraction) * log_small[:, None, None, None]
    fixed = {
        "fixed_small": log_small,
        "fixed_small_log": log_small,
        "fixed_large": log_beta,
        "fixed_large_log": log_beta,
    }
    for variance_type, expected in fixed.items():
        found = LinearDDPMScheduler(variance_type=variance_type).model_log_variance(t, like=predicted)
        np.testing.assert_allclose(found.flatten().numpy(), expected, rtol=1e-10)
    for variance_type, expected in {"learned": predicted.numpy(), "learned_range": blend}.items():
        scheduler = LinearDDPMScheduler(variance_type=variance_type)
        np.testing.assert_allclose(scheduler.model_log_variance(t, predicted=predicted).numpy(), expected, rtol=1e-10)
        with pytest.raises(ValueError, match="`predicted` must be given"):
            scheduler.model_log_variance(t)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_dynamic_thresholding_is_by_image_for_every_prediction_and_with_a_learned_variance(prediction_type):
    """Saharia et al. 2022 (arXiv 2205.11487), §2.3, in numpy float64; stock caps the percentile."""
    ratio, most, t = 0.9, 3.0, 600
    scheduler = LinearDDPMScheduler(
        prediction_type=prediction_type,
        variance_type="learned_range",
        thresholding=True,
        dynamic_thresholding_ratio=ratio,
        sample_max_value=most,
    )
    # The largest values of x_0: within the range, above it, and above the cap.
    ranges = np.array([0.5, 2.0, 40.0])[:, None, None, None]
    x_t, variance = random_images(0, (3, 2, 4, 4), torch.float64), random_images(2, (3, 2, 4, 4), torch.float64)
    x_0 = random_images(1, (3, 2, 4, 4), torch.float64).numpy()
    x_0 *= ranges / np.abs(x_0).max((1, 2, 3), keepdims=True)
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[t]
    eps = (x_t.numpy() - alpha_bar**0.5 * x_0) / (1 - alpha_bar) ** 0.5
    outputs = {"sample": x_0, "epsilon": eps, "v_prediction": alpha_bar**0.5 * eps - (1 - alpha_bar) ** 0.5 * x_0}
    percentile = np.quantile(np.abs(x_0).reshape(3, -1), ratio, axis=1).clip(1, most)[:, None, None, None]
    expected = x_0.clip(-percentile, percentile) / percentile
    assert percentile[0] == 1 < percentile[1] < percentile[2] == most and np.abs(expected).max() == 1
    output = torch.cat([torch.from_numpy(outputs[prediction_type]), variance], dim=1)
    together = scheduler.step(output, t, x_t).pred_original_sample
    np.testing.assert_allclose(together.numpy(), expected, atol=1e-9)
    alone = [scheduler.step(output[k : k + 1], t, x_t[k : k + 1]).pred_original_sample for k in range(3)]
    assert torch.cat(alone).equal(together)


def test_clipping():
    x_0 = torch.tensor([[0.5, -3.0, 2.0], [0.1, 0.2, 1.5]])[:, :, None, None]
    plain = LinearDDPMScheduler(clip_sample_range=2.0)
    assert plain.clip_original_sample(x_0).flatten(1).tolist()[0] == [0.5, -2.0, 2.0]
    assert LinearDDPMScheduler(clip_sample=False).clip_original_sample(x_0).equal(x_0)
    # Dynamic thresholding at the largest value: each image is divided by its own maximum.
    dynamic = LinearDDPMScheduler(thresholding=True, dynamic_thresholding_ratio=1.0, sample_max_value=10.0)
    expected = x_0 / torch.tensor([3.0, 1.5])[:, None, None, None]
    torch.testing.assert_close(dynamic.clip_original_sample(x_0), expected)
