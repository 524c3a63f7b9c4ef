"""Schedules against closed forms in numpy and against diffusers' own float32 tables."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from ddpm_hf.diffusion.noise_schedules import NOISE_SCHEDULES, betas_from_config, rescale_zero_terminal_snr
from ddpm_hf.diffusion.scheduler import LinearDDPMScheduler

START, END = 0.00085, 0.012


def laplace_alpha_bar(u):
    distance = abs(0.5 - u)
    half_log = 0.5 * math.log(1 - 2 * distance + 1e-6)
    log_snr = -half_log if u <= 0.5 else half_log
    return math.sqrt(1 / (1 + math.exp(-log_snr)))


def cosine_alpha_bar(u):
    return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2


def from_alpha_bar(alpha_bar, total):
    return np.array([min(1 - alpha_bar((i + 1) / total) / alpha_bar(i / total), 0.999) for i in range(total)])


def place(total):
    """i / (T - 1), and 0 for the only timestep of T = 1."""
    return np.arange(total) / max(total - 1, 1)


CLOSED_FORMS = {
    "linear": lambda total: START + (END - START) * place(total),
    "scaled_linear": lambda total: (START**0.5 + (END**0.5 - START**0.5) * place(total)) ** 2,
    "squaredcos_cap_v2": lambda total: from_alpha_bar(cosine_alpha_bar, total),
    "sigmoid": lambda total: START + (END - START) / (1 + np.exp(6 - 12 * place(total))),
    "laplace": lambda total: from_alpha_bar(laplace_alpha_bar, total),
}


@pytest.mark.parametrize("total", [1, 7, 1000])
@pytest.mark.parametrize("name", NOISE_SCHEDULES)
def test_schedule_equals_closed_form(name, total):
    betas = NOISE_SCHEDULES[name](total, START, END)
    assert betas.dtype == torch.float64
    np.testing.assert_allclose(betas.numpy(), CLOSED_FORMS[name](total), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", NOISE_SCHEDULES)
def test_schedule_equals_diffusers(name):
    stock = DDPMScheduler(beta_schedule=name, beta_start=START, beta_end=END)
    ours = LinearDDPMScheduler(beta_schedule=name, beta_start=START, beta_end=END)
    for table in ("betas", "alphas", "alphas_cumprod"):
        assert getattr(ours, table).dtype == torch.float32
        torch.testing.assert_close(getattr(ours, table), getattr(stock, table), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NOISE_SCHEDULES)
def test_zero_terminal_snr(name):
    betas = NOISE_SCHEDULES[name](1000, START, END)
    before = np.sqrt(np.cumprod(1 - betas.numpy()))
    rescaled = rescale_zero_terminal_snr(betas).numpy()
    after = np.sqrt(np.cumprod(1 - rescaled))
    assert rescaled[-1] == 1 and after[-1] == 0
    # An affine map of √alpha_bar that keeps its first value.
    np.testing.assert_allclose(after, before[0] * (before - before[-1]) / (before[0] - before[-1]), rtol=0, atol=1e-9)


def test_trained_betas_are_taken_as_they_are():
    betas = np.array([0.1, 0.3, 0.2])
    scheduler = LinearDDPMScheduler(num_train_timesteps=3, trained_betas=betas)
    np.testing.assert_allclose(scheduler.alphas_cumprod.numpy(), np.cumprod(1 - betas), rtol=1e-6)
    assert LinearDDPMScheduler.from_config(scheduler.config).alphas_cumprod.equal(scheduler.alphas_cumprod)


NAN = float("nan")


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize(
    "betas",
    [[0.1, 1.2], [-0.1, 0.2], [NAN, 0.1], [[0.1, 0.2]], [0, 0.1, 0.2], [0.1, 0.2, 0], [0.1, 1, 0.2], [0.999] * 200],
    ids=["above 1", "below 0", "NaN", "nested", "first 0", "last 0", "1 inside", "alpha_bar underflows"],
)
def test_trained_betas_that_give_no_numbers_are_refused(betas, zero_snr):
    with pytest.raises(ValueError, match="`trained_betas`"):
        LinearDDPMScheduler(
            len(betas), trained_betas=betas, rescale_betas_zero_snr=zero_snr, prediction_type="v_prediction"
        )


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("betas", [[0.1, 0.2, 0.3], [0.3, 1e-12, 1], [0.5, 0.9]])
def test_trained_betas_that_are_taken_give_numbers(betas, zero_snr):
    scheduler = LinearDDPMScheduler(
        len(betas), trained_betas=betas, rescale_betas_zero_snr=zero_snr, prediction_type="v_prediction"
    )
    for name, table in scheduler.coefficients._float64.items():
        assert table.isfinite().all(), name


def test_trained_betas_of_another_length_are_refused_when_used():
    scheduler = LinearDDPMScheduler(trained_betas=[0.1, 0.2])
    with pytest.raises(ValueError, match="`trained_betas` must have `num_train_timesteps=1000` values, got 2"):
        scheduler.add_noise(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.tensor([0]))


def test_unknown_schedule_names_the_choices():
    with pytest.raises(
        ValueError, match="must be one of linear, scaled_linear, squaredcos_cap_v2, .* got 'quadratic'"
    ):
        LinearDDPMScheduler(beta_schedule="quadratic")


def test_zero_terminal_snr_needs_two_timesteps():
    with pytest.raises(ValueError, match="rescale_betas_zero_snr"):
        LinearDDPMScheduler(num_train_timesteps=1, rescale_betas_zero_snr=True, prediction_type="sample")


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "sigmoid"])
def test_for_timesteps_keeps_the_continuous_limit(name):
    def log_signal(total):
        betas = betas_from_config(LinearDDPMScheduler.for_timesteps(total, beta_schedule=name).config)
        return float(torch.log1p(-betas).sum())

    # log alpha_bar_T tends to -1000 times the mean of beta; the first correction is of order 1/T.
    limit = log_signal(2**16)
    assert log_signal(100) == pytest.approx(limit, rel=0.1)
    assert abs(log_signal(1000) - limit) < abs(log_signal(100) - limit) / 8
    at_1000 = LinearDDPMScheduler.for_timesteps(1000, beta_schedule=name)
    assert at_1000.alphas_cumprod.equal(LinearDDPMScheduler(beta_schedule=name).alphas_cumprod)


def test_for_timesteps_leaves_continuous_schedules_alone():
    config = LinearDDPMScheduler.for_timesteps(50, beta_schedule="squaredcos_cap_v2").config
    assert (config.beta_start, config.beta_end) == (0.0001, 0.02)


@pytest.mark.parametrize("total", [1, 20])
def test_for_timesteps_refuses_betas_that_reach_one(total):
    with pytest.raises(ValueError, match="`num_train_timesteps=.*`"):
        LinearDDPMScheduler.for_timesteps(total)
    LinearDDPMScheduler.for_timesteps(21)


def test_for_timesteps_refuses_trained_betas():
    with pytest.raises(ValueError, match="trained_betas"):
        LinearDDPMScheduler.for_timesteps(10, trained_betas=[0.1] * 10)
