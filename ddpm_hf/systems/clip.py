"""The CLIP (Radford et al. 2021, arXiv 2103.00020) of DALL·E 2, trained by itself before the rest, or a given one."""

from pathlib import Path
from typing import Any

from ..codecs.pixels import PixelCodec
from ..data.examples import TrainingImages
from ..data.transforms import parse_resolution
from ..diffusion.contrastive import ContrastiveLoss
from ..models.clip import Clip, load_clip, new_clip, new_image_processor, train_clip_tokenizer
from ..models.preset import Preset
from ..models.text import fingerprint
from ..pipelines.contrastive import Contrastive, ContrastivePipeline
from ..portable import CLIP_FOLDER, PRIOR_FOLDER
from ..seeds import seeded
from ..settings.config import Config
from ..settings.resolve import choose_preset, filled_from
from .base import finished_stage
from .ddpm import check_size
from .system import Stage, System

# Argument of `new_clip` -> its flag.
_ARCHITECTURE = {
    "width": "clip_width",
    "layers": "clip_layers",
    "text_width": "text_width",
    "text_layers": "text_layers",
    "embedding_width": "embedding_width",
    "patch": "patch_size",
}


def resolve_clip(config: Config, start: None = None) -> Config:
    """The settings with every one filled in that a CLIP has, from the preset.

    Raises:
        ValueError: if they contradict each other, naming the argument.
    """
    if config.model.clip_model is not None:
        raise ValueError(f"--clip_model {config.model.clip_model} takes the place of --stage clip; leave one out")
    options = config.optimization
    if options.gradient_accumulation_steps != 1:
        raise ValueError(
            "--gradient_accumulation_steps must be 1 for --stage clip, whose captions are compared with all pictures "
            f"of a step at once, got {options.gradient_accumulation_steps}"
        )
    config = filled_from(config, _preset(config))
    (height, width), patch = parse_resolution(config.data.resolution), config.model.patch_size
    if height != width or height % patch:
        raise ValueError(
            f"--resolution must be one side of squares, a multiple of --patch_size {patch}, for --stage clip, got "
            f"{config.data.resolution}"
        )
    return config


def _preset(config: Config) -> Preset:
    preset = choose_preset(config)
    return preset.clip or preset


def preset_of_all(config: Config, unet_config: dict[str, Any] | None = None) -> Preset:
    """As `choose_preset`; ValueError for one of a CLIP alone, without the other stages."""
    preset = choose_preset(config, unet_config)
    if preset.prior is None:
        raise ValueError(f"--preset {config.model.preset} is for --stage clip alone")
    return preset


def build_clip(config: Config, images: TrainingImages, start: None = None) -> System:
    """Tokenizer, network and objective.

    Raises:
        ValueError: the pictures are grey, or the weights would be larger than this machine's memory.
    """
    check_in_colour("clip", images)
    clip = _new(config, images, images.shape[1])

    def pipeline(network: Contrastive) -> ContrastivePipeline:
        return ContrastivePipeline(network.clip, clip.tokenizer, clip.processor)

    network = Contrastive(clip.model)
    return System(
        codec=PixelCodec(images.shape),
        conditions=pipeline(network).conditions,
        network=network,
        scheduler=None,
        loss=ContrastiveLoss(),
        pipeline=pipeline,
        facts={"text_encoder": f"learned from captions whose vocabulary has the hash {fingerprint(clip.tokenizer)}"},
    )


def check_in_colour(stage: str, images: TrainingImages) -> None:
    """Raises ValueError for pictures that a CLIP does not take."""
    if images.shape[0] != 3:
        raise ValueError(
            f"--channels must be 3 for --stage {stage}, got {images.shape[0]}, which is what the images have or was "
            "given; --channels 3 converts them"
        )


def place_of_clip(config: Config) -> str | None:
    """Folder or Hub name of the CLIP that the other stages use; None if it has not been trained yet."""
    if config.model.clip_model is not None:
        return config.model.clip_model
    folder = finished_stage(config, "clip", _own_folder(config))
    return None if folder is None else str(folder)


def find_clip(config: Config, images: TrainingImages | None = None) -> Clip | None:
    """The CLIP that the other stages use.

    Args:
        images: if it has not been trained yet, a dry run gets one with random weights for these; without them, None.

    Raises:
        ValueError: it cannot be loaded, or has not been trained.
    """
    place = place_of_clip(config)
    if place is not None:
        return load_clip(place, "--clip_model")
    if images is None:
        return None
    if not config.run.dry_run:
        stage = (config.model.stage or ["decoder"])[-1]
        raise ValueError(
            f"--stage {stage} needs a finished CLIP in {_own_folder(config)}; train it with --stage clip, or name one "
            "with --clip_model"
        )
    return _new(config, images, _preset(config).model["resolution"])


def _own_folder(config: Config) -> Path:
    """Where a run has its CLIP."""
    folder = Path(config.run.output_dir)
    return (folder.parent if folder.name == PRIOR_FOLDER else folder) / CLIP_FOLDER


def _new(config: Config, images: TrainingImages, resolution: int) -> Clip:
    """One with random weights, which is a function of seed and captions; what is not given is the preset's."""
    usual, flags = _preset(config).model, config.flags()
    sizes = {name: flags[flag] or usual[flag] for name, flag in _ARCHITECTURE.items()}
    tokenizer = train_clip_tokenizer(images.captions(), flags["text_length"] or usual["text_length"])
    check_size(lambda: [new_clip(resolution, tokenizer, **sizes)])
    with seeded(config.optimization.seed, "initial weights", "clip"):
        return Clip(new_clip(resolution, tokenizer, **sizes), tokenizer, new_image_processor(resolution))


CLIP_STAGE = Stage(
    name="clip",
    folder=CLIP_FOLDER,
    by_default=lambda config: config.model.clip_model is None and config.model.init_from is None,
    captioned=lambda config: True,
    start=lambda config: None,
    resolve=resolve_clip,
    build=build_clip,
)
