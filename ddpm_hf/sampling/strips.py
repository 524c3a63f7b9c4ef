"""The denoising chain as pictures: x_T turning into x_0, or the x_0 predicted on the way."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..diffusion.scheduler import LinearDDPMScheduler
from ..pipelines.ddpm import DDPMPipeline
from ..seeds import image_generators
from ..steps.sampler import rebuild
from .pictures import image_grid

_STRIP_WIDTH, _ANIMATION_WIDTH = 1600, 640
_FRAME_MILLISECONDS, _LAST_FRAME_MILLISECONDS = 100, 2500
_WEBP_QUALITY = 90


def denoising_chain(
    pipeline: DDPMPipeline,
    indices: Sequence[int],
    seed: int,
    num_inference_steps: int,
    frames: int,
    asked: Mapping[str, Sequence[Any]] | None = None,
    *,
    predicted: bool = False,
    **call_arguments,
) -> tuple[np.ndarray, list[int]]:
    """Draw the images with the given indices and keep intermediate steps.

    Args:
        pipeline: with any sampler.
        indices, seed, asked: as in `generate`, which gives the same images.
        num_inference_steps: of the chain.
        frames: how many steps to keep, evenly spaced over the network calls, always including the last, which is the
            image; all if there are fewer.
        predicted: keep the x_0 predicted from x_t instead of x_t, the progressive generation of Ho et al. 2020 (arXiv
            2006.11239), Fig. 6: as computed by the sampler, else by Eq. 15. The last frame is still the image.
        call_arguments: for the pipeline call (`guidance_scale`, …).

    Returns:
        Frames, uint8 of shape (frames, N, H, W, C), [-1, 1] shown as black to white, x_t at unit variance; and the
        numbers of the network calls, from 1, after which they were taken.
    """
    pipeline.scheduler.set_timesteps(num_inference_steps)
    last = len(pipeline.scheduler.timesteps) - 1
    chosen = np.unique(np.linspace(last, 0, min(frames, last + 1)).round().astype(int)).tolist()
    process = rebuild(LinearDDPMScheduler, pipeline.scheduler)
    show, kept = pipeline.codec.pictures, []

    def keep(pipeline: DDPMPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        if not predicted and step - 1 in chosen:
            kept.append(show(tensors["network_input"]))  # at unit variance for any sampler
        elif predicted and step in chosen[:-1]:
            x_0 = tensors["pred_original_sample"]
            if x_0 is None:  # from the multistep solvers, whose timesteps are integers
                x_0 = process.predict_original_sample(tensors["model_output"], tensors["network_input"], int(timestep))
                x_0 = process.clip_original_sample(x_0)
            kept.append(show(x_0))
        if step == last:
            kept.append(show(tensors["latents"]))

    pipeline(
        batch_size=len(indices),
        generator=image_generators(seed, indices),
        num_inference_steps=num_inference_steps,
        output_type="pt",
        callback_on_step_end=keep,
        **(asked or {}),
        **call_arguments,
    )
    return np.stack(kept), [step + 1 for step in chosen]


def save_chain(chain: np.ndarray, strip: Path, animation: Path, columns: int = 9) -> list[int]:
    """Save a chain as a strip, one row per image, and as an animation.

    Args:
        chain: uint8, (frames, N, H, W, C), from `denoising_chain`.
        strip, animation: files to write; the animation is a .gif, exact for grey images, or a .webp, which is smaller
            and not limited to 256 colours.
        columns: frames in the strip, evenly spaced.

    Returns:
        The frames shown in the strip.
    """
    shown = np.unique(np.linspace(0, len(chain) - 1, min(columns, len(chain))).round().astype(int)).tolist()
    rows = chain[shown].swapaxes(0, 1)  # (N, columns, H, W, C)
    _fitted(image_grid(rows.reshape(-1, *chain.shape[2:]), columns=len(shown)), _STRIP_WIDTH).save(strip)
    pictures = [_fitted(image_grid(frame, columns=len(frame)), _ANIMATION_WIDTH) for frame in chain]
    durations = [_FRAME_MILLISECONDS] * (len(pictures) - 1) + [_LAST_FRAME_MILLISECONDS]
    timing = {"duration": durations, "loop": 0}
    pictures[0].save(animation, save_all=True, append_images=pictures[1:], quality=_WEBP_QUALITY, **timing)
    return shown


def _fitted(picture: Image.Image, width: int) -> Image.Image:
    """Shrunk to at most this width: noise does not compress, so large pictures of it would be large files."""
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    return picture
