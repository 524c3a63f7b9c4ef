"""Draw many images, each a function of (seed, index) only, whatever the batch size."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..pipelines.ddpm import DDPMPipeline
from ..pixels import channels_last, to_levels
from ..progress import progress_bar
from ..seeds import image_generators


def generate(
    pipeline: DDPMPipeline,
    indices: Sequence[int],
    seed: int,
    batch_size: int,
    asked: Mapping[str, Sequence[Any]] | None = None,
    **call_arguments,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Draw the images with the given indices, batch by batch.

    Args:
        indices: image k of seed s is the same in every call, to within 1 of 255 in float32.
        batch_size: images per pipeline call.
        asked: what the network is told, as arguments of the pipeline call with one entry per index: `class_labels`, ….
        call_arguments: for the pipeline call (`num_inference_steps`, `guidance_scale`, …).

    Yields:
        (indices of the batch, uint8 images of shape (B, H, W, C)).
    """
    for start in range(0, len(indices), batch_size):
        chosen = list(indices[start : start + batch_size])
        images = pipeline(
            batch_size=len(chosen),
            generator=image_generators(seed, chosen),
            output_type="pt",
            **{name: list(words[start : start + batch_size]) for name, words in (asked or {}).items()},
            **call_arguments,
        ).images
        yield chosen, channels_last(to_levels(images))


@contextmanager
def sampling_bar(total: int, missing: int, mine: int, calls: int, **options) -> Iterator[Callable]:
    """A progress bar over all processes with images per second and the time left, updated at every network call.

    Args:
        total: total number of images.
        missing: images that all processes still have to draw.
        mine: this process's share of those; the progress of the others is taken to be the same.
        calls: network calls per image.
        options: of `progress_bar`; `disable` it in all but one process.

    Yields:
        A `callback_on_step_end` for the pipeline.
    """
    drawn, done = total - missing, 0
    meter = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
    options = {"desc": "sampling", "unit": " images", "bar_format": meter, **options}

    def show(pipeline: DDPMPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        nonlocal done
        done += len(tensors["latents"])
        bar.n = drawn + missing * done / (mine * calls)
        bar.update(0)

    with progress_bar(total=total, initial=drawn, **options) as bar:
        yield show
