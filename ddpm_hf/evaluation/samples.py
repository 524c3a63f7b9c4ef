"""The images to judge: drawn from a pipeline, or made before and read from a folder or a file."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import PartialState
from accelerate.utils import gather_object
from PIL import Image

from ..data.sources import load_images
from ..data.transforms import UnreadableImage, native_channels, open_image, to_channels
from ..pipelines.ddpm import DDPMPipeline
from ..pipelines.generation import generate
from ..pipelines.sample_folder import RECORD_FILE
from ..pipelines.samplers import make_sampler, rebuild, sampler_name
from ..progress import progress_bar

ARRAY_SUFFIX = ".npz"
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Images to judge.

    Attributes:
        images: uint8 (n, C, H, W).
        about: how they were made, for the report.
    """

    images: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.images.shape[2], self.images.shape[3]


def draw_samples(
    pipeline: DDPMPipeline,
    count: int,
    *,
    seed: int = 0,
    batch_size: int = 64,
    sampler: str | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float = 1.0,
) -> Samples:
    """Draw images with a pipeline on all processes; each of them gets all images.

    Image k is a function of (seed, k), as in `generate`. A class-conditional model draws its classes in turn.

    Args:
        pipeline: on the device of `PartialState`; its scheduler stays as it is.
        count: how many images.
        seed: of all images.
        batch_size: images of one process at once.
        sampler: a name of `SAMPLER_NAMES`; by default what the pipeline was saved with.
        num_inference_steps: all trained timesteps by default.
        guidance_scale: see the pipeline.

    Raises:
        ValueError: if the sampler cannot make so many steps, or the model no guided images.
    """
    pipeline, steps = prepared(pipeline, sampler, num_inference_steps, guidance_scale)
    calls = len(pipeline.scheduler.timesteps)
    classes = pipeline.num_classes
    state = PartialState()
    mine = list(range(state.process_index, count, state.num_processes))
    words = {"desc": "sampling", "unit": " steps", "unit_scale": True, "leave": None}
    bar = progress_bar(total=len(mine) * calls, disable=not state.is_local_main_process, **words)

    def show(pipeline: DDPMPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        bar.update(len(tensors["latents"]))

    batches = generate(
        pipeline,
        mine,
        seed,
        batch_size,
        class_labels=[k % classes for k in mine] if classes else None,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        callback_on_step_end=show,
    )
    everything = gather_object([(indices, images) for indices, images in batches])
    bar.close()
    order = np.argsort(np.concatenate([indices for indices, _ in everything]))
    images = np.concatenate([images for _, images in everything])[order].transpose(0, 3, 1, 2)
    guided = guidance_scale not in (0.0, 1.0)
    about = {
        "seed": seed,
        "sampler": sampler or sampler_name(type(pipeline.scheduler).__name__, pipeline.scheduler.config),
        "steps": steps,
        "network_calls": calls * (2 if guided else 1),
        **({"guidance_scale": guidance_scale} if classes else {}),
    }
    return Samples(images=np.ascontiguousarray(images), about=about)


def prepared(
    pipeline: DDPMPipeline, sampler: str | None, num_inference_steps: int | None, guidance_scale: float
) -> tuple[DDPMPipeline, int]:
    """A pipeline of the same network with a sampler of its own, set to its steps, and how many these are.

    Arguments and errors as for `draw_samples`.
    """
    scheduler = pipeline.scheduler if sampler is None else make_sampler(sampler, pipeline.scheduler)
    pipeline = DDPMPipeline(pipeline.unet, rebuild(type(scheduler), scheduler), id2label=pipeline.id2label)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.check_classes([0] if pipeline.num_classes else None, guidance_scale, 1)
    steps = num_inference_steps or pipeline.scheduler.config.num_train_timesteps
    pipeline.scheduler.set_timesteps(steps)
    return pipeline, steps


def read_samples(path: str | Path, most: int | None = None) -> Samples:
    """Read images made before.

    Args:
        path: what scripts/sample.py left, a folder of images (of those in it, or if there are none, whatever
            `load_images` finds in sub-folders and tables), or an .npz as OpenAI's evaluators take it: `arr_0`, uint8
            (n, H, W, C).
        most: how many at most, the first by name.

    Raises:
        ValueError: if there are none or not yet all, the .npz holds something else, or the images differ in size or
            channels.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8")) if (folder / RECORD_FILE).is_file() else {}
    array = path / "samples.npz" if (path / "samples.npz").is_file() else path
    if array.suffix == ARRAY_SUFFIX:
        images = _read_array(array)
    elif path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _IMAGE_SUFFIXES)
        tables = path / "data" if (path / "data").is_dir() else path
        images = _stacked(_open_files(files[:most]) if files else _open_rows(tables, most))
    else:
        raise ValueError(f"samples {str(path)!r} are neither a folder nor an {ARRAY_SUFFIX} file")
    images = images[:most]
    wanted = min(record.get("num_images", 0), most or record.get("num_images", 0))
    if len(images) < wanted:
        raise ValueError(f"samples {str(path)!r}: {len(images)} of {wanted} are drawn; run the same sample.py again")
    about = {"samples": path.name, **_drawn_with(record)}
    return Samples(images=np.ascontiguousarray(images.transpose(0, 3, 1, 2)), about=about)


def _drawn_with(record: Mapping[str, Any]) -> dict[str, Any]:
    """How the images were drawn, by the record of scripts/sample.py."""
    if not record:
        return {}
    settings = record["settings"]
    sampler = sampler_name(settings["scheduler"]["class"], settings["scheduler"])
    about = {"seed": settings["seed"], "sampler": sampler, "steps": settings["num_inference_steps"]}
    return about | ({} if settings["class_labels"] is None else {"guidance_scale": settings["guidance_scale"]})


def _read_array(file: Path) -> np.ndarray:
    expected = "OpenAI's evaluators write arr_0, uint8 of shape (n, height, width, channels)"
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if "arr_0" not in arrays:
                raise ValueError(f"it holds {', '.join(arrays) or 'nothing'}; {expected}")
            images = arrays["arr_0"]
    except (OSError, ValueError, EOFError) as problem:
        raise ValueError(f"samples {str(file)!r} cannot be read: {problem}") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or len(images) == 0:
        raise ValueError(f"samples {str(file)!r}: arr_0 is {images.dtype} of shape {images.shape}; {expected}")
    return images


def _open_files(files: list[Path]) -> Iterable[tuple[str, Image.Image]]:
    for file in files:
        try:
            yield str(file), open_image(file.read_bytes())
        except UnreadableImage as problem:
            raise ValueError(f"samples: {file} is no readable image: {problem}") from None


def _open_rows(folder: Path, most: int | None) -> Iterable[tuple[str, Image.Image]]:
    data = load_images(train_data_dir=folder)
    for rows in data.batches():
        for row in rows:
            if most is not None and row.index >= most:
                return
            try:
                yield data.describe(row), open_image(data.payload(row))
            except UnreadableImage as problem:
                raise ValueError(f"samples {str(folder)!r}: {data.describe(row)}: {problem}") from None


def _stacked(images: Iterable[tuple[str, Image.Image]]) -> np.ndarray:
    """Images of one size and one number of channels, uint8 (n, H, W, C)."""
    arrays, first = [], None
    for name, image in images:
        form = (image.width, image.height, native_channels(image))
        if first is None:
            first = (name, form)
        elif form != first[1]:
            one, other = ("{}x{} with {} channels".format(*found) for found in (first[1], form))
            raise ValueError(f"samples differ: {first[0]} is {one}, {name} is {other}")
        array = np.asarray(to_channels(image, form[2]))
        arrays.append(array[..., None] if array.ndim == 2 else array)
    return np.stack(arrays)
