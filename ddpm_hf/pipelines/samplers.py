"""The samplers that may finish what a DDPM has learnt, by short name, built from the pipeline's own scheduler."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
from diffusers import DDPMScheduler, PNDMScheduler, SchedulerMixin

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


def make_sampler(name: str, scheduler: SchedulerMixin) -> SchedulerMixin:
    """A sampler for the process of `scheduler`.

    Args:
        name: one of `SAMPLER_NAMES`; "ddpm" is Algorithm 2 of Ho et al. 2020, full or strided.
        scheduler: the scheduler that the pipeline was trained or saved with.

    Raises:
        ValueError: for an unknown name, naming the choices.
    """
    if name == "ddpm":
        return rebuild(LinearDDPMScheduler, scheduler)
    if name not in _DIFFUSERS_SAMPLERS:
        raise ValueError(f"scheduler is {name!r}; choose one of {', '.join(SAMPLER_NAMES)}")
    class_name, settings = _DIFFUSERS_SAMPLERS[name]
    return without_learned_variance(rebuild(getattr(diffusers, class_name), scheduler, **settings))


def sampler_name(class_name: str, config: Mapping[str, Any]) -> str:
    """The short name of a scheduler, by its class and its config; the class where it has none."""
    if class_name in ("DDPMScheduler", LinearDDPMScheduler.__name__):
        return "ddpm"
    fitting = [
        name
        for name, (of_diffusers, settings) in _DIFFUSERS_SAMPLERS.items()
        if of_diffusers == class_name and all(config.get(key) == value for key, value in settings.items())
    ]
    return fitting[-1] if fitting else class_name  # of two that fit, the later asks for more


def choose_timesteps(
    scheduler: SchedulerMixin, num_inference_steps: int | None = None, timesteps: Sequence[int] | None = None
) -> None:
    """Set a chain: of so many steps, at the timesteps given, or, with neither, of all that the model was trained on.

    Raises:
        ValueError: if both are given, or timesteps to a sampler that takes none.
    """
    if timesteps is None:
        total = scheduler.config.num_train_timesteps
        scheduler.set_timesteps(total if num_inference_steps is None else num_inference_steps)
        return
    if num_inference_steps is not None:
        raise ValueError(f"num_inference_steps is {num_inference_steps}, but timesteps are given: leave one out")
    if "timesteps" not in inspect.signature(scheduler.set_timesteps).parameters:
        raise ValueError(f"timesteps cannot be chosen with {type(scheduler).__name__}: it takes only their number")
    scheduler.set_timesteps(timesteps=list(timesteps))


def rebuild(scheduler_class: type[SchedulerMixin], scheduler: SchedulerMixin, **changes) -> SchedulerMixin:
    """A scheduler of another class for the same process.

    diffusers remembers which arguments nobody gave and lets the new class put its own defaults there. Those of Heun
    are another beta schedule: the samples would be noise. So every value is carried over as given.
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
