"""Between two images, in the space of x_t: Ho et al. 2020 (arXiv 2006.11239), section 4.3, Fig. 8 and 9."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import SchedulerMixin

from ..seeds import generator_for
from .ddpm import DDPMPipeline
from .pictures import to_uint8
from .samplers import check_starts_midway


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
    class_label: int | str | None = None,
    guidance_scale: float = 1.0,
) -> tuple[np.ndarray, list[int]]:
    """Bring both images to x_t with the same noise, mix the two linearly, and let the chain run back to x_0.

    The noise on the way back is the same for all mixtures too, so that the images of a depth differ by nothing else.

    Args:
        pipeline: with any sampler that can start in the middle of its chain, which is all but PNDM.
        first, second: images in [-1, 1], (C, H, W), of the model's size.
        depths: diffusion steps before the mixing, 0 (no diffusion: the mixtures themselves) to T (all: samples that
            owe nothing to the two images). The nearest that the sampler's chain visits is taken.
        mixtures: lambda in (1 - lambda) x_t + lambda x'_t; 0 gives the reconstruction of `first`, 1 of `second`.
        seed: of the noise.
        num_inference_steps: network calls of the whole chain, of which a depth makes its share; T by default.
        batch_size: images per network call.
        class_label, guidance_scale: of all images, for class-conditional models.

    Returns:
        uint8 images of shape (depths, mixtures, H, W, C), and the depths that were taken.

    Raises:
        ValueError: as `check_interpolation`.
    """
    check_interpolation(pipeline, first, second, depths)
    scheduler = pipeline.scheduler
    steps = num_inference_steps or scheduler.config.num_train_timesteps
    noise = torch.randn(first.shape, generator=generator_for(seed, "interpolation", "way there"))
    rows, taken = [], []
    for depth in depths:
        scheduler.set_timesteps(steps)  # `add_noise` of some samplers asks how far the chain has come
        call = _nearest_call(scheduler, depth)
        t = scheduler.timesteps[call : call + 1].cpu()
        if depth == 0:
            rows.append(to_uint8(_mixed(first, second, mixtures)))
            taken.append(0)
            continue
        x_t = _mixed(*(scheduler.add_noise(image[None], noise[None], t)[0] for image in (first, second)), mixtures)
        images = [
            pipeline(
                generator=[generator_for(seed, "interpolation", "way back") for _ in part],
                num_inference_steps=steps,
                class_labels=class_label,
                guidance_scale=guidance_scale,
                batch_size=len(part),
                latents=part,
                skip_steps=call,
                output_type="np",
            ).images
            for part in x_t.split(batch_size)
        ]
        rows.append((np.concatenate(images) * 255).round().astype(np.uint8))
        taken.append(round(float(t)) + 1)
    return np.stack(rows), taken


def check_interpolation(
    pipeline: DDPMPipeline, first: torch.Tensor, second: torch.Tensor, depths: Sequence[int]
) -> None:
    """Raises ValueError for images of another shape than the model's, a depth outside 0 to T, or PNDM as sampler."""
    size, total = pipeline.unet.config.sample_size, pipeline.scheduler.config.num_train_timesteps
    height, width = (size, size) if isinstance(size, int) else size
    shape = (pipeline.unet.config.in_channels, height, width)
    for name, image in (("first", first), ("second", second)):
        if tuple(image.shape) != shape:
            raise ValueError(f"the {name} image has shape {tuple(image.shape)}; this model has {shape}")
    for depth in depths:
        if not 0 <= depth <= total:
            raise ValueError(f"depth {depth} is outside 0 to {total}, the diffusion steps of this model")
    check_starts_midway(pipeline.scheduler)


def _nearest_call(scheduler: SchedulerMixin, depth: int) -> int:
    """The network call that starts nearest to x_depth, among those that begin a step of a sampler of higher order."""
    timesteps = scheduler.timesteps.tolist()
    return min(range(0, len(timesteps), scheduler.order), key=lambda call: abs(timesteps[call] + 1 - depth))


def _mixed(first: torch.Tensor, second: torch.Tensor, mixtures: Sequence[float]) -> torch.Tensor:
    return torch.stack([torch.lerp(first, second, mixture) for mixture in mixtures])
