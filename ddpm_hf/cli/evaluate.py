"""Evaluate a DDPM pipeline, or existing samples, against images held out of training."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..evaluation.evaluator import Evaluator, Request
from ..flags import flag
from ..hub.folder import ModelFolder
from ..sampling.samplers import SAMPLER_NAMES
from ..systems.config import MachineArguments
from ..training.device import use_cores
from .parser import OneLineParser, one_line_errors


@dataclass(kw_only=True)
class ImageArguments:
    """The real images."""

    _argument_group_name = "real images"

    run: str | None = flag(help="Output folder of train.py whose data set to use; by default the pipeline's.")
    split: str | None = flag(
        help="held_out (default): the images held out of training; train: the training images; or a split of the data "
        "set. The default for another data set is its own test or validation split, else all images."
    )
    max_images: int | None = flag(help="Maximum number of images, chosen at random.")
    dataset_name: str | None = flag(help="Another data set than the run's, on the Hub or in a folder.")
    dataset_config_name: str | None = flag(help="The configuration of the data set, if it has several.")
    train_data_dir: str | None = flag(help="Another folder of images than the run's.")
    image_column: str | None = flag(help="The image column; by default found by its type.")
    label_column: str | None = flag(help="The column of class labels, for a class-conditional model.")
    cache_dir: str | None = flag(help="Cache folder for downloads, decoded pixels and features.")


@dataclass(kw_only=True)
class SampleArguments:
    """The samples, for all metrics except nll."""

    _argument_group_name = "samples"

    num_images: int | None = flag(help="Number of samples; by default the number of real images.")
    num_inference_steps: int | None = flag(help="Steps per image; by default all trained timesteps.")
    scheduler: str | None = flag(help=f"Sampler: {', '.join(SAMPLER_NAMES)}.")
    guidance_scale: float = flag(1.0, help="Guidance for class-conditional models, which cycle through all classes.")
    compare: list[str] | None = flag(
        help="Compare several in one table and plot: SAMPLER:STEPS, another pipeline, or PIPELINE@SAMPLER:STEPS."
    )


@dataclass(kw_only=True)
class MeasureArguments:
    """What to measure."""

    _argument_group_name = "measurement"

    metrics: list[str] = flag(
        ["nll"],
        help="nll: bits/dim. frechet: Fréchet distance. kid: kernel distance. prdc: precision, recall, density, "
        "coverage. is: Inception or class score. memorization: copies of training images, and duplicates.",
    )
    extractor: str | None = flag(
        help="Feature extractor: digits (the default for the bundled digits), inception (for FID), inception:FILE, "
        "transformers:NAME (such as transformers:facebook/dinov2-base) or efficientnet-lite0."
    )
    resamples: int = flag(50, help="Random halves for each standard error; 0 for no errors.")
    output_dir: str | None = flag(help="Folder for results; by default the model's, or ./evaluation if it has none.")
    batch_size: int = flag(64, help="Images, or (image, timestep) pairs, per network call; does not affect results.")
    seed: int = flag(0, help="Random seed. Image k of a seed is always the same.")
    nll_timesteps: int | None = flag(
        help="Estimate bits/dim from this many of the T terms, sampled per image; all by default."
    )
    nll_clip: bool = flag(True, help="Clip the predicted x_0 to [-1, 1], as published results do.")
    nll_cdf: Literal["erf", "tanh"] = flag(
        "erf", help="CDF of the discretized decoder: exact (erf), or the approximation of older publications (tanh)."
    )
    per_image: bool = flag(False, help="Also write the bits/dim of every image.")


def main(argv: list[str]) -> None:
    """Parse, check and measure; a bad request becomes one line and exit status 2."""
    groups = (ImageArguments, SampleArguments, MeasureArguments, MachineArguments)
    parser = OneLineParser(groups, prog="evaluate.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("model", help="A pipeline's folder or Hub name, or samples: a folder of images or an .npz.")
    images, samples, measure, machine, names = parser.parse(argv)
    with one_line_errors(parser):
        name = images.run or names.model
        known = (Path(name) / "model_index.json").is_file()
        if images.run is not None and not known:
            raise ValueError(f"--run must be an output folder of train.py, but {name} has no model_index.json")
        settings = ModelFolder.read(name).settings if known else {}
        request = Request(model=names.model, settings=settings, **(vars(images) | vars(samples) | vars(measure)))
        evaluator = Evaluator(request)
        use_cores(evaluator.accelerator.device, machine.num_cpu_threads)
        evaluator.evaluate()


if __name__ == "__main__":
    main(sys.argv[1:])
