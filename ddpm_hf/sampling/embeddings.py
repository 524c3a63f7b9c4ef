"""What DALL·E 2 (Ramesh et al. 2022, arXiv 2204.06125, §3) does with the embedding of a picture: variations, pictures
between two, a picture changed by words, and its reconstruction."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DDIMInverseScheduler
from PIL import Image

from ..pipelines.steps import rebuild
from ..pipelines.unclip import UnclipPipeline
from ..pixels import channels_last, to_levels
from ..seeds import generator_for
from .samplers import make_sampler


def slerp(first: torch.Tensor, second: torch.Tensor, share: float) -> torch.Tensor:
    """A point of the great circle from one vector to the other (Shoemake 1985), of their norm if they have the same.

    Args:
        first, second: (..., E); where they have one direction the point is on the straight line.
        share: of the way, from 0 to 1.
    """
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=-1).clamp(-1, 1)[..., None]
    angle = torch.arccos(cosine)
    weights = torch.sin((1 - share) * angle) / torch.sin(angle), torch.sin(share * angle) / torch.sin(angle)
    on_circle = weights[0] * first + weights[1] * second
    return torch.where(angle < 1e-4, torch.lerp(first, second, share), on_circle)


def changed(pipeline: UnclipPipeline, embedding: torch.Tensor, before: str, after: str, share: float) -> torch.Tensor:
    """An embedding that has gone a share of the way from what one caption says to what another says, (E,).

    The text difference of §3.3: slerp towards the difference of the two text embeddings, which is given the norm of
    the picture's embedding. The paper goes between a quarter and half of the way.
    """
    there, here = pipeline.read([after, before])
    direction = torch.nn.functional.normalize(there - here, dim=0)
    return slerp(embedding, direction * embedding.norm(), share)


def draw_each(
    pipeline: UnclipPipeline, embeddings: Sequence[torch.Tensor], noises: Sequence[Any], **call_arguments: Any
) -> np.ndarray:
    """A picture of each embedding with each noise: uint8 (noises, embeddings, H, W, C).

    Args:
        noises: addresses of random numbers, as `generator_for` takes them; pictures of one differ only in their embedding.
    """
    rows = []
    for address in noises:
        generators = [generator_for(*address) for _ in embeddings]
        images = pipeline(
            image_embeds=list(embeddings), generator=generators, output_type="pt", **call_arguments
        ).images
        rows.append(channels_last(to_levels(images)))
    return np.stack(rows)


@torch.no_grad()
def noise_of(pipeline: UnclipPipeline, picture: Image.Image, embedding: torch.Tensor, steps: int) -> torch.Tensor:
    """The x_T from which DDIM draws about this picture, told its embedding, (1, C, H, W).

    DDIM's steps (Song et al. 2021, arXiv 2010.02502), taken backwards by diffusers' `DDIMInverseScheduler`. The network
    says at x_t what it should say at x_{t+1}: the more steps, the less it matters.
    """
    scheduler = rebuild(DDIMInverseScheduler, pipeline.scheduler, timestep_spacing="trailing", clip_sample=False)
    scheduler.set_timesteps(steps)
    x_t = pipeline.codec.encode({"images": pixels_of(picture)[None]}).to(pipeline.unet.device)
    network, told = pipeline.network.eval(), {"image_embeds": embedding[None]}
    for t in scheduler.timesteps:
        x_t = scheduler.step(network(x_t, t, **told)[:, : x_t.shape[1]], t, x_t).prev_sample
    return x_t


def redrawn(
    pipeline: UnclipPipeline, x_T: torch.Tensor, embeddings: Sequence[torch.Tensor], steps: int
) -> np.ndarray:
    """What DDIM draws from an x_T, (1, C, H, W), for each embedding: uint8 (embeddings, H, W, C)."""
    drawn_with = pipeline.scheduler
    pipeline.scheduler = rebuild(type(make_sampler("ddim", drawn_with)), drawn_with, timestep_spacing="trailing", clip_sample=False)
    try:
        images = pipeline(
            image_embeds=list(embeddings),
            latents=x_T.expand(len(embeddings), -1, -1, -1),
            num_inference_steps=steps,
            guidance_scale=1,
            output_type="pt",
        ).images
    finally:
        pipeline.scheduler = drawn_with
    return channels_last(to_levels(images))
