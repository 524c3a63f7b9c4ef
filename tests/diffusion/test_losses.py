"""Targets, losses and timestep sampling."""

import numpy as np
import pytest
import torch

from ddpm_hf.diffusion.losses import simple_loss, stratified_timesteps, training_target, uniform_timesteps
from ddpm_hf.diffusion.scheduler import LinearDDPMScheduler


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_target_makes_the_prediction_right():
    x_0 = torch.randn(4, 1, 2, 2, generator=generator(0), dtype=torch.float64)
    eps = torch.randn(4, 1, 2, 2, generator=generator(1), dtype=torch.float64)
    timesteps = torch.tensor([0, 10, 500, 999])
    for prediction_type in ("epsilon", "sample", "v_prediction"):
        scheduler = LinearDDPMScheduler(prediction_type=prediction_type)
        target = training_target(scheduler, x_0, eps, timesteps)
        x_t = scheduler.add_noise(x_0, eps, timesteps)
        torch.testing.assert_close(scheduler.predict_original_sample(target, x_t, timesteps), x_0, rtol=0, atol=1e-8)


def test_no_target_for_epsilon_with_zero_terminal_snr():
    with pytest.warns(UserWarning):
        scheduler = LinearDDPMScheduler(rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="rescale_betas_zero_snr"):
        training_target(scheduler, torch.zeros(1), torch.zeros(1), torch.tensor([0]))


def test_simple_loss_is_one_float32_per_image():
    prediction, target = (
        torch.randn(3, 2, 4, 4, generator=generator()),
        torch.randn(3, 2, 4, 4, generator=generator(1)),
    )
    expected = ((prediction.double().numpy() - target.double().numpy()) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(simple_loss(prediction, target).numpy(), expected, rtol=1e-6)
    assert simple_loss(prediction.bfloat16(), target).dtype == torch.float32


@pytest.mark.parametrize("sample", [uniform_timesteps, stratified_timesteps])
def test_timesteps_are_uniform_and_reproducible(sample):
    drawn = torch.stack([sample(64, 10, generator(seed)) for seed in range(500)])
    assert drawn[7].equal(sample(64, 10, generator(7))) and not drawn[7].equal(drawn[8])
    for values in (drawn, drawn[:, 0]):  # all, and one place of the batch
        counts = torch.bincount(values.flatten(), minlength=10).double()
        assert counts.numel() == 10
        expected = values.numel() / 10
        assert float(((counts - expected) ** 2 / expected).sum()) < 33.7  # chi-square with 9 degrees, p = 1e-4


@pytest.mark.parametrize("n, total", [(1, 1000), (7, 1000), (1000, 1000), (64, 10)])
def test_stratified_timesteps_fill_their_strata(n, total):
    timesteps = stratified_timesteps(n, total, generator()).sort().values
    lower = torch.arange(n) * total // n
    upper = -(-(torch.arange(n) + 1) * total // n)
    assert ((lower <= timesteps) & (timesteps < upper)).all()
