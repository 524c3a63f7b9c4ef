"""Fitted timesteps against all chains there are, and against the closed form of a process that has one."""

from itertools import combinations

import numpy as np
import pytest
import torch

from ddpm_hf import LinearDDPMScheduler
from ddpm_hf.diffusion.timestep_fit import fit_timesteps


def cost(chain: list[int], log_snr: np.ndarray, errors: np.ndarray) -> float:
    """∫ (error held since the last call - error) d log SNR by the trapezoidal rule, one interval at a time."""
    total = 0.0
    for t, s in zip(chain, chain[1:], strict=False):
        for u in range(s, t):
            total += (errors[t] - (errors[u] + errors[u + 1]) / 2) * (log_snr[u] - log_snr[u + 1])
    return total


@pytest.mark.parametrize("count", [2, 3, 5, 11, 12])
def test_no_chain_costs_less(count):
    random = np.random.default_rng(count)
    log_snr = np.sort(random.normal(size=12) * 4)[::-1]
    errors = np.sort(random.random(12))
    fitted = fit_timesteps(np.exp(log_snr), errors, count)
    every = [[11, *reversed(between), 0] for between in combinations(range(1, 11), count - 2)]
    assert cost(fitted, log_snr, errors) == pytest.approx(min(cost(chain, log_snr, errors) for chain in every))
    assert len(fitted) == count and fitted[0] == 11 and fitted == sorted(set(fitted), reverse=True)


def test_errors_in_proportion_to_log_snr_want_even_octaves():
    """Then a step of width w costs w²/2, and by convexity the best chain has equal steps."""
    log_snr = np.linspace(5, -5, 101)
    assert fit_timesteps(np.exp(log_snr), -log_snr + 5, 6) == [100, 80, 60, 40, 20, 0]


def test_all_timesteps_and_noisy_errors():
    errors = np.array([0.1, 0.3, 0.2, 0.9])  # as measured on few images
    assert fit_timesteps(np.exp([3.0, 1, 0, -4]), errors, 4) == [3, 2, 1, 0]
    assert fit_timesteps(np.exp([3.0, 1, 0, -4]), errors, 2) == [3, 0]
    assert fit_timesteps(np.exp([3.0, 1, 0, -4]), errors, 1) == [3]


def test_zero_terminal_snr():
    scheduler = LinearDDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    snr = scheduler.snr(torch.arange(1000)).numpy()
    assert snr[-1] == 0
    chain = fit_timesteps(snr, 1 / (1 + snr), 20)
    assert chain[0] == 999 and len(chain) == 20


@pytest.mark.parametrize("count", [0, 4])
def test_impossible_counts(count):
    with pytest.raises(ValueError, match=f"count is {count}; choose 1 to 3 timesteps"):
        fit_timesteps(np.ones(3), np.ones(3), count)
