"""The samplers that may finish what a DDPM has learnt, by short name, built from the pipeline's own scheduler."""

import diffusers
from diffusers import SchedulerMixin

from ..diffusion.scheduler import LinearDDPMScheduler
from .ddpm import LEARNED_VARIANCES

# Short name -> diffusers class and the settings in which its defaults do not suit pixels in [-1, 1].
_DIFFUSERS_SAMPLERS: dict[str, tuple[str, dict]] = {
    "ddim": ("DDIMScheduler", {}),
    "dpm": ("DPMSolverMultistepScheduler", {}),
    "dpm-single": ("DPMSolverSinglestepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
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
        return LinearDDPMScheduler.from_config(scheduler.config)
    if name not in _DIFFUSERS_SAMPLERS:
        raise ValueError(f"scheduler is {name!r}; choose one of {', '.join(SAMPLER_NAMES)}")
    class_name, settings = _DIFFUSERS_SAMPLERS[name]
    if scheduler.config.get("variance_type") in LEARNED_VARIANCES:
        # They have no use for a learned variance, and those that look for one cut the image at three channels.
        settings = {**settings, "variance_type": None}
    return getattr(diffusers, class_name).from_config(scheduler.config, **settings)
