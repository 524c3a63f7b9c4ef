"""The samples to evaluate: drawn from a pipeline, or read from a folder or a file."""

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import PartialState
from accelerate.utils import gather_object

from ..conditions.condition import Condition, cycled
from ..data.folder import IMAGE_SUFFIXES
from ..data.sources import load_images
from ..data.transforms import UnreadableImage, native_channels, open_image, read_payload, to_channels
from ..pipelines.ddpm import DDPMPipeline
from ..pipelines.fingerprint import upsampler_fingerprint
from ..sampling.generation import generate, sampling_bar
from ..sampling.sample_folder import RECORD_FILE
from ..sampling.samplers import make_sampler, sampler_name
from ..steps.guidance import guides_at
from ..steps.sampler import rebuild, set_steps, thresholding_of
from .image_sets import ImageSet

ARRAY_SUFFIX = ".npz"


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples to evaluate.

    Attributes:
        images: uint8 (n, C, H, W).
        about: how they were drawn, for the report.
        small: those that were enlarged to these.
    """

    images: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)
    small: "Samples | None" = None


def words_for(conditions: Sequence[Condition], images: ImageSet, count: int) -> dict[str, list[Any]]:
    """What to ask for in so many samples that are compared with these images, as `draw_samples` takes it."""
    return {condition.name: list(islice(condition.words_of(images.batches(256)), count)) for condition in conditions}


def captions_in(asked: Mapping[str, Sequence[Any]], flag: str) -> Sequence[str]:
    """The captions in what `words_for` returns; ValueError, with the flag that needs them, if there are none."""
    told = [name for name, words in asked.items() if name != "prompt" or any(words)]
    if "prompt" not in told:
        raise ValueError(f"{flag} needs a text-to-image model, got one that is told {', '.join(told) or 'nothing'}")
    return asked["prompt"]


def draw_samples(
    pipeline: DDPMPipeline,
    count: int,
    *,
    asked: Mapping[str, Sequence[Any]] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    sampler: str | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float = 1.0,
    **finer_guidance: Any,
) -> Samples:
    """Draw samples from a pipeline on all processes; each process gets all of them.

    Image k is a function of (seed, k), as in `generate`.

    Args:
        pipeline: on the device of `PartialState`; its scheduler is not changed.
        asked: as in `Drawing`; by default the usual words of each condition, such as all classes.
        batch_size: images per network call of one process.
        sampler: one of `SAMPLER_NAMES`; by default the one the pipeline was saved with.
        num_inference_steps: all trained timesteps by default.
        guidance_scale, finer_guidance: of the pipeline call, as are `noise_level` and what is asked of a prior.

    Raises:
        ValueError: the sampler does not support this number of steps, the model does not support guidance, or as in
            `check_guidance`.
    """
    guidance = {"guidance_scale": guidance_scale, **finer_guidance}
    pipeline, steps = prepared(pipeline, sampler, num_inference_steps, guidance_scale)
    calls = network_calls(pipeline)
    if asked is None:
        asked = {condition.name: condition.usual() for condition in pipeline.conditions}
    state, small = PartialState(), []
    mine = list(range(state.process_index, count, state.num_processes))

    def see(stage: DDPMPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        show(stage, step, timestep, tensors)
        if pipeline.stages[1:] and stage is not pipeline.upsampler and step + 1 == len(pipeline.scheduler.timesteps):
            small.append(pipeline.codec.pictures(tensors["latents"]))

    with sampling_bar(count, count, len(mine), calls, leave=None, disable=not state.is_local_main_process) as show:
        batches = generate(
            pipeline,
            mine,
            seed,
            batch_size,
            {name: cycled(words, mine) for name, words in asked.items()},
            num_inference_steps=steps,
            **guidance,
            callback_on_step_end=see,
        )
        everything = gather_object(list(batches))
    order = np.argsort(np.concatenate([indices for indices, _ in everything]))

    def in_order(parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.ascontiguousarray(np.concatenate(parts)[order].transpose(0, 3, 1, 2))

    images = in_order([images for _, images in everything])
    if pipeline.scheduler is None:
        return Samples(images=images, about={"seed": seed, "sampler": None, "steps": None})
    said = {"seed": seed, "sampler": sampler, "steps": steps}
    if "image_embeds" in asked:
        said["told"] = "embeddings of these pictures"
    about = _drawn_by(pipeline, said, guidance)
    if not pipeline.stages[1:]:
        return Samples(images=images, about=about)
    of_base = {name: value for name, value in guidance.items() if name != "noise_level"}
    base = Samples(images=in_order(gather_object(small)), about=_drawn_by(pipeline.alone(), said, of_base))
    return Samples(images=images, about=about, small=base)


def _drawn_by(pipeline: DDPMPipeline, said: Mapping[str, Any], guidance: Mapping[str, Any]) -> dict[str, Any]:
    """What a report says of samples, with arguments of the pipeline's call and what else there is to say."""
    scheduler, guided = pipeline.scheduler, 0
    if guidance["guidance_scale"] not in (0.0, 1.0):
        total, interval = scheduler.config.num_train_timesteps, guidance.get("guidance_interval")
        guided = sum(guides_at(t, total, interval) for t in scheduler.timesteps)
    return {
        **said,
        "sampler": said["sampler"] or sampler_name(type(scheduler).__name__, scheduler.config),
        "network_calls": network_calls(pipeline) + guided,  # only the first stage is guided
        **(guidance if pipeline.conditions else {}),
        **thresholding_of(scheduler.config),
        **upsampler_fingerprint(pipeline),
    }


def network_calls(pipeline: DDPMPipeline) -> int:
    """Calls of networks for an image without guidance, by samplers that have been set to their steps."""
    return sum(1 if stage.scheduler is None else len(stage.scheduler.timesteps) for stage in pipeline.stages)


def prepared(
    pipeline: DDPMPipeline, sampler: str | None, num_inference_steps: int | None, guidance_scale: float
) -> tuple[DDPMPipeline, int]:
    """A pipeline with the same network and a new sampler set to its steps, and the number of steps.

    Arguments and errors as for `draw_samples`. An autoencoder has no sampler and takes one step.
    """
    if pipeline.scheduler is None:
        if sampler is not None:
            raise ValueError(f"`scheduler` must be left out for an autoencoder, got {sampler}.")
        return pipeline, num_inference_steps or 1
    scheduler = pipeline.scheduler if sampler is None else make_sampler(sampler, pipeline.scheduler)
    pipeline = copy.copy(pipeline)
    pipeline.scheduler = rebuild(type(scheduler), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.ask({condition.name: condition.usual()[:1] for condition in pipeline.conditions}, guidance_scale)
    steps = num_inference_steps or pipeline.scheduler.config.num_train_timesteps
    set_steps(pipeline.scheduler, steps)
    if pipeline.stages[1:]:
        pipeline.upsampler, _ = prepared(pipeline.upsampler, sampler, steps, 1.0)
    return pipeline, steps


def read_samples(path: str | Path, most: int | None = None) -> Samples:
    """Read samples from disk.

    Args:
        path: output of scripts/sample.py, a folder of images (the files in it, or if there are none, whatever
            `load_images` finds in sub-folders and tables), or an .npz in the format of OpenAI's evaluators: `arr_0`,
            uint8 (n, H, W, C).
        most: the maximum number of images, the first by name.

    Raises:
        ValueError: there are none, sample.py has not finished, the .npz has another format, or the images differ in
            size or channels.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8")) if (folder / RECORD_FILE).is_file() else {}
    array = path / "samples.npz" if (path / "samples.npz").is_file() else path
    if array.suffix == ARRAY_SUFFIX:
        images = _read_array(array)
    elif path.is_dir():
        images = _decoded(_cells(path, most))
    else:
        raise ValueError(f"samples must be a folder or an {ARRAY_SUFFIX} file, got {str(path)!r}")
    images = images[:most]
    wanted = min(record.get("num_images", 0), most or record.get("num_images", 0))
    if len(images) < wanted:
        raise ValueError(f"samples {str(path)!r} are incomplete, {len(images)} of {wanted}; run sample.py again")
    about = {"samples": path.name, **_drawn_with(record)}
    return Samples(images=np.ascontiguousarray(images.transpose(0, 3, 1, 2)), about=about)


def _drawn_with(record: Mapping[str, Any]) -> dict[str, Any]:
    """How the images were drawn, according to the record of scripts/sample.py."""
    if not record:
        return {}
    settings = record["settings"]
    sampler = sampler_name(settings["scheduler"]["class"], settings["scheduler"])
    about = {"seed": settings["seed"], "sampler": sampler, "steps": settings["num_inference_steps"]}
    was_told = any(settings.get(name) is not None for name in ("class_labels", "prompt", "image_embeds"))
    guidance = {name: value for name, value in settings.items() if name.startswith(("guidance_", "prior_"))}
    level = {name: settings[name] for name in ("noise_level",) if name in settings}
    return about | (guidance if was_told else {}) | thresholding_of(settings["scheduler"]) | level


def _read_array(file: Path) -> np.ndarray:
    expected = "it must have arr_0, uint8 of shape (n, height, width, channels), as for OpenAI's evaluators"
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if "arr_0" not in arrays:
                raise ValueError(f"{expected}, got {', '.join(arrays) or 'nothing'}")
            images = arrays["arr_0"]
    except (OSError, ValueError, EOFError) as problem:
        raise ValueError(f"cannot read samples {str(file)!r}: {problem}") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or len(images) == 0:
        raise ValueError(f"samples {str(file)!r}: {expected}, got {images.dtype} of shape {images.shape}")
    return images


def _cells(folder: Path, most: int | None) -> Iterator[tuple[str, object, Path | None]]:
    """Name, undecoded image and the folder that its path starts from."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if files:
        yield from ((str(file), file, None) for file in files[:most])
        return
    data = load_images(train_data_dir=folder / "data" if (folder / "data").is_dir() else folder)
    for row in islice(chain.from_iterable(data.batches()), most):
        yield f"{folder}: {data.describe(row)}", row.value, data.base_dir


def _decoded(cells: Iterable[tuple[str, object, Path | None]]) -> np.ndarray:
    """Images of one size and one number of channels, uint8 (n, H, W, C)."""
    arrays, first = [], None
    for name, cell, base_dir in cells:
        try:
            image = open_image(read_payload(cell, base_dir))
        except UnreadableImage as problem:
            raise ValueError(f"cannot read samples: {name}: {problem}") from None
        form = (image.width, image.height, native_channels(image))
        if first is None:
            first = (name, form)
        elif form != first[1]:
            one, other = ("{}x{} with {} channels".format(*found) for found in (first[1], form))
            raise ValueError(f"samples must have the same size and channels: {first[0]} is {one}, {name} is {other}")
        arrays.append(np.atleast_3d(np.asarray(to_channels(image, form[2]))))
    return np.stack(arrays)
