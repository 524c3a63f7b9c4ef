"""What training descends on: targets, one loss value per image, and how timesteps are drawn.

Ho et al. 2020 (arXiv 2006.11239), Algorithm 1. Losses have shape (batch,); the caller reduces.
"""

import torch

from .scheduler import EPSILON_WITHOUT_SIGNAL, LinearDDPMScheduler


def training_target(
    scheduler: LinearDDPMScheduler, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """What the network should output for x_t: eps, x_0 or v, by `scheduler.config.prediction_type`.

    Args:
        original_samples, noise: x_0 and eps, (batch, channels, height, width).
        timesteps: (batch,), in [0, T).

    Raises:
        ValueError: if epsilon is to be predicted with zero terminal SNR.
    """
    if scheduler.config.prediction_type == "epsilon":
        if scheduler.config.rescale_betas_zero_snr:
            raise ValueError(EPSILON_WITHOUT_SIGNAL)
        return noise
    if scheduler.config.prediction_type == "sample":
        return original_samples
    return scheduler.get_velocity(original_samples, noise, timesteps)


def simple_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L_simple, Eq. 14: the mean square error of each image, float32 or float64, shape (batch,)."""
    prediction, target = (x if x.dtype == torch.float64 else x.float() for x in (prediction, target))
    return (prediction - target).square().flatten(1).mean(1)


def uniform_timesteps(n: int, num_train_timesteps: int, generator: torch.Generator) -> torch.Tensor:
    """n independent timesteps, uniform on 0 … T-1: int64, shape (n,), on the generator's device."""
    return torch.randint(0, num_train_timesteps, (n,), generator=generator, device=generator.device)


def stratified_timesteps(n: int, num_train_timesteps: int, generator: torch.Generator) -> torch.Tensor:
    """n timesteps, one in each of n equal strata of [0, T), in random order; each by itself is uniform.

    Over a batch the mean of the loss then varies less than with independent timesteps (the low-discrepancy sampler of
    Kingma et al. 2021, arXiv 2107.00630, uses one shared offset instead of one in each stratum).

    Returns:
        int64, shape (n,), on the generator's device.
    """
    strata = torch.randperm(n, generator=generator, device=generator.device)
    uniform = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)
    timesteps = ((strata + uniform) * num_train_timesteps / n).long()
    return timesteps.clamp(max=num_train_timesteps - 1)  # for a uniform number that rounds up to 1
