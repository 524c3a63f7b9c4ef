"""Many images, each one a function of (seed, index) alone: the batch it was drawn in leaves no trace."""

from collections.abc import Iterator, Sequence

import numpy as np

from ..seeds import image_generators
from .ddpm import DDPMPipeline


def generate(
    pipeline: DDPMPipeline,
    indices: Sequence[int],
    seed: int,
    batch_size: int,
    class_labels: Sequence[int | str] | None = None,
    **call_arguments,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Draw the images with the given indices, batch by batch.

    Args:
        pipeline: what draws them; its progress bar shows the steps of each batch.
        indices: numbers of the images; image k of seed s is the same in every call, within 1 of 255 in float32.
        seed: of all images.
        batch_size: images per pipeline call.
        class_labels: one per index, for class-conditional models.
        call_arguments: passed on to the pipeline call (`num_inference_steps`, `guidance_scale`, …).

    Yields:
        (indices of the batch, uint8 images of shape (B, H, W, C)).
    """
    for start in range(0, len(indices), batch_size):
        chosen = list(indices[start : start + batch_size])
        labels = None if class_labels is None else list(class_labels[start : start + batch_size])
        images = pipeline(
            batch_size=len(chosen),
            generator=image_generators(seed, chosen),
            class_labels=labels,
            output_type="np",
            **call_arguments,
        ).images
        yield chosen, (images * 255).round().astype(np.uint8)
