"""The denoising chain as pictures: how x_T becomes x_0."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..seeds import image_generators
from .ddpm import DDPMPipeline
from .pictures import image_grid

_STRIP_WIDTH, _ANIMATION_WIDTH = 1600, 640
_FRAME_MILLISECONDS, _LAST_FRAME_MILLISECONDS = 100, 2500


def denoising_chain(
    pipeline: DDPMPipeline,
    indices: Sequence[int],
    seed: int,
    num_inference_steps: int,
    frames: int,
    class_labels: Sequence[int | str] | None = None,
) -> tuple[np.ndarray, list[int]]:
    """Draw the images with the given indices and keep what they looked like on the way.

    Args:
        pipeline: with a sampler that makes `num_inference_steps` steps.
        indices, seed: as in `generate`, which gives the same images.
        num_inference_steps: of the chain.
        frames: how many moments of it, evenly spaced from the first step to the last; no more than there are steps.
        class_labels: one per index, for class-conditional models.

    Returns:
        x_t after these steps, uint8 of shape (frames, N, H, W, C), [-1, 1] shown as black to white; and the steps.
    """
    last = num_inference_steps - 1
    chosen = np.unique(np.linspace(0, last, min(frames, num_inference_steps)).round().astype(int)).tolist()
    kept = []

    def keep(pipeline: DDPMPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        if step in chosen:
            images = (tensors["latents"] / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu()
            kept.append((images * 255).round().to(torch.uint8).numpy())

    pipeline(
        batch_size=len(indices),
        generator=image_generators(seed, indices),
        num_inference_steps=num_inference_steps,
        class_labels=class_labels,
        output_type="pt",
        callback_on_step_end=keep,
    )
    return np.stack(kept), [step + 1 for step in chosen]


def save_chain(chain: np.ndarray, strip: Path, animation: Path, columns: int = 9) -> list[int]:
    """Save a chain as a strip, one row per image, and as an animated GIF.

    Args:
        chain: uint8, (frames, N, H, W, C), from `denoising_chain`.
        strip, animation: files to write.
        columns: moments in the strip, evenly spaced.

    Returns:
        Which frames the strip shows.
    """
    shown = np.unique(np.linspace(0, len(chain) - 1, min(columns, len(chain))).round().astype(int)).tolist()
    rows = chain[shown].swapaxes(0, 1)  # (N, moments, H, W, C)
    _fitted(image_grid(rows.reshape(-1, *chain.shape[2:]), columns=len(shown)), _STRIP_WIDTH).save(strip)
    pictures = [_fitted(image_grid(frame, columns=len(frame)), _ANIMATION_WIDTH) for frame in chain]
    durations = [_FRAME_MILLISECONDS] * (len(pictures) - 1) + [_LAST_FRAME_MILLISECONDS]
    pictures[0].save(animation, save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return shown


def _fitted(picture: Image.Image, width: int) -> Image.Image:
    """Noise cannot be compressed, so that large pictures of it would be large files."""
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    return picture
