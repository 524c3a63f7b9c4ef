"""Measure a DDPM pipeline: a folder written by train.py, or any DDPM on the Hub.

python scripts/evaluate.py demo --metrics nll

With several processes: accelerate launch scripts/evaluate.py demo. The figures go to evaluation.json in the model's
folder, where the model card finds them, the tables and curves into its evaluation/.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from diffusers.utils.logging import disable_progress_bar

from ddpm_hf.evaluation.figures import plot_rate_distortion, plot_terms
from ddpm_hf.evaluation.image_sets import ImageSet, find_images
from ddpm_hf.evaluation.likelihood import bound_of, measure_likelihood, network_of, write_images, write_terms
from ddpm_hf.evaluation.report import REPORT_FILE, read_report, summary_table, update_report
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.pipelines.ddpm import DDPMPipeline
from ddpm_hf.pipelines.fingerprint import weights_fingerprint
from ddpm_hf.pipelines.loading import load_pipeline
from ddpm_hf.training.command_line import OneLineParser, one_line_errors
from ddpm_hf.training.config import flag

METRICS = ("nll",)


@dataclass(kw_only=True)
class ImageArguments:
    """On which images."""

    _argument_group_name = "images"

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
    cache_dir: str | None = flag(help="Where downloads and decoded pixels are kept.")


@dataclass(kw_only=True)
class MeasureArguments:
    """What to measure."""

    _argument_group_name = "measurement"

    metrics: list[str] = flag(["nll"], help="nll: bits/dim, the bound on the negative log-likelihood.")
    output_dir: str | None = flag(help="Where results go: the model's folder, or ./evaluation for one on the Hub.")
    batch_size: int = flag(256, help="Images or pairs of image and timestep per network call; changes no figure.")
    seed: int = flag(0, help="Of all noise.")
    nll_timesteps: int | None = flag(
        help="Estimate bits/dim from this many of the T terms, drawn for each image; all by default."
    )
    nll_clip: bool = flag(True, help="Clip the predicted image to [-1, 1], as published figures do.")
    nll_cdf: Literal["erf", "tanh"] = flag(
        "erf", help="Of the discretized decoder: exact, or the approximation behind older published figures."
    )
    per_image: bool = flag(False, help="Write the bits/dim of every image, for outliers.")


def main(argv: list[str]) -> None:
    groups = (ImageArguments, MeasureArguments)
    parser = OneLineParser(groups, prog="evaluate.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("pipeline", help="A folder with model_index.json, or a Hub name.")
    images, measure, names = parser.parse(argv)
    disable_progress_bar()  # of loading: two files
    with one_line_errors(parser.prog):
        evaluate(names.pipeline, images, measure)


def evaluate(name: str, images: ImageArguments, measure: MeasureArguments) -> None:
    """Measure and write; ValueError for what cannot be measured."""
    for argument, value in (("max_images", images.max_images), ("batch_size", measure.batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"--{argument} is {value}; it must be at least 1")
    unknown = sorted(set(measure.metrics) - set(METRICS))
    if unknown or not measure.metrics:
        raise ValueError(f"--metrics has {', '.join(unknown) or 'nothing'}; choose from {', '.join(METRICS)}")
    accelerator = Accelerator()
    pipeline = load_pipeline(name).to(accelerator.device)
    is_folder = Path(name).is_dir()
    folder = Path(measure.output_dir or (name if is_folder else "evaluation"))
    weights = weights_fingerprint(pipeline.unet)
    read_report(folder / REPORT_FILE, weights)  # a report that cannot be added to is found before the work
    chosen = choose_images(pipeline, ModelFolder.read(name).settings if is_folder else {}, images)
    metrics = [measure_nll(pipeline, chosen, measure, folder, accelerator)]
    if accelerator.is_main_process:
        everything = update_report(folder / REPORT_FILE, weights, metrics)
        print(summary_table(everything))
        print(f"report: {folder / REPORT_FILE}")


def choose_images(pipeline: DDPMPipeline, run: dict[str, Any], arguments: ImageArguments) -> ImageSet:
    """The images asked for, in the pipeline's form."""
    config = pipeline.unet.config
    size = config.sample_size
    source = ("dataset_name", "dataset_config_name", "train_data_dir", "image_column", "label_column", "cache_dir")
    return find_images(
        (size, size) if isinstance(size, int) else tuple(size),
        config.in_channels,
        run=run or None,
        split=arguments.split,
        labelled=pipeline.num_classes > 0,
        most=arguments.max_images,
        **{name: getattr(arguments, name) for name in source},
    )


def measure_nll(
    pipeline: DDPMPipeline, images: ImageSet, measure: MeasureArguments, folder: Path, accelerator: Accelerator
) -> dict[str, Any]:
    """Bits/dim as an entry of the report; tables and curves are written on the way."""
    bound = bound_of(pipeline, clip=measure.nll_clip, cdf=measure.nll_cdf)
    if measure.nll_timesteps is not None and not 1 <= measure.nll_timesteps <= len(bound.chain):
        raise ValueError(
            f"--nll_timesteps is {measure.nll_timesteps}; this pipeline's bound has {len(bound.chain)} terms: give 1 "
            "to that many, or leave it out for all of them"
        )
    numbers = class_numbers(pipeline, images)
    batches = images.batches(measure.batch_size * accelerator.num_processes)
    found = measure_likelihood(
        bound,
        network_of(pipeline),
        (with_classes(batch, numbers) for batch in batches),
        seed=measure.seed,
        num_terms=measure.nll_timesteps,
        batch_size=measure.batch_size,
        count=images.count,
    )
    if accelerator.is_main_process:
        details = folder / "evaluation"
        details.mkdir(parents=True, exist_ok=True)
        write_terms(found, details / "nll_terms.csv")
        plot_terms(found, details / "nll_terms.png")
        plot_rate_distortion(found, details / "nll_rate_distortion.png")
        if measure.per_image:
            write_images(found, details / "nll_per_image.csv")
    about = {"seed": measure.seed, "dataset": images.name, "split": images.split, "sampler": "ddpm", "floor": None}
    return found.record() | about | {"clip": measure.nll_clip, "cdf": measure.nll_cdf}


def class_numbers(pipeline: DDPMPipeline, images: ImageSet) -> torch.Tensor | None:
    """The pipeline's number of each class of the data set; None for an unconditional model."""
    if pipeline.num_classes == 0:
        return None
    if pipeline.id2label is None:  # a model without names: the data's numbers are taken as its own
        return torch.tensor([pipeline.class_number(number) for number in range(len(images.data.class_names))])
    return torch.tensor([pipeline.class_number(name) for name in images.data.class_names])


def with_classes(batch: dict[str, torch.Tensor], numbers: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """A batch with the pipeline's class numbers in place of the data set's."""
    if numbers is None:
        return batch
    return batch | {"class_labels": numbers[batch["class_labels"]]}


if __name__ == "__main__":
    main(sys.argv[1:])
