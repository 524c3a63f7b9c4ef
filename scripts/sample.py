"""Draw images from a DDPM pipeline: a folder written by train.py, or any DDPM on the Hub.

python scripts/sample.py demo --num_images 64 --scheduler dpm --num_inference_steps 20 --output_dir samples
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.utils.logging import disable_progress_bar

from ddpm_hf.pipelines.ddpm import DDPMPipeline
from ddpm_hf.pipelines.generation import generate
from ddpm_hf.pipelines.loading import load_pipeline
from ddpm_hf.pipelines.pictures import image_grid, to_pil
from ddpm_hf.pipelines.samplers import make_sampler
from ddpm_hf.training.command_line import OneLineParser, one_line_errors
from ddpm_hf.training.config import flag


@dataclass(kw_only=True)
class SampleArguments:
    """What to draw."""

    output_dir: str = flag("samples", help="Images are written here as 00000.png, …, the rest into its overview/.")
    num_images: int = flag(16, help="How many images.")
    batch_size: int = flag(64, help="Images per network call; the images do not depend on it.")
    seed: int = flag(0, help="Image k of a seed is always the same.")
    num_inference_steps: int | None = flag(help="Network calls per image; all trained timesteps by default.")
    scheduler: str | None = flag(help="Sampler: ddpm, ddim, dpm, dpm-single, deis, unipc, pndm, euler or heun.")
    class_labels: str | None = flag(help="Names or numbers, separated by commas; repeated in turn over the images.")
    guidance_scale: float = flag(1.0, help="1 is plain conditional sampling, more favours what is typical of a class.")
    device: str | None = flag(help="cpu, cuda, cuda:1, mps; by default the best there is.")


def main(argv: list[str]) -> None:
    parser = OneLineParser(SampleArguments, prog="sample.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("pipeline", help="A folder with model_index.json, or a Hub name.")
    arguments, names = parser.parse(argv)
    disable_progress_bar()  # of loading: two files; the bar worth seeing is that of the steps
    with one_line_errors(parser.prog):
        pipeline, labels = prepare(names.pipeline, arguments)
    write_images(pipeline, labels, arguments)


def prepare(name: str, arguments: SampleArguments) -> tuple[DDPMPipeline, list[int] | None]:
    """The pipeline on its device with the sampler asked for, and one class per image; ValueError if it cannot be."""
    for argument in ("num_images", "batch_size", "num_inference_steps"):
        value = getattr(arguments, argument)
        if value is not None and value < 1:
            raise ValueError(f"--{argument} is {value}; it must be at least 1")
    folder = Path(arguments.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {folder} is a file; name a folder")
    if folder.is_dir() and any(folder.glob("[0-9][0-9][0-9][0-9][0-9].png")):
        raise ValueError(f"--output_dir {folder} has images already; name another folder")

    pipeline = load_pipeline(name)
    if arguments.scheduler is not None:
        pipeline.scheduler = make_sampler(arguments.scheduler, pipeline.scheduler)
    labels = None
    if arguments.class_labels is not None:
        asked = [class_number(pipeline, label.strip()) for label in arguments.class_labels.split(",")]
        labels = [asked[k % len(asked)] for k in range(arguments.num_images)]
    pipeline.check_classes(labels, arguments.guidance_scale, arguments.num_images)
    pipeline.scheduler.set_timesteps(arguments.num_inference_steps or pipeline.scheduler.config.num_train_timesteps)
    return pipeline.to(arguments.device or best_device()), labels


def class_number(pipeline: DDPMPipeline, label: str) -> int:
    """A name goes before a number, so that classes may be called "3"."""
    named = label in (pipeline.id2label or {}).values()
    return pipeline.class_number(int(label) if label.isdecimal() and not named else label)


def write_images(pipeline: DDPMPipeline, labels: list[int] | None, arguments: SampleArguments) -> None:
    """Draw and save; the grid at the end shows the first hundred."""
    folder = Path(arguments.output_dir)
    overview = folder / "overview"
    overview.mkdir(parents=True, exist_ok=True)
    shown = []
    batches = generate(
        pipeline,
        range(arguments.num_images),
        arguments.seed,
        arguments.batch_size,
        class_labels=labels,
        guidance_scale=arguments.guidance_scale,
        num_inference_steps=arguments.num_inference_steps,
    )
    for indices, images in batches:
        for index, image in zip(indices, images, strict=True):
            to_pil(image).save(folder / f"{index:05d}.png")
        shown.extend(images[: max(0, 100 - len(shown))])
    grid = overview / "grid.png"
    image_grid(np.stack(shown)).save(grid)
    print(f"images: {folder}")
    print(f"picture: {grid}")


def best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


if __name__ == "__main__":
    main(sys.argv[1:])
