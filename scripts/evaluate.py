"""Measure a DDPM pipeline, or samples made before, against images that were held out of training.

    python scripts/evaluate.py demo --metrics nll --nll_timesteps 50
    python scripts/evaluate.py demo --metrics frechet kid prdc memorization --num_inference_steps 50
    python scripts/evaluate.py samples --run demo --metrics frechet
    python scripts/evaluate.py demo --metrics frechet --compare ddpm:100 ddpm:20 dpm:20 other-model@dpm:20

With several processes: accelerate launch scripts/evaluate.py …. Figures go to evaluation.json in the model's folder,
where the model card finds them, tables and pictures into its evaluation/.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ddpm_hf.evaluation.evaluator import Evaluator, Request
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.pipelines.samplers import SAMPLER_NAMES
from ddpm_hf.training.command_line import OneLineParser, one_line_errors
from ddpm_hf.training.config import MachineArguments, flag
from ddpm_hf.training.device import use_cores


@dataclass(kw_only=True)
class ImageArguments:
    """Which real images."""

    _argument_group_name = "real images"

    run: str | None = flag(help="A folder of train.py, for its data and what it held out; by default the pipeline's.")
    split: str | None = flag(
        help="held_out (default): what the run kept out of training; train: what it was trained on; or a split of the "
        "data set. Of another data set: by default its own test or validation split, else all of it."
    )
    max_images: int | None = flag(help="How many images at most; a fair sample of them.")
    dataset_name: str | None = flag(help="Another data set than the run's: on the Hub, or a folder.")
    dataset_config_name: str | None = flag(help="The configuration of the data set, if it has several.")
    train_data_dir: str | None = flag(help="Another folder of images than the run's.")
    image_column: str | None = flag(help="The column of images; found by its type when not given.")
    label_column: str | None = flag(help="The column of class labels, for a class-conditional model.")
    cache_dir: str | None = flag(help="Where downloads, decoded pixels and features are kept.")


@dataclass(kw_only=True)
class SampleArguments:
    """Which samples, for all metrics but nll."""

    _argument_group_name = "samples"

    num_images: int | None = flag(help="How many; as many as there are real images by default.")
    num_inference_steps: int | None = flag(help="Network calls per image; all trained timesteps by default.")
    scheduler: str | None = flag(help=f"Sampler: {', '.join(SAMPLER_NAMES)}.")
    guidance_scale: float = flag(1.0, help="For class-conditional models, whose classes are drawn in turn.")
    compare: list[str] | None = flag(
        help="Several in one table and plot: SAMPLER:STEPS, another pipeline, or PIPELINE@SAMPLER:STEPS."
    )


@dataclass(kw_only=True)
class MeasureArguments:
    """What to measure."""

    _argument_group_name = "measurement"

    metrics: list[str] = flag(
        ["nll"],
        help="nll: bits/dim. frechet: Fréchet distance. kid: kernel distance. prdc: precision, recall, density, "
        "coverage. is: class score. memorization: copies of training images, and of each other.",
    )
    extractor: str | None = flag(
        help="Features: digits, inception (the published FID's), inception:FILE, transformers:NAME (such as "
        "transformers:facebook/dinov2-base) or efficientnet-lite0. For the embedded digits, digits."
    )
    resamples: int = flag(50, help="Random halves behind each standard error; 0 for none.")
    output_dir: str | None = flag(help="Where results go: the model's folder, or ./evaluation without one.")
    batch_size: int = flag(64, help="Images, or pairs of image and timestep, per network call; changes no figure.")
    seed: int = flag(0, help="Of all noise. Image k of a seed is always the same.")
    nll_timesteps: int | None = flag(
        help="Estimate bits/dim from this many of the T terms, drawn for each image; all by default."
    )
    nll_clip: bool = flag(True, help="Clip the predicted image to [-1, 1], as published figures do.")
    nll_cdf: Literal["erf", "tanh"] = flag(
        "erf", help="Of the discretized decoder: exact, or the approximation behind older published figures."
    )
    per_image: bool = flag(False, help="Write the bits/dim of every image, for outliers.")


def main(argv: list[str]) -> None:
    """Parse, check and measure; what is wrong with the request becomes one line and exit status 2."""
    groups = (ImageArguments, SampleArguments, MeasureArguments, MachineArguments)
    parser = OneLineParser(groups, prog="evaluate.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("model", help="A pipeline's folder or Hub name, or samples: a folder of images or an .npz.")
    images, samples, measure, machine, names = parser.parse(argv)
    with one_line_errors(parser.prog):
        name = images.run or names.model
        known = (Path(name) / "model_index.json").is_file()
        if images.run is not None and not known:
            raise ValueError(f"--run {name} is no folder of train.py: it has no model_index.json")
        settings = ModelFolder.read(name).settings if known else {}
        request = Request(model=names.model, settings=settings, **(vars(images) | vars(samples) | vars(measure)))
        evaluator = Evaluator(request)
        use_cores(evaluator.accelerator.device, machine.num_cpu_threads)
        evaluator.evaluate()


if __name__ == "__main__":
    main(sys.argv[1:])
