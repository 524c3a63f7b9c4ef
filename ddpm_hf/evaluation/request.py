"""What to measure: the flags of evaluate.py, and what they may be."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from ..flags import flag
from ..pipelines.ddpm import DDPMPipeline
from ..sampling.samplers import SAMPLER_NAMES
from ..steps.guidance import GuidanceArguments, check_guidance
from .quality import QUALITY_METRICS
from .samples import ARRAY_SUFFIX

METRICS = ("nll", *QUALITY_METRICS, "prompt", "clip", "memorization", "reconstruction", "retrieval", "prior")
_LOWEST = {"max_images": 1, "num_images": 2, "num_inference_steps": 1, "batch_size": 1, "resamples": 0, "seed": 0}


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
    caption_column: str | None = flag(help="The column of captions, for a text-to-image model.")
    init_caption_from_labels: str | None = flag(help="Make captions of class names, as in train.py.")
    cache_dir: str | None = flag(help="Cache folder for downloads, decoded pixels and features.")


@dataclass(kw_only=True)
class SampleArguments(GuidanceArguments):
    """The samples, for all metrics except nll."""

    _argument_group_name = "samples"

    num_images: int | None = flag(help="Number of samples; by default the number of real images.")
    num_inference_steps: int | None = flag(
        help="Steps per image; by default all trained timesteps, or 25 of dalle2's prior."
    )
    scheduler: str | None = flag(help=f"Sampler: {', '.join(SAMPLER_NAMES)}.")
    guidance_scale: float = flag(
        1.0, help="Guidance by class or caption. All classes take turns; captions are those of the real images."
    )
    stage: Literal["base", "decoder"] | None = flag(
        help="base: measure the base of a model with an upsampler. By default its pictures are enlarged first, except "
        "for nll, which is of the base. decoder: of dalle2, draw from the embeddings of the real pictures that have "
        "the captions, and not from those that the prior draws."
    )
    compare: list[str] | None = flag(
        help="Compare several in one table and plot: SAMPLER:STEPS, another pipeline, or PIPELINE@SAMPLER:STEPS."
    )


@dataclass(kw_only=True)
class MeasureArguments:
    """What to measure."""

    _argument_group_name = "measurement"

    metrics: list[str] | None = flag(
        help="nll: bits/dim. frechet: Fréchet distance. kid: kernel distance. prdc: precision, recall, density, "
        "coverage. is: Inception or class score. prompt: how many samples follow their captions (captioned digits). "
        "clip: how well they follow any captions, by --clip_model. memorization: copies of training images, and "
        "duplicates. reconstruction: PSNR and SSIM, and the latents' spread, of an autoencoder. "
        "retrieval: whether a CLIP finds captions and pictures by each other. prior: how near embeddings drawn for "
        "captions are to those of pictures, of dalle2's prior. These three are the default for such models; else that "
        "is nll.",
    )
    clip_model: str | None = flag(
        help="CLIP for --metrics clip: a folder or Hub name with a CLIPModel, such as openai/clip-vit-base-patch32, "
        "or one that train.py trained."
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


@dataclass(kw_only=True)
class Request(ImageArguments, SampleArguments, MeasureArguments):
    """All of it, for one model.

    Attributes:
        model: a pipeline's folder or Hub name, or samples as a folder or .npz.
        settings: of the run that trained it, from its `training_config.yaml`; empty if unknown.
    """

    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raises ValueError if a flag is out of range or contradicts another."""
        for name, lowest in _LOWEST.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ValueError(f"--{name} must be at least {lowest}, got {value}")
        if self.resamples == 1:
            raise ValueError("--resamples must be 0 or at least 2, got 1")
        unknown = sorted(set(self.metrics or ()) - set(METRICS))
        if unknown or self.metrics == []:
            raise ValueError(f"--metrics must be among {', '.join(METRICS)}, got {', '.join(unknown) or 'none'}")
        others = sorted(set(self.metrics or ["nll"]) - set(QUALITY_METRICS))
        if self.compare is not None and others:
            raise ValueError(f"--compare needs --metrics among {', '.join(QUALITY_METRICS)}, got {', '.join(others)}")
        if self.of_samples and (given := self.asked_of_samples):
            raise ValueError(f"{self.model} holds samples, which are drawn already; leave out {', '.join(given)}")
        check_guidance(self.guidance_scale, **self.finer_guidance)
        if self.scheduler is not None and self.scheduler not in SAMPLER_NAMES:
            raise ValueError(f"--scheduler must be one of {', '.join(SAMPLER_NAMES)}, got {self.scheduler!r}")

    @property
    def asked_of_samples(self) -> list[str]:
        """The flags that say how samples are drawn."""
        usual = {entry.name: entry.default for entry in fields(SampleArguments) if entry.name != "num_images"}
        return [f"--{name}" for name, value in usual.items() if getattr(self, name) != value]

    @property
    def of_samples(self) -> bool:
        """Whether `model` holds samples instead of a pipeline."""
        path = Path(self.model)
        return path.suffix == ARRAY_SUFFIX or (path.is_dir() and not (path / DDPMPipeline.config_name).is_file())

    @property
    def is_of_base(self) -> bool:
        """Whether pictures are not enlarged."""
        return self.stage == "base" or set(self.metrics or ["nll"]) == {"nll"}

    @property
    def folder(self) -> Path:
        """Folder for the results."""
        of_pipeline = Path(self.model).is_dir() and not self.of_samples
        return Path(self.output_dir or (self.model if of_pipeline else "evaluation"))
