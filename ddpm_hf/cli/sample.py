"""Draw images from a DDPM pipeline: an output folder of train.py, or any DDPM on the Hub."""

import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

from ..data.transforms import UnreadableImage, native_channels, normalize, open_image
from ..flags import flag
from ..pipelines.ddpm import DDPMPipeline
from ..pipelines.fingerprint import weights_fingerprint
from ..pipelines.loading import load_pipeline
from ..sampling.generation import generate, sampling_bar
from ..sampling.interpolation import check_interpolation, interpolate
from ..sampling.pictures import image_grid, to_uint8
from ..sampling.sample_folder import OVERVIEW, SampleFolder
from ..sampling.samplers import FAST_CALLS, SAMPLER_NAMES, make_fast_sampler, make_sampler
from ..sampling.strips import denoising_chain, save_chain
from ..systems.config import MachineArguments
from ..training.device import describe_processes, use_cores
from ..training.interruption import Interruption, exit_status
from .parser import OneLineParser, one_line_errors

_CHAIN_IMAGES, _CHAIN_FRAMES = 8, 40
_MIXTURES = np.linspace(0, 1, 11)


@dataclass(kw_only=True)
class SampleArguments:
    """How images are drawn."""

    _argument_group_name = "images"

    output_dir: str = flag("samples", help="Folder for the images, and for overview/ with a grid of them.")
    output_format: Literal["png", "npz", "dataset"] | None = flag(
        help="png: 00000.png, … and metadata.csv. npz: samples.npz with arr_0, uint8 (N, H, W, C), C = 1 for grey, "
        "and arr_1, the classes. dataset: data/*.parquet, for datasets.load_dataset. png by default."
    )
    num_images: int | None = flag(help="Number of images; 16 by default.")
    batch_size: int = flag(64, help="Images per network call of one process; does not affect the images.")
    seed: int = flag(0, help="Random seed. Image k of a seed is always the same.")
    num_inference_steps: int | None = flag(help="Steps per image; by default all trained timesteps.")
    scheduler: str | None = flag(help=f"Sampler: {', '.join(SAMPLER_NAMES)}.")
    fast: bool = flag(False, help=f"Few network calls: {FAST_CALLS} steps of dpm-sde at trailing timesteps.")
    class_labels: str | None = flag(
        help="Class names or numbers, separated by commas, which the images cycle through; all classes by default."
    )
    guidance_scale: float = flag(
        1.0, help="1 is plain conditional sampling; larger values give more typical images of a class."
    )
    device: str | None = flag(help="cpu, cuda, cuda:1 or mps; by default the best available, one per process.")


@dataclass(kw_only=True)
class PictureArguments:
    """Pictures of the sampling process."""

    _argument_group_name = "pictures"

    denoising_strip: bool = flag(False, help="Show the denoising of the first images as a strip and an animation.")
    progressive: bool = flag(
        False, help="Show the network's prediction of x_0 at each of these steps (Ho et al., Fig. 6)."
    )
    interpolate: list[str] | None = flag(
        help="Only interpolate two image files of the model's size (Ho et al., Fig. 8)."
    )
    interpolation_depths: list[int] | None = flag(
        help="Diffusion steps before the two images are mixed; 0, T/4, T/2, 3T/4 and T by default."
    )


def main(argv: list[str]) -> None:
    groups = (SampleArguments, PictureArguments, MachineArguments)
    parser = OneLineParser(groups, prog="sample.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("pipeline", help="A folder with model_index.json, or a Hub name.")
    arguments, pictures, machine, names = parser.parse(argv)
    with one_line_errors(parser):
        check(arguments, pictures)
        pipeline, steps = prepare(names.pipeline, arguments)
        use_cores(pipeline.device, machine.num_cpu_threads)
        classes = asked_classes(pipeline, arguments.class_labels, arguments.guidance_scale)
        if pictures.interpolate:
            pair, depths = prepare_interpolation(pipeline, arguments, pictures, classes)
        else:
            folder, missing = open_folder(names.pipeline, pipeline, steps, arguments, classes)
    if pictures.interpolate:
        draw_interpolation(pipeline, pair, depths, arguments, classes)
    else:
        draw_images(pipeline, folder, missing, steps, arguments)
        if PartialState().is_main_process:
            print(f"images: {folder.result}\npicture: {folder.finish()}")
            draw_chains(pipeline, folder, steps, arguments, pictures)
    PartialState().destroy_process_group()


def check(arguments: SampleArguments, pictures: PictureArguments) -> None:
    """Raises ValueError if a flag is out of range or contradicts another."""
    for argument in ("num_images", "batch_size", "num_inference_steps"):
        value = getattr(arguments, argument)
        if value is not None and value < 1:
            raise ValueError(f"--{argument} must be at least 1, got {value}")
    if arguments.fast and (arguments.scheduler is not None or arguments.num_inference_steps is not None):
        raise ValueError("--fast brings its own --scheduler and --num_inference_steps; leave them out")
    if pictures.interpolate is None:
        if pictures.interpolation_depths is not None:
            raise ValueError("--interpolation_depths needs --interpolate")
        return
    if len(pictures.interpolate) != 2:
        raise ValueError(f"--interpolate must be two image files, got {len(pictures.interpolate)}")
    others = {name: getattr(arguments, name) for name in ("num_images", "output_format", "fast")}
    others |= {name: getattr(pictures, name) for name in ("denoising_strip", "progressive")}
    given = [f"--{name}" for name, value in others.items() if value]
    if given:
        raise ValueError(f"--interpolate draws only one picture; leave out {', '.join(given)}")


def prepare(name: str, arguments: SampleArguments) -> tuple[DDPMPipeline, int]:
    """The pipeline on this process's device with the requested sampler, and the number of its steps.

    Raises:
        ValueError: the pipeline cannot be loaded, or the sampler or device cannot be used.
    """
    pipeline = load_pipeline(name)
    steps = arguments.num_inference_steps or pipeline.scheduler.config.num_train_timesteps
    if arguments.fast:
        pipeline.scheduler, steps = make_fast_sampler(pipeline.scheduler)
    elif arguments.scheduler is not None:
        pipeline.scheduler = make_sampler(arguments.scheduler, pipeline.scheduler)
    pipeline.scheduler.set_timesteps(steps)
    pipeline.set_progress_bar_config(disable=True)
    # PartialState ignores the launcher's --cpu, and each process would then consider itself the only one. The timeout
    # is long because a process may finish hours before the others.
    on_cpu = arguments.device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=7))
    if arguments.device not in (None, "cpu") and state.num_processes > 1:
        raise ValueError("--device can be given only with one process: several get one device each")
    try:
        return pipeline.to(torch.device(arguments.device) if arguments.device else state.device), steps
    except (RuntimeError, AssertionError) as problem:
        raise ValueError(f"cannot use --device {arguments.device}: {problem}") from None


def asked_classes(pipeline: DDPMPipeline, asked: str | None, guidance_scale: float) -> list[int] | None:
    """Class numbers to cycle through; None for unconditional images."""
    if asked is None:
        return list(range(pipeline.num_classes)) if pipeline.num_classes and guidance_scale != 0 else None
    names = (pipeline.id2label or {}).values()
    labels = (label.strip() for label in asked.split(","))
    # Names take precedence, because a class may be called "3".
    return [
        pipeline.class_number(int(label) if label.isdecimal() and label not in names else label) for label in labels
    ]


def open_folder(
    name: str, pipeline: DDPMPipeline, steps: int, arguments: SampleArguments, classes: list[int] | None
) -> tuple[SampleFolder, list[int]]:
    """The output folder and, equal on all processes, the missing images; ValueError if the folder cannot be used."""
    count, channels = arguments.num_images or 16, pipeline.unet.config.in_channels
    if channels > 4:
        raise ValueError(f"the model's images must have at most 4 channels, got {channels}")
    labels = None if classes is None else [classes[k % len(classes)] for k in range(count)]
    pipeline.check_classes(labels, arguments.guidance_scale, count)
    folder = SampleFolder(
        path=Path(arguments.output_dir),
        output_format=arguments.output_format or "png",
        num_images=count,
        labels=labels,
        class_names=pipeline.id2label,
    )
    process = {key: value for key, value in pipeline.scheduler.config.items() if not key.startswith("_")}
    settings = {
        "seed": arguments.seed,
        "num_inference_steps": steps,
        "guidance_scale": arguments.guidance_scale,
        "class_labels": classes,
        "scheduler": {"class": type(pipeline.scheduler).__name__, **process},
        "weights": weights_fingerprint(pipeline.unet),
    }
    # Only the main process lists the files: another could miss some, or see new ones of this run.
    missing = folder.open(settings, pipeline=name) if PartialState().is_main_process else None
    return folder, broadcast_object_list([missing])[0]


def draw_images(
    pipeline: DDPMPipeline, folder: SampleFolder, missing: list[int], steps: int, arguments: SampleArguments
) -> None:
    """Draw this process's share of the images, then wait for the others."""
    state, interruption = PartialState(), Interruption(None)
    mine = missing[state.process_index :: state.num_processes]
    calls = len(pipeline.scheduler.timesteps)
    if state.is_main_process:
        work = f"{len(missing)} of {folder.num_images} images, {calls} network calls each"
        print(f"to draw: {work}, {describe_processes(pipeline.device, state.num_processes)}", flush=True)
    with sampling_bar(
        folder.num_images, len(missing), len(mine), calls, disable=not (mine and state.is_main_process)
    ) as show:
        batches = generate(
            pipeline,
            mine,
            arguments.seed,
            arguments.batch_size,
            class_labels=None if folder.labels is None else [folder.labels[k] for k in mine],
            guidance_scale=arguments.guidance_scale,
            callback_on_step_end=show,
            num_inference_steps=steps,
        )
        for indices, images in batches:
            folder.write(indices, images)
            if interruption.reason():
                sys.exit(exit_status(interruption.reason()))
    state.wait_for_everyone()


def draw_chains(
    pipeline: DDPMPipeline, folder: SampleFolder, steps: int, arguments: SampleArguments, pictures: PictureArguments
) -> None:
    """Draw the first images again, keeping intermediate steps, for the requested pictures."""
    shown = range(min(_CHAIN_IMAGES, folder.num_images))
    for name, asked in (("denoising", pictures.denoising_strip), ("progressive", pictures.progressive)):
        if not asked:
            continue
        strip = folder.path / OVERVIEW / f"{name}.png"
        frames, _ = denoising_chain(
            pipeline,
            shown,
            arguments.seed,
            steps,
            _CHAIN_FRAMES,
            None if folder.labels is None else [folder.labels[k] for k in shown],
            predicted=name == "progressive",
            guidance_scale=arguments.guidance_scale,
        )
        save_chain(frames, strip, strip.with_suffix(".webp"))
        print(f"{name}: {strip}, {strip.with_suffix('.webp').name}")


def prepare_interpolation(
    pipeline: DDPMPipeline, arguments: SampleArguments, pictures: PictureArguments, classes: list[int] | None
) -> tuple[list[torch.Tensor], list[int]]:
    """The two images and the depths; ValueError if the model cannot interpolate them."""
    if classes is not None and len(classes) != 1:
        raise ValueError("--interpolate needs exactly one class in --class_labels")
    pipeline.check_classes(classes, arguments.guidance_scale, 1)
    picture = interpolation_picture(arguments)
    if picture.exists():
        raise ValueError(f"--output_dir {arguments.output_dir} already has {picture.name}; choose another folder")
    pair = [read_image(file, pipeline.unet.config.in_channels) for file in pictures.interpolate]
    total = pipeline.scheduler.config.num_train_timesteps
    depths = pictures.interpolation_depths or [total * quarter // 4 for quarter in range(5)]
    try:
        check_interpolation(pipeline, *pair, depths)
    except ValueError as problem:
        raise ValueError(f"--interpolate: {problem}") from None
    return pair, depths


def read_image(file: str, channels: int) -> torch.Tensor:
    """An image file as (C, H, W) in [-1, 1]; ValueError if it has a different number of channels."""
    try:
        image = open_image(Path(file).read_bytes())
    except UnreadableImage as problem:
        raise ValueError(f"--interpolate: cannot read {file}: {problem}") from None
    found = native_channels(image)
    if found != channels:
        raise ValueError(f"--interpolate: {file} must have the model's {channels} channels, got {found}")
    pixels = np.array(image).reshape(image.height, image.width, -1)
    return normalize(torch.from_numpy(pixels[..., :channels]).permute(2, 0, 1))


def draw_interpolation(
    pipeline: DDPMPipeline,
    pair: list[torch.Tensor],
    depths: list[int],
    arguments: SampleArguments,
    classes: list[int] | None,
) -> None:
    """Draw one picture with a row per depth between the two images. Only the main process works."""
    if not PartialState().is_main_process:
        return
    images, taken = interpolate(
        pipeline,
        *pair,
        depths,
        _MIXTURES.tolist(),
        seed=arguments.seed,
        num_inference_steps=arguments.num_inference_steps,
        batch_size=arguments.batch_size,
        class_label=None if classes is None else classes[0],
        guidance_scale=arguments.guidance_scale,
    )
    sides = to_uint8(torch.stack(pair))
    rows = [np.concatenate([sides[:1], row, sides[1:]]) for row in images]
    picture = interpolation_picture(arguments)
    picture.parent.mkdir(parents=True, exist_ok=True)
    image_grid(np.concatenate(rows), len(rows[0]), [f"t = {depth}" for depth in taken]).save(picture)
    print(f"picture: {picture}")


def interpolation_picture(arguments: SampleArguments) -> Path:
    return Path(arguments.output_dir) / OVERVIEW / "interpolation.png"


if __name__ == "__main__":
    main(sys.argv[1:])
