"""Samplers by short name, for the process a model was trained on."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import diffusers
import numpy as np
from diffusers import SchedulerMixin

from ..diffusion.noise_schedules import betas_from_config
from ..diffusion.scheduler import LinearDDPMScheduler
from ..steps.sampler import rebuild, without_learned_variance

# Short name -> diffusers class, and settings for pixels in [-1, 1] that differ from its defaults.
_DIFFUSERS_SAMPLERS: dict[str, tuple[str, dict]] = {
    "ddim": ("DDIMScheduler", {}),
    "dpm": ("DPMSolverMultistepScheduler", {}),
    "dpm-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm-single": ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    "deis": ("DEISMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    # It averages the slopes at both ends of a step. With a cosine schedule sigma falls from 20,000 at the last
    # timestep to 10 at the next, where the average is off by a multiple of the image; a leading grid starts below.
    "heun": ("HeunDiscreteScheduler", {"timestep_spacing": "leading"}),
}
SAMPLER_NAMES = ("ddpm", *_DIFFUSERS_SAMPLERS)
FAST_CALLS = 20

# Schedules that every sampler of diffusers supports; only DDPM has the others.
SHARED_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
_NO_SIGNAL = 1e-10
_BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


def make_sampler(name: str, scheduler: SchedulerMixin) -> SchedulerMixin:
    """A sampler for the process of `scheduler`.

    Args:
        name: one of `SAMPLER_NAMES`; "ddpm" is Algorithm 2 of Ho et al. 2020, full or strided.
        scheduler: of the pipeline.

    Raises:
        ValueError: for an unknown name, or for "pndm" with a network that predicts x_0.
    """
    if name not in SAMPLER_NAMES:
        raise ValueError(f"`scheduler` must be one of {', '.join(SAMPLER_NAMES)}, got {name!r}.")
    process = rebuild(LinearDDPMScheduler, scheduler)
    if name == "ddpm":
        return process
    if name == "pndm" and process.config.prediction_type == "sample":
        others = ", ".join(other for other in SAMPLER_NAMES if other != name)
        raise ValueError(f"`scheduler` must be one of {others} for a network that predicts x_0, got 'pndm'.")
    class_name, settings = _DIFFUSERS_SAMPLERS[name]
    if process.config.thresholding and not _thresholds(class_name):
        able = ", ".join(["ddpm", *(known for known, (other, _) in _DIFFUSERS_SAMPLERS.items() if _thresholds(other))])
        raise ValueError(f"`scheduler` must be one of {able} for a model with `thresholding`, got {name!r}.")
    changes = {**_betas(process), **settings}
    return without_learned_variance(rebuild(getattr(diffusers, class_name), scheduler, **changes))


def _betas(process: LinearDDPMScheduler) -> dict[str, Any]:
    """Arguments that give a diffusers sampler the betas of a process; none if it computes the same ones itself.

    Most samplers lack some schedules, and those that rescale to zero terminal SNR round the last alpha_bar up to
    2^-24. All but DDIM divide by √alpha_bar: here it ends at 1e-5, which is invisible, or, where float32 has no beta
    that close to 1, at 2^-12 of the value before. Closer to 0, Euler's float32 sums would lose digits.
    """
    config = process.config
    if config.trained_betas is None and not config.rescale_betas_zero_snr and config.beta_schedule in SHARED_SCHEDULES:
        return {}
    betas = betas_from_config(config)
    if process.lacks_terminal_signal:
        before = float((1 - betas[:-1]).prod())
        betas[-1] = min(max(1 - _NO_SIGNAL / before, 0.5), _BELOW_ONE)
    return {"trained_betas": betas.tolist(), "rescale_betas_zero_snr": False}


def _thresholds(class_name: str) -> bool:
    """Whether a sampler of diffusers has dynamic thresholding; others would ignore it."""
    return "thresholding" in signature(getattr(diffusers, class_name)).parameters


def make_fast_sampler(scheduler: SchedulerMixin) -> tuple[SchedulerMixin, int]:
    """The sampler of `sample.py --fast`, "dpm-sde" at trailing timesteps, and its steps: at most `FAST_CALLS` or T."""
    sampler = make_sampler("dpm-sde", scheduler)
    steps = min(FAST_CALLS, scheduler.config.num_train_timesteps)
    return rebuild(type(sampler), sampler, timestep_spacing="trailing"), steps


def sampler_name(class_name: str, config: Mapping[str, Any]) -> str:
    """The short name of a scheduler from its class and config; the class name if it has none."""
    if class_name in ("DDPMScheduler", LinearDDPMScheduler.__name__, "UnCLIPScheduler"):
        return "ddpm"
    fitting = [
        name
        for name, (of_diffusers, settings) in _DIFFUSERS_SAMPLERS.items()
        if of_diffusers == class_name and all(config.get(key) == value for key, value in settings.items())
    ]
    return fitting[-1] if fitting else class_name  # the last match has the most settings
