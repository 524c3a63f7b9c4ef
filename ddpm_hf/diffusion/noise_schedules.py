"""Noise schedules: the variances beta_t of the forward process, in float64.

Code counts timesteps i = 0 … T-1 where the papers count t = i + 1. The schedules are those of `DDPMScheduler`, under
its names. Note that latent diffusion calls `linear` "sqrt_linear", and `scaled_linear` "linear".
"""

from collections.abc import Mapping
from typing import Any

import torch

COSINE_OFFSET = 0.008
MAX_BETA = 0.999


def linear(num_train_timesteps: int, beta_start: float, beta_end: float) -> torch.Tensor:
    """Evenly spaced betas: 1e-4 to 0.02 at T = 1000 in Ho et al. 2020 (arXiv 2006.11239), §4."""
    return torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)


def scaled_linear(num_train_timesteps: int, beta_start: float, beta_end: float) -> torch.Tensor:
    """Betas whose square roots are evenly spaced: latent diffusion (Rombach et al. 2022, arXiv 2112.10752)."""
    return torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64) ** 2


def sigmoid(num_train_timesteps: int, beta_start: float, beta_end: float) -> torch.Tensor:
    """Betas along a sigmoid from -6 to 6: GeoDiff (Xu et al. 2022, arXiv 2203.02923)."""
    rise = torch.linspace(-6, 6, num_train_timesteps, dtype=torch.float64).sigmoid()
    return rise * (beta_end - beta_start) + beta_start


def cosine_alpha_bar(u: torch.Tensor) -> torch.Tensor:
    """alpha_bar(u) = cos²((u + s)/(1 + s) · π/2), u in [0, 1]: Nichol & Dhariwal 2021 (arXiv 2102.09672), Eq. 17."""
    return torch.cos((u + COSINE_OFFSET) / (1 + COSINE_OFFSET) * torch.pi / 2) ** 2


def laplace_alpha_bar(u: torch.Tensor) -> torch.Tensor:
    """The alpha_bar that diffusers calls `laplace`, u in [0, 1], after Hang et al. 2024 (arXiv 2407.03297).

    The paper's log-SNR goes into √(snr/(1 + snr)), root included, because that is what this name means to every other
    sampler.
    """
    side = torch.copysign(torch.ones_like(u), 0.5 - u)
    snr = torch.exp(-0.5 * side * torch.log(1 - 2 * (0.5 - u).abs() + 1e-6))
    return torch.sqrt(snr / (1 + snr))


def _from_alpha_bar(alpha_bar, num_train_timesteps: int) -> torch.Tensor:
    u = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    return (1 - alpha_bar(u[1:]) / alpha_bar(u[:-1])).clamp(max=MAX_BETA)


def squaredcos_cap_v2(num_train_timesteps: int, beta_start: float, beta_end: float) -> torch.Tensor:
    """The cosine schedule with beta capped at 0.999; it ignores the ends. See `cosine_alpha_bar`."""
    return _from_alpha_bar(cosine_alpha_bar, num_train_timesteps)


def laplace(num_train_timesteps: int, beta_start: float, beta_end: float) -> torch.Tensor:
    """The Laplace schedule with beta capped at 0.999; it ignores the ends. See `laplace_alpha_bar`."""
    return _from_alpha_bar(laplace_alpha_bar, num_train_timesteps)


NOISE_SCHEDULES = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "squaredcos_cap_v2": squaredcos_cap_v2,
    "sigmoid": sigmoid,
    "laplace": laplace,
}

# Their betas are proportional to the ends, so scaling the ends by 1000/T keeps the continuous limit.
_SCALABLE_SCHEDULES = ("linear", "scaled_linear", "sigmoid")


def scaled_ends(
    num_train_timesteps: int, schedule: str, beta_start: float = 0.0001, beta_end: float = 0.02
) -> dict[str, float]:
    """`beta_start` and `beta_end` for T timesteps from those for 1000: scaled by 1000/T if the schedule uses them."""
    scale = 1000 / num_train_timesteps if schedule in _SCALABLE_SCHEDULES else 1.0
    return {"beta_start": beta_start * scale, "beta_end": beta_end * scale}


def rescale_zero_terminal_snr(betas: torch.Tensor) -> torch.Tensor:
    """Betas with no signal at the last timestep: Lin et al. 2023 (arXiv 2305.08891), Algorithm 1.

    √alpha_bar is shifted and scaled to end at 0 and keep its first value.

    Args:
        betas: shape (T,), T ≥ 2, in [0, 1).

    Returns:
        Shape (T,), the last value exactly 1.

    Raises:
        ValueError: for a single timestep, which cannot both keep its value and be 0.
    """
    if len(betas) < 2:
        raise ValueError(f"`rescale_betas_zero_snr` needs at least 2 timesteps, got {len(betas)}.")
    root = torch.cumprod(1 - betas, dim=0).sqrt()
    alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return 1 - torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])


def betas_from_config(config: Mapping[str, Any]) -> torch.Tensor:
    """The betas that a `DDPMScheduler` config describes.

    Args:
        config: holds `num_train_timesteps`, `beta_start`, `beta_end`, `beta_schedule`, `trained_betas` and
            `rescale_betas_zero_snr`, as `DDPMScheduler.config` does.

    Returns:
        float64 tensor of shape (T,) on the CPU.

    Raises:
        ValueError: for an unknown schedule, trained betas that are not a flat list, or zero terminal SNR with T = 1.
    """
    if config["trained_betas"] is not None:
        betas = torch.as_tensor(config["trained_betas"], dtype=torch.float64)
        if betas.ndim != 1:
            raise ValueError(f"`trained_betas` must be a flat list, got shape {tuple(betas.shape)}.")
    elif config["beta_schedule"] in NOISE_SCHEDULES:
        schedule = NOISE_SCHEDULES[config["beta_schedule"]]
        betas = schedule(config["num_train_timesteps"], config["beta_start"], config["beta_end"])
    else:
        choices = ", ".join(NOISE_SCHEDULES)
        raise ValueError(f"`beta_schedule` must be one of {choices}, got {config['beta_schedule']!r}.")
    return rescale_zero_terminal_snr(betas) if config["rescale_betas_zero_snr"] else betas
