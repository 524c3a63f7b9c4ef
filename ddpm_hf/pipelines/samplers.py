"""Samplers by short name, for the process that a model was trained on."""

from collections.abc import Mapping
from typing import Any

import diffusers
import numpy as np
from diffusers import DDPMScheduler, PNDMScheduler, SchedulerMixin

from ..diffusion.noise_schedules import betas_from_config
from ..diffusion.scheduler import LEARNED_VARIANCES, LinearDDPMScheduler

# Short name -> diffusers class and the settings in which its defaults do not suit pixels in [-1, 1].
_DIFFUSERS_SAMPLERS: dict[str, tuple[str, dict]] = {
    "ddim": ("DDIMScheduler", {}),
    "dpm": ("DPMSolverMultistepScheduler", {}),
    "dpm-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm-single": ("DPMSolverSinglestepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    # It averages the slopes at both ends of a step. Under a cosine schedule sigma falls from 20,000 at the last
    # timestep to 10 at the next, where that average misses by a multiple of the image; a leading grid begins below.
    "heun": ("HeunDiscreteScheduler", {"timestep_spacing": "leading"}),
}
SAMPLER_NAMES = ("ddpm", *_DIFFUSERS_SAMPLERS)
FAST_CALLS = 20

# Those that every sampler of diffusers computes. The others are known to DDPM alone.
SHARED_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
_NO_SIGNAL = 1e-10
_BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


def make_sampler(name: str, scheduler: SchedulerMixin) -> SchedulerMixin:
    """A sampler for the process of `scheduler`.

    Args:
        name: one of `SAMPLER_NAMES`; "ddpm" is Algorithm 2 of Ho et al. 2020, full or strided.
        scheduler: the scheduler that the pipeline was trained or saved with.

    Raises:
        ValueError: for an unknown name, naming the choices, or for "pndm" with a network that predicts x_0.
    """
    if name not in SAMPLER_NAMES:
        raise ValueError(f"scheduler is {name!r}; choose one of {', '.join(SAMPLER_NAMES)}")
    process = rebuild(LinearDDPMScheduler, scheduler)
    if name == "ddpm":
        return process
    if name == "pndm" and process.config.prediction_type == "sample":
        others = ", ".join(other for other in SAMPLER_NAMES if other != name)
        raise ValueError(f"scheduler is 'pndm', which takes no network that predicts x_0; choose one of {others}")
    class_name, settings = _DIFFUSERS_SAMPLERS[name]
    changes = {**_betas(process), **settings}
    return without_learned_variance(rebuild(getattr(diffusers, class_name), scheduler, **changes))


def _betas(process: LinearDDPMScheduler) -> dict[str, Any]:
    """What gives a sampler of diffusers the betas of a process: nothing if it finds them itself, else the list.

    Most of them lack some schedules, and those that rescale to zero terminal SNR round the last alpha_bar up to
    2^-24. All but DDIM divide by √alpha_bar: here it ends at 1e-5, less than any picture shows, or where float32 has
    no beta that near to 1, at 2^-12 of the value before it. Nearer to 0, Euler's float32 sums would lose digits.
    """
    config = process.config
    if config.trained_betas is None and not config.rescale_betas_zero_snr and config.beta_schedule in SHARED_SCHEDULES:
        return {}
    betas = betas_from_config(config)
    if process.lacks_terminal_signal:
        before = float((1 - betas[:-1]).prod())
        betas[-1] = min(max(1 - _NO_SIGNAL / before, 0.5), _BELOW_ONE)
    return {"trained_betas": betas.tolist(), "rescale_betas_zero_snr": False}


def make_fast_sampler(scheduler: SchedulerMixin) -> tuple[SchedulerMixin, int]:
    """What `sample.py --fast` draws with: "dpm-sde" at trailing timesteps, and in how many steps.

    Args:
        scheduler: of the pipeline, as `make_sampler` takes it.

    Returns:
        The sampler and its number of steps, `FAST_CALLS`, or T where T is smaller.
    """
    sampler = make_sampler("dpm-sde", scheduler)
    steps = min(FAST_CALLS, scheduler.config.num_train_timesteps)
    return rebuild(type(sampler), sampler, timestep_spacing="trailing"), steps


def sampler_name(class_name: str, config: Mapping[str, Any]) -> str:
    """The short name of a scheduler, by its class and its config; the class where it has none."""
    if class_name in ("DDPMScheduler", LinearDDPMScheduler.__name__):
        return "ddpm"
    fitting = [
        name
        for name, (of_diffusers, settings) in _DIFFUSERS_SAMPLERS.items()
        if of_diffusers == class_name and all(config.get(key) == value for key, value in settings.items())
    ]
    return fitting[-1] if fitting else class_name  # of two that fit, the later has more settings


def rebuild(scheduler_class: type[SchedulerMixin], scheduler: SchedulerMixin, **changes) -> SchedulerMixin:
    """A scheduler of another class for the same process.

    diffusers remembers which arguments were not given, and the new class puts its own defaults there. Heun's are
    another beta schedule: the samples would be noise. So every value is carried over as given.
    """
    config = {name: value for name, value in scheduler.config.items() if name != "_use_default_values"}
    return scheduler_class.from_config({**config, **changes})


def takes_variance(scheduler: SchedulerMixin) -> bool:
    """Whether `step` expects 2C channels. Of diffusers' samplers only DDPM knows what to do with the second half."""
    return isinstance(scheduler, DDPMScheduler) and scheduler.config.variance_type in LEARNED_VARIANCES


def without_learned_variance(scheduler: SchedulerMixin) -> SchedulerMixin:
    """The scheduler itself, or a copy that knows of no learned variance when it could only misread one.

    diffusers' multistep solvers cut the output at three channels when their config says `learned_range`, whatever the
    number of channels of the image. The copy leaves the pipeline's own component as it is.
    """
    if takes_variance(scheduler) or scheduler.config.get("variance_type") not in LEARNED_VARIANCES:
        return scheduler
    return rebuild(type(scheduler), scheduler, variance_type=None)


def check_starts_midway(scheduler: SchedulerMixin) -> None:
    """Raises ValueError for a sampler that can only run its chain from the first step."""
    if isinstance(scheduler, PNDMScheduler):
        raise ValueError(
            "a chain of PNDMScheduler (pndm) cannot start in the middle, because its first steps prepare the others; "
            f"choose another sampler: {', '.join(name for name in SAMPLER_NAMES if name != 'pndm')}"
        )
