"""Pictures of what a network draws while it learns: the same images every time, shared among the processes."""

import math
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from ..pipelines.ddpm import DDPMPipeline
from ..pipelines.generation import generate
from ..pipelines.pictures import image_grid
from .plan import Plan


def draw_preview(pipeline: DDPMPipeline, plan: Plan, accelerator: Accelerator) -> tuple[Image.Image, dict[str, Any]]:
    """A labelled grid of images with fixed seeds, drawn by all processes together, and what is to be said of it."""
    count, labels, row_names, columns = plan.preview_layout()
    share = math.ceil(count / accelerator.num_processes)
    indices = [min(accelerator.process_index * share + k, count - 1) for k in range(share)]
    steps = min(plan.config.run.preview_inference_steps, plan.scheduler.config.num_train_timesteps)
    options = plan.config.optimization
    with accelerator.autocast():
        batches = generate(
            pipeline,
            indices,
            options.seed,
            options.train_batch_size,
            class_labels=None if labels is None else [labels[index] for index in indices],
            num_inference_steps=steps,
        )
        images = torch.from_numpy(np.concatenate([images for _, images in batches])).to(accelerator.device)
    images = accelerator.gather(images).cpu().numpy()[:count]
    facts = {"count": count, "seed": options.seed, "num_inference_steps": steps, "ema": options.use_ema}
    return image_grid(images, columns, row_names), facts | {"classes": row_names}


def track_image(accelerator: Accelerator, picture: Image.Image, step: int) -> None:
    """Show a picture to every tracker that takes any."""
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"samples": np.asarray(picture)[None]}, step=step, **layout)
