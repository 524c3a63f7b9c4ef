"""Interpolate two images in the space of x_t: Ho et al. 2020 (arXiv 2006.11239), section 4.3, Fig. 8 and 9."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import SchedulerMixin

from ..pipelines.ddpm import DDPMPipeline
from ..pixels import channels_last, to_levels
from ..seeds import generator_for
from ..steps.sampler import check_starts_midway


def interpolate(
    pipeline: DDPMPipeline,
    first: torch.Tensor,
    second: torch.Tensor,
    depths: Sequence[int],
    mixtures: Sequence[float],
    *,
    seed: int = 0,
    num_inference_steps: int | None = None,
    batch_size: int = 64,
    **call_arguments: Any,
) -> tuple[np.ndarray, list[int]]:
    """Diffuse both images to x_t with the same noise, mix them linearly, and denoise to x_0.

    All mixtures share the noise of the reverse process too, so the images of one depth differ only in their mixture.

    Args:
        pipeline: with any sampler except PNDM, which cannot start in the middle of its chain.
        first, second: x_0 of two images, (C, H, W).
        depths: diffusion steps before mixing, from 0 (the mixtures themselves) to T (samples independent of the two
            images). Each is rounded to the nearest one in the sampler's chain.
        mixtures: lambda in (1 - lambda) x_t + lambda x'_t; 0 gives the reconstruction of `first`, 1 of `second`.
        num_inference_steps: steps of the whole chain, of which a depth takes its share; T by default.
        batch_size: images per network call.
        call_arguments: for the pipeline call (`class_labels`, `guidance_scale`, …), the same for all images.

    Returns:
        uint8 images of shape (depths, mixtures, H, W, C), and the rounded depths.

    Raises:
        ValueError: as in `check_interpolation`.
    """
    check_interpolation(pipeline, first, second, depths)
    scheduler = pipeline.scheduler
    steps = num_inference_steps or scheduler.config.num_train_timesteps
    noise = torch.randn(first.shape, generator=generator_for(seed, "interpolation", "way there"))
    rows, taken = [], []
    for depth in depths:
        scheduler.set_timesteps(steps)  # `add_noise` of some samplers depends on the position in the chain
        call = _nearest_call(scheduler, depth)
        t = scheduler.timesteps[call : call + 1].cpu()
        if depth == 0:
            rows.append(pipeline.codec.pictures(_mixed(first, second, mixtures)))
            taken.append(0)
            continue
        x_t = _mixed(*(scheduler.add_noise(image[None], noise[None], t)[0] for image in (first, second)), mixtures)
        images = [
            pipeline(
                generator=[generator_for(seed, "interpolation", "way back") for _ in part],
                num_inference_steps=steps,
                batch_size=len(part),
                latents=part,
                skip_steps=call,
                output_type="pt",
                **call_arguments,
            ).images
            for part in x_t.split(batch_size)
        ]
        rows.append(channels_last(to_levels(torch.cat(images))))
        taken.append(round(float(t)) + 1)
    return np.stack(rows), taken


def check_interpolation(
    pipeline: DDPMPipeline, first: torch.Tensor, second: torch.Tensor, depths: Sequence[int]
) -> None:
    """Raises ValueError if an image's shape is not the model's, a depth is outside 0 to T, or the sampler is PNDM."""
    shape, total = pipeline.codec.shape, pipeline.scheduler.config.num_train_timesteps
    for name, image in (("first", first), ("second", second)):
        if tuple(image.shape) != shape:
            raise ValueError(f"`{name}` must have the model's shape {shape}, got {tuple(image.shape)}.")
    for depth in depths:
        if not 0 <= depth <= total:
            raise ValueError(f"`depths` must be between 0 and {total}, got {depth}.")
    check_starts_midway(pipeline.scheduler)


def _nearest_call(scheduler: SchedulerMixin, depth: int) -> int:
    """The network call that starts nearest to x_depth, among those that begin a step of a higher-order sampler."""
    timesteps = scheduler.timesteps.tolist()
    return min(range(0, len(timesteps), scheduler.order), key=lambda call: abs(timesteps[call] + 1 - depth))


def _mixed(first: torch.Tensor, second: torch.Tensor, mixtures: Sequence[float]) -> torch.Tensor:
    return torch.stack([torch.lerp(first, second, mixture) for mixture in mixtures])
