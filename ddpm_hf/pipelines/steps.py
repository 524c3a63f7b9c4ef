"""What the pipeline has to know of a sampler to take its steps."""

from diffusers import DDPMScheduler, PNDMScheduler, SchedulerMixin

from ..diffusion.process import LEARNED_VARIANCES


def rebuild(scheduler_class: type[SchedulerMixin], scheduler: SchedulerMixin, **changes) -> SchedulerMixin:
    """A scheduler of another class for the same process.

    diffusers replaces values that were not given explicitly by the defaults of the new class. Heun's default is
    another beta schedule, which would give noise, so every value is passed explicitly.
    """
    config = {name: value for name, value in scheduler.config.items() if name != "_use_default_values"}
    return scheduler_class.from_config({**config, **changes})


def takes_variance(scheduler: SchedulerMixin) -> bool:
    """Whether `step` expects 2C channels; of diffusers' samplers only DDPM does."""
    return isinstance(scheduler, DDPMScheduler) and scheduler.config.variance_type in LEARNED_VARIANCES


def without_learned_variance(scheduler: SchedulerMixin) -> SchedulerMixin:
    """The scheduler, or a copy without the learned variance if it could only misread one.

    diffusers' multistep solvers cut the output at three channels for `learned_range`, whatever the number of channels
    of the image. The pipeline's own component stays unchanged.
    """
    if takes_variance(scheduler) or scheduler.config.get("variance_type") not in LEARNED_VARIANCES:
        return scheduler
    return rebuild(type(scheduler), scheduler, variance_type=None)


def check_starts_midway(scheduler: SchedulerMixin) -> None:
    """Raises ValueError for a sampler whose chain must start at its first step."""
    if isinstance(scheduler, PNDMScheduler):
        raise ValueError("`scheduler` must be one that can start midway, such as ddpm, ddim or dpm, got 'pndm'.")
