"""Draw images from a pipeline: an output folder of train.py, or any DDPM on the Hub."""

import copy
import sys
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.state import PartialState
from accelerate.utils import parse_flag_from_env

from ..cores import check_processes, describe_processes, use_cores
from ..flags import flag
from ..pipelines.ddpm import DDPMPipeline
from ..pipelines.loading import check_whole, for_inpainting, load_pipeline
from ..sampling.drawing import Drawing, read_picture
from ..sampling.embeddings import embed
from ..sampling.sample_folder import SampleFolder
from ..sampling.samplers import FAST_CALLS, SAMPLER_NAMES, make_fast_sampler, make_sampler
from ..settings.arguments import MachineArguments
from ..steps.guidance import GuidanceArguments, check_noise_level, check_prior
from ..training.interruption import Interruption, exit_status
from .parser import OneLineParser, one_line_errors
from .pictures import EmbeddingArguments, PictureArguments, as_drawn, only_picture, read, refuse

TEXT_GUIDANCE = 3.0


@dataclass(kw_only=True)
class SampleArguments(GuidanceArguments):
    """How images are drawn."""

    _argument_group_name = "images"

    output_dir: str = flag("samples", help="Folder for the images, and for overview/ with a grid of them.")
    output_format: Literal["png", "npz", "dataset"] | None = flag(
        help="png: 00000.png, … and metadata.csv. npz: samples.npz with arr_0, uint8 (N, H, W, C), C = 1 for grey, "
        "and arr_1, the classes. dataset: data/*.parquet, for datasets.load_dataset. png by default."
    )
    num_images: int | None = flag(help="Number of images; 16 by default, and with --prompts as many as there are.")
    batch_size: int = flag(64, help="Images per network call of one process; does not affect the images.")
    seed: int = flag(0, help="Random seed. Image k of a seed is always the same.")
    num_inference_steps: int | None = flag(
        help="Steps per image; by default all trained timesteps, or 100 for --text_difference and --reconstruct."
    )
    scheduler: str | None = flag(help=f"Sampler: {', '.join(SAMPLER_NAMES)}.")
    fast: bool = flag(False, help=f"Few network calls: {FAST_CALLS} steps of dpm-sde at trailing timesteps.")
    class_labels: str | None = flag(
        help="Class names or numbers, separated by commas, which the images cycle through; all classes by default."
    )
    prompt: str | None = flag(help="What the images show, for a model that is told captions.")
    prompts: str | None = flag(help="A text file in UTF-8 with a prompt on each line, which the images cycle through.")
    negative_prompt: str | None = flag(help="What the images do not show: guidance leads away from it.")
    stage: Literal["base"] | None = flag(
        help="base: draw with the base alone, without an upsampler or a model fine-tuned for inpainting."
    )
    guidance_scale: float | None = flag(
        help="1 is plain conditional sampling; larger values give more typical images of a class or a prompt. "
        "By default 3 with a prompt and 1 otherwise."
    )
    image: str | None = flag(
        help="An image as large as the model's, where only the white part of --mask_image is drawn: by the model "
        "that was fine-tuned for inpainting, if there is one in inpainting/. Without a mask see --strength."
    )
    strength: float | None = flag(
        help="Of --image without --mask_image, for models of latents: how far to draw it anew, from 0 to 1, by "
        "default 0.8. With a mask, how far to draw what is white, by default 1; a model "
        "in inpainting/ takes only 1."
    )
    mask_image: str | None = flag(help="White where to draw, black where to keep --image.", aliases=("--mask",))
    device: str | None = flag(help="cpu, cuda, cuda:1 or mps; by default the best available, one per process.")


def main(argv: list[str]) -> None:
    """Check everything, then draw; a bad request becomes one line and exit status 2."""
    groups = (SampleArguments, PictureArguments, EmbeddingArguments, MachineArguments)
    parser = OneLineParser(groups, prog="sample.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("pipeline", help="A folder with model_index.json, or a Hub name.")
    arguments, pictures, embeddings, machine, names = parser.parse(argv)
    with one_line_errors(parser):
        check(arguments, pictures, embeddings)
        drawing = prepare(names.pipeline, arguments, pictures, embeddings)
        use_cores(drawing.pipeline.device, machine.num_cpu_threads)
        only = only_picture(drawing, arguments, pictures, embeddings)
        if only is None:
            path, output_format = Path(arguments.output_dir), arguments.output_format or "png"
            count = arguments.num_images or (len(drawing.asked["prompt"]) if arguments.prompts else 16)
            folder, missing = drawing.open_folder(path, count, output_format, pipeline=names.pipeline)
    if only is None:
        draw(drawing, folder, missing, pictures, embeddings.variations)
    elif PartialState().is_main_process:
        file, make = only
        file.parent.mkdir(parents=True, exist_ok=True)
        make().save(file)
        print(f"picture: {file}")
    PartialState().destroy_process_group()


def check(arguments: SampleArguments, pictures: PictureArguments, embeddings: EmbeddingArguments) -> None:
    """Raises ValueError if a flag is out of range or contradicts another."""
    if arguments.prompt is not None and arguments.prompts is not None:
        raise ValueError("--prompt and --prompts both say what the images show; leave one out")
    for argument in ("num_images", "batch_size", "num_inference_steps"):
        value = getattr(arguments, argument)
        if value is not None and value < 1:
            raise ValueError(f"--{argument} must be at least 1, got {value}")
    for name in ("mask_image", "strength"):
        if arguments.image is None and getattr(arguments, name) is not None:
            raise ValueError(f"--{name} needs --image")
    if arguments.strength is not None and not 0 < arguments.strength <= 1:
        raise ValueError(f"--strength must be above 0 and at most 1, got {arguments.strength:g}")
    if arguments.fast and (arguments.scheduler is not None or arguments.num_inference_steps is not None):
        raise ValueError("--fast brings its own --scheduler and --num_inference_steps; leave them out")
    if pictures.interpolate is None and pictures.interpolation_depths is not None:
        raise ValueError("--interpolation_depths needs --interpolate")
    if pictures.interpolate is not None and len(pictures.interpolate) != 2:
        raise ValueError(f"--interpolate must be two image files, got {len(pictures.interpolate)}")
    words = ("prompt", "prompts", "negative_prompt", "image", "class_labels")
    asked = {name: getattr(arguments, name) for name in words}
    if embeddings.asked is not None:
        refuse(embeddings.asked, "takes the place of", asked | {"interpolate": pictures.interpolate})
        refuse(embeddings.asked, "does not ask the prior; leave out", arguments.of_prior)
    if embeddings.asked not in (None, "variations"):
        how = {name: getattr(arguments, name) for name in ("fast", "scheduler", "guidance_scale")}
        how |= arguments.finer_guidance | arguments.asked_thresholding
        refuse(embeddings.asked, "draws with DDIM and without guidance; leave out", how)
    only = "interpolate" if pictures.interpolate is not None else embeddings.asked
    if only not in (None, "variations"):
        others = {name: getattr(arguments, name) for name in ("num_images", "output_format", "image", "aug_level")}
        strips = {name: getattr(pictures, name) for name in ("denoising_strip", "progressive")}
        refuse(only, "draws only one picture; leave out", others | strips)


def prepare(
    name: str, arguments: SampleArguments, pictures: PictureArguments, embeddings: EmbeddingArguments
) -> Drawing:
    """The pipeline on this process's device, ready to draw with the requested sampler.

    Raises:
        ValueError: the pipeline cannot be loaded, or the sampler, the device or a class cannot be used.
    """
    pipeline = load_pipeline(name)
    if pipeline.scheduler is None or not pipeline.draws_pictures:
        raise ValueError(f"pipeline {name!r} is {pipeline.kind}, which draws nothing by itself; see evaluate.py")
    if any(condition.name == "image" for condition in pipeline.conditions):
        raise ValueError(f"{name} only enlarges pictures; give the folder above it, which draws them too")
    if arguments.stage == "base":
        pipeline = pipeline.alone()
    else:
        check_whole(name)
    if arguments.stage is None and arguments.mask_image is not None:
        pipeline = for_inpainting(pipeline, name)
    check_noise_level(arguments.aug_level, pipeline.stages[-1].noise_levels, "--aug_level")
    check_prior(arguments.of_prior, pipeline)
    if embeddings.asked is not None and not pipeline.has_prior:
        raise ValueError(f"--{embeddings.asked} needs a model that draws by way of an embedding, as dalle2 does")
    pipeline.threshold(arguments.asked_thresholding)
    scale = arguments.guidance_scale
    if scale is None:
        scale = TEXT_GUIDANCE if pipeline.is_told_captions else 1.0
    steps = arguments.num_inference_steps or pipeline.scheduler.config.num_train_timesteps
    for stage in pipeline.stages:
        if arguments.fast:
            stage.scheduler, steps = make_fast_sampler(stage.scheduler)
        elif arguments.scheduler is not None:
            stage.scheduler = make_sampler(arguments.scheduler, stage.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    # PartialState ignores the launcher's --cpu, and each process would then consider itself the only one. The timeout
    # is long because a process may finish hours before the others.
    on_cpu = arguments.device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=7))
    check_processes()
    if arguments.device not in (None, "cpu") and state.num_processes > 1:
        raise ValueError("--device can be given only with one process: several get one device each")
    try:
        pipeline.to(torch.device(arguments.device) if arguments.device else state.device)
    except (RuntimeError, AssertionError) as problem:
        raise ValueError(f"cannot use --device {arguments.device}: {problem}") from None
    if embeddings.variations is not None:
        asked = {"image_embeds": [embed(pipeline, read("variations", embeddings.variations))]}
        pipeline = pipeline.looking_at_pictures()
    elif pipeline.has_prior and (pictures.interpolate or embeddings.asked):
        asked = {}
    else:
        asked = asked_for(pipeline, arguments, scale)
    return Drawing(
        pipeline=pipeline,
        steps=steps,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        asked=asked,
        guidance_scale=scale,
        finer_guidance=arguments.finer_guidance,
        of_prior=arguments.of_prior,
        noise_level=arguments.aug_level,
        given={} if arguments.image is None else given_for(pipeline, arguments, steps),
    )


def given_for(pipeline: DDPMPipeline, arguments: SampleArguments, steps: int) -> dict[str, Any]:
    """`image`, `mask_image` and `strength` of the pipeline call; ValueError if they do not suit model and sampler."""
    files = {name: getattr(arguments, name) for name in ("image", "mask_image")}
    given = {name: read_picture(file) for name, file in files.items() if file is not None}
    if "strength" in signature(pipeline.__call__).parameters:
        given["strength"] = arguments.strength or (0.8 if arguments.mask_image is None else 1.0)
        scheduler = copy.deepcopy(pipeline.scheduler)
        scheduler.set_timesteps(steps)
        pipeline.skipped_by(given["strength"], scheduler)
    elif arguments.strength is not None or arguments.mask_image is None:
        raise ValueError("--image needs --mask_image, and no --strength, but for models of latents")
    pipeline.stages[-1].known(**given)
    return given


def asked_for(pipeline: DDPMPipeline, arguments: SampleArguments, guidance_scale: float) -> dict[str, list]:
    """What the network is told, as arguments of the pipeline call with words to cycle through."""
    asked = {}
    if arguments.class_labels is not None:
        words = [word.strip() for word in arguments.class_labels.split(",")]
        names = (pipeline.id2label or {}).values()
        # Names take precedence, because a class may be called "3".
        asked["class_labels"] = [int(word) if word.isdecimal() and word not in names else word for word in words]
    for name in ("prompt", "prompts", "negative_prompt"):
        if getattr(arguments, name) is not None and not pipeline.is_told_captions:
            raise ValueError(f"--{name} must be left out for a model that is not told captions")
    if guidance_scale != 1 and not pipeline.is_told_captions and any(c.name == "prompt" for c in pipeline.conditions):
        raise ValueError(f"--guidance_scale must be 1 for a model that is not told captions, got {guidance_scale:g}")
    if arguments.prompts is not None:
        asked["prompt"] = read_prompts(arguments.prompts)
    elif arguments.prompt is not None:
        asked["prompt"] = [arguments.prompt]
    if not asked and guidance_scale != 0 and not pipeline.is_told_captions:
        asked = {condition.name: condition.usual() for condition in pipeline.conditions}
    # A negative prompt is one for all.
    negative = {} if arguments.negative_prompt is None else {"negative_prompt": arguments.negative_prompt}
    told, _, _ = pipeline.ask(asked | negative, guidance_scale)
    if arguments.class_labels is not None:
        asked["class_labels"] = told["class_labels"].tolist()
    return asked | {name: [words] for name, words in negative.items()}


def read_prompts(file: str) -> list[str]:
    """The lines of a text file that are not blank; ValueError if there are none, or it cannot be read as UTF-8."""
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").split("\n")
    except (UnicodeDecodeError, OSError) as problem:
        raise ValueError(f"--prompts {file} cannot be read as UTF-8: {problem}") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"--prompts {file} must have a prompt on each line, but is empty")
    return prompts


def draw(
    drawing: Drawing, folder: SampleFolder, missing: list[int], pictures: PictureArguments, varied: str | None
) -> None:
    """Draw the images, if they are `varied` from one beside it, and the pictures asked for; exits early if the
    launcher has died."""
    state, interruption = PartialState(), Interruption(None)
    if state.is_main_process:
        work = f"{len(missing)} of {folder.num_images} images, {drawing.calls} network calls each"
        processes = describe_processes(drawing.pipeline.device, state.num_processes)
        print(f"to draw: {work}, {processes}", flush=True)
    if not drawing.draw_images(folder, missing, go_on=lambda: not interruption.reason()):
        sys.exit(exit_status(interruption.reason()))
    if not state.is_main_process:
        return
    first = {} if varied is None else {Path(varied).name: as_drawn(drawing, read_picture(varied))}
    print(f"images: {folder.result}\npicture: {folder.finish(first)}")
    for name, asked in (("denoising", pictures.denoising_strip), ("progressive", pictures.progressive)):
        if asked:
            strip = drawing.draw_chain(folder, name, predicted=name == "progressive")
            print(f"{name}: {strip}, {strip.with_suffix('.webp').name}")


if __name__ == "__main__":
    main(sys.argv[1:])
