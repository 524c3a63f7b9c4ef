"""What DALL·E 2 (Ramesh et al. 2022, arXiv 2204.06125, §3) does with the embedding of a picture: pictures between two,
a picture changed by words, and its reconstruction."""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from PIL import Image

from ..data.transforms import resize_and_crop, to_channels, to_pixels
from ..pixels import channels_last, to_levels
from ..seeds import generator_for
from ..steps.sampler import rebuild
from .samplers import make_sampler

if TYPE_CHECKING:
    from ..pipelines.unclip import UnclipPipeline


def slerp(first: torch.Tensor, second: torch.Tensor, share: float) -> torch.Tensor:
    """A vector on the arc from one to the other (Shoemake 1985), of their norm if they have the same.

    Args:
        first, second: (..., E); of one direction, the straight line is taken.
        share: of the way, from 0 to 1.
    """
    angle = torch.arccos(torch.cosine_similarity(first, second, dim=-1).clamp(-1, 1))[..., None]
    along = (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * second) / torch.sin(angle)
    return torch.where(angle < 1e-4, torch.lerp(first, second, share), along)


def embed(pipeline: "UnclipPipeline", picture: Image.Image) -> torch.Tensor:
    """What its CLIP sees in a picture of any size, (E,)."""
    pixels = torch.from_numpy(to_pixels(to_channels(picture, 3)))
    return pipeline.prior.codec.look(pixels[None])[0]


def fitted(pipeline: "UnclipPipeline", picture: Image.Image) -> np.ndarray:
    """A picture of any size, resized and cropped as for training of the last stage, uint8 (C, H, W)."""
    channels, *size = pipeline.stages[-1].image_shape
    return to_pixels(to_channels(resize_and_crop(picture, tuple(size)), channels))


def towards(pipeline: "UnclipPipeline", z: torch.Tensor, before: str, after: str) -> torch.Tensor:
    """Where an embedding leads that changes from what one caption says to what another says, of the norm of z, (E,).

    The text difference of §3.3. The paper goes up to a quarter or half of the way there, along `slerp`.

    Raises:
        ValueError: the captions say the same, which leads nowhere.
    """
    (prompt,) = pipeline.prior.conditions
    there, here = prompt.of_words([after, before], z.device)["proj_embedding"]
    if torch.allclose(there, here, rtol=1e-4):
        raise ValueError(f"the captions must say different things, and to CLIP {before!r} and {after!r} are the same")
    return torch.nn.functional.normalize(there - here, dim=0) * z.norm()


def draw_between(
    pipeline: "UnclipPipeline",
    ends: tuple[torch.Tensor, torch.Tensor],
    shares: Sequence[float],
    rows: int,
    seed: int,
    **call: Any,
) -> np.ndarray:
    """Pictures of embeddings between two, uint8 (rows, shares, H, W, C): all of a row are drawn with the same noise.

    Args:
        ends: (E,) each.
        shares: of the way, for `slerp`.
        call: arguments of the pipeline call.
    """
    between = [slerp(*ends, share) for share in shares]
    drawn = []
    for row in range(rows):
        noise = [generator_for(seed, "interpolation", row) for _ in between]
        images = pipeline(
            image_embeds=between, batch_size=len(between), generator=noise, output_type="pt", **call
        ).images
        drawn.append(channels_last(to_levels(images)))
    return np.stack(drawn)


@torch.no_grad()
def noise_of(pipeline: "UnclipPipeline", picture: Image.Image, z: torch.Tensor, steps: int) -> torch.Tensor:
    """The x_T from which DDIM comes back to a picture, told its embedding z: float32 (1, C, H, W).

    DDIM's steps (Song et al. 2021, arXiv 2010.02502) taken backwards, by diffusers. The network is asked at x_t for
    what it should say at the next x_t, so that more steps come back nearer.

    Args:
        picture: of any size, as for `fitted`.
        steps: a divisor of T, as for `check_ddim`.
    """
    known = inspect.signature(DDIMInverseScheduler.__init__).parameters
    process = {name: value for name, value in _ddim(pipeline, steps).config.items() if name in known}
    scheduler, network = DDIMInverseScheduler(**process), pipeline.network.eval()
    scheduler.set_timesteps(steps)
    pixels = torch.from_numpy(fitted(pipeline.alone(), picture))
    x_t = pipeline.codec.encode({"images": pixels[None]}).to(pipeline.device)
    for t in scheduler.timesteps:
        output = network(x_t, t, image_embeds=z[None].to(x_t.device))
        x_t = scheduler.step(output[:, : x_t.shape[1]], t, x_t).prev_sample
    return x_t


def redraw(
    pipeline: "UnclipPipeline",
    x_T: torch.Tensor,
    embeddings: Sequence[torch.Tensor],
    steps: int,
    seed: int = 0,
) -> np.ndarray:
    """What DDIM draws for embeddings, uint8 (n, H, W, C), from an x_T for each or one for all, (n or 1, C, H, W).

    An upsampler then enlarges them, all with the same noise, which the seed chooses.
    """
    decoder = pipeline.decoder
    decoder.scheduler = _ddim(pipeline, steps)
    images = decoder(
        image_embeds=embeddings,
        latents=x_T.expand(len(embeddings), -1, -1, -1),
        num_inference_steps=steps,
        guidance_scale=1,
        output_type="pt",
    ).images
    if pipeline.upsampler is not None:
        noise = [generator_for(seed, "enlarging") for _ in embeddings]
        images = pipeline(small=images, num_inference_steps=steps, generator=noise, output_type="pt").images
    return channels_last(to_levels(images))


def check_ddim(pipeline: "UnclipPipeline", steps: int) -> None:
    """Raises ValueError for steps of DDIM that do not divide T, which diffusers rounds otherwise there and back."""
    total = pipeline.scheduler.config.num_train_timesteps
    if total % steps:
        raise ValueError(f"`num_inference_steps` must divide the {total} timesteps for DDIM, got {steps}.")


def _ddim(pipeline: "UnclipPipeline", steps: int) -> DDIMScheduler:
    """It takes the same timesteps there and back, and does not clip, which could not be undone."""
    check_ddim(pipeline, steps)
    ddim = make_sampler("ddim", pipeline.scheduler)
    return rebuild(type(ddim), ddim, timestep_spacing="trailing", clip_sample=False, thresholding=False)
