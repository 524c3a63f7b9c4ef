"""What the pipeline has to know of a sampler to take its steps."""

from collections.abc import Mapping
from functools import cache
from inspect import signature
from typing import Any

import torch
from diffusers import DDPMScheduler, PNDMScheduler, SchedulerMixin

from ..diffusion.process import LEARNED_VARIANCES

# What there is to choose of dynamic thresholding beside whether.
OF_THRESHOLDING = ("dynamic_thresholding_ratio", "sample_max_value")


def is_unclip(scheduler: SchedulerMixin) -> bool:
    """Whether it is diffusers' `UnCLIPScheduler`, told by its name: whoever has one has imported it."""
    return type(scheduler).__name__ == "UnCLIPScheduler"


def rebuild(scheduler_class: type[SchedulerMixin], scheduler: SchedulerMixin, **changes) -> SchedulerMixin:
    """A scheduler of another class for the same process.

    diffusers replaces values that were not given explicitly by the defaults of the new class. Heun's default is
    another beta schedule, which would give noise, so every value is passed explicitly.
    """
    config = {name: value for name, value in scheduler.config.items() if name != "_use_default_values"}
    if is_unclip(scheduler) and scheduler_class is not type(scheduler):
        config["timestep_spacing"] = "linspace"  # it has no other
    return scheduler_class.from_config({**config, **changes})


def with_thresholding(scheduler: SchedulerMixin, asked: Mapping[str, Any]) -> SchedulerMixin:
    """A scheduler with other settings of dynamic thresholding (Imagen, arXiv 2205.11487, §2.3).

    Args:
        scheduler: one that has them.
        asked: of `thresholding`, `dynamic_thresholding_ratio` and `sample_max_value` those to change. The last is 100
            where it would be 1 or less, stock's default, with which thresholding is static clipping; Imagen has none.

    Raises:
        ValueError: a value is out of range, or not used because there is no thresholding.
    """
    if not asked:
        return scheduler
    settings = {**scheduler.config, **asked}
    for name in asked.keys() - {"thresholding"}:
        if not settings["thresholding"]:
            raise ValueError(f"`{name}` needs `thresholding`: add it, or leave out `{name}`.")
    if not 0 < settings["dynamic_thresholding_ratio"] <= 1:
        given = settings["dynamic_thresholding_ratio"]
        raise ValueError(f"`dynamic_thresholding_ratio` must be above 0 and at most 1, got {given:g}.")
    if "sample_max_value" not in asked and settings["sample_max_value"] <= 1:
        asked = {**asked, "sample_max_value": 100.0}
    elif settings["sample_max_value"] < 1:
        raise ValueError(f"`sample_max_value` must be at least 1, got {settings['sample_max_value']:g}.")
    return rebuild(type(scheduler), scheduler, **asked)


def thresholding_of(config: Mapping[str, Any]) -> dict[str, float]:
    """A scheduler's settings of dynamic thresholding; empty for one without it."""
    return {name: config[name] for name in OF_THRESHOLDING} if config.get("thresholding") else {}


def step_arguments(
    scheduler: SchedulerMixin, number: int, generator: torch.Generator | list[torch.Generator] | None
) -> dict[str, Any]:
    """What `step` takes beside output, timestep and x_t in the step of this number."""
    taken, chain = _taken_by_step(type(scheduler)), scheduler.timesteps
    arguments = {"generator": generator} if "generator" in taken else {}
    if "prev_timestep" in taken:  # `UnCLIPScheduler` does not look for it in its own chain
        arguments["prev_timestep"] = chain[number + 1] if number + 1 < len(chain) else None
    return arguments


@cache
def _taken_by_step(scheduler_class: type[SchedulerMixin]) -> frozenset[str]:
    return frozenset(signature(scheduler_class.step).parameters)


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


def set_steps(scheduler: SchedulerMixin, steps: int) -> None:
    """`set_timesteps`; ValueError for a number with which `UnCLIPScheduler` divides by zero, or repeats a timestep."""
    total = scheduler.config.num_train_timesteps
    if is_unclip(scheduler) and not 2 <= steps <= total:
        raise ValueError(f"`num_inference_steps` must be between 2 and {total} with UnCLIPScheduler, got {steps}.")
    scheduler.set_timesteps(steps)
