"""Sample pictures during training: the same seeds every time, drawn by all processes together."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from ..conditions.condition import Condition
from ..hub.folder import ANIMATION_FILE, CHAIN_FILE
from ..pipelines.ddpm import DDPMPipeline
from ..sampling.generation import generate
from ..sampling.pictures import image_grid
from ..sampling.strips import denoising_chain, save_chain
from ..systems.plan import Plan

CHAIN_IMAGES, _CHAIN_FRAMES = 4, 25


def draw_preview(
    pipeline: DDPMPipeline, plan: Plan, accelerator: Accelerator, steps: int, conditions: Sequence[Condition]
) -> tuple[Image.Image, dict[str, Any]]:
    """A labelled grid of images with fixed seeds, drawn by all processes together, and its facts for the card.

    They cycle through the usual words of the conditions. What a condition shows `beside` images stands to their left.
    """
    count, asked, row_names, columns = plan.preview_layout(conditions)
    share = math.ceil(count / accelerator.num_processes)
    indices = [min(accelerator.process_index * share + k, count - 1) for k in range(share)]
    options = plan.config.optimization
    with accelerator.autocast():
        batches = generate(
            pipeline,
            indices,
            options.seed,
            options.train_batch_size,
            {name: [words[index] for index in indices] for name, words in asked.items()},
            num_inference_steps=steps,
            guidance_scale=plan.config.run.preview_guidance_scale,
        )
        images = torch.from_numpy(np.concatenate([images for _, images in batches])).to(accelerator.device)
    images = accelerator.gather(images).cpu().numpy()[:count]
    for condition in conditions:
        if (left := condition.beside(asked[condition.name])) is not None:
            images = np.stack([plan.system.codec.pictures(left), images], axis=1).reshape(-1, *images.shape[1:])
            columns = 2 * max(1, round(math.sqrt(count / 2)))
    facts = {"count": count, "seed": options.seed, "num_inference_steps": steps, "ema": options.use_ema}
    return image_grid(images, columns, row_names), facts | {"classes": row_names}


def draw_chain(pipeline: DDPMPipeline, plan: Plan, steps: int, folder: Path | None) -> dict[str, Any]:
    """Draw the denoising chain of the preview's first images. Called by every process.

    Args:
        steps: denoising steps, as in the preview.
        folder: where strip and animation go; None in all but the main process.

    Returns:
        How many images there are, and the steps shown in the strip; empty without a folder.
    """
    count, asked, _, columns = plan.preview_layout(plan.shown)
    # Of named rows the first image of each.
    indices = list(range(0, count, columns or 1))[:CHAIN_IMAGES]
    asked = {name: [words[index] for index in indices] for name, words in asked.items()}
    seed, scale = plan.config.optimization.seed, plan.config.run.preview_guidance_scale
    chain, numbers = denoising_chain(pipeline, indices, seed, steps, _CHAIN_FRAMES, asked, guidance_scale=scale)
    if folder is None:
        return {}
    shown = save_chain(chain, folder / CHAIN_FILE, folder / ANIMATION_FILE)
    return {"count": len(indices), "shown_steps": [numbers[frame] for frame in shown]}


def track_image(accelerator: Accelerator, picture: Image.Image, step: int) -> None:
    """Log a picture to every tracker that accepts images."""
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"samples": np.asarray(picture)[None]}, step=step, **layout)
