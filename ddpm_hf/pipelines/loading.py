"""Load a pipeline from a folder or the Hub, or say in one line why it cannot be loaded."""

from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from diffusers import DiffusionPipeline
from diffusers.utils.logging import disable_progress_bar
from huggingface_hub import snapshot_download

from ..portable import CONFIG_FILE, INDEX_FILE, INPAINTING_FOLDER, UPSAMPLER_FOLDER, components, stock_component
from .ddpm import DDPMPipeline

# The class that an index names -> the module and the class that load it here, imported when they are needed: those
# with text encoders take seconds. `check_parts` of a class raises ValueError, naming a component, if loaded parts do
# not fit each other.
PIPELINES = {
    "DDPMPipeline": DDPMPipeline,
    "IFPipeline": ("text_to_image", "TextToImagePipeline"),
    "IFSuperResolutionPipeline": ("upsampling", "UpsamplingPipeline"),
    "IFInpaintingPipeline": ("text_to_image", "InpaintingPipeline"),
    "StableDiffusionPipeline": ("latent_text_to_image", "LatentTextToImagePipeline"),
    "StableDiffusionInpaintPipeline": ("latent_inpainting", "LatentInpaintingPipeline"),
    "KandinskyV22CombinedPipeline": ("unclip", "UnclipPipeline"),
    "ReconstructionPipeline": ("reconstruction", "ReconstructionPipeline"),
    "KandinskyV22PriorPipeline": ("prior", "PriorPipeline"),
    "ContrastivePipeline": ("contrastive", "ContrastivePipeline"),
}
# An index calls diffusers' own module of a safety checker by that name.
_LIBRARIES = ("diffusers", "transformers", "stable_diffusion")
# Of a scheduler, a tokenizer, a preprocessor, and a network, which is the only one with weights.
NETWORK_CONFIG = "config.json"
_CONFIG_FILES = ("scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json", NETWORK_CONFIG)


def load_pipeline(name: str) -> DDPMPipeline:
    """Load one of `PIPELINES` in diffusers' format, with our classes. Never runs code from the repository.

    Args:
        name: a folder with a `model_index.json`, or `user/repository` on the Hub.

    Raises:
        ValueError: there is no such pipeline, its class is unknown, it lacks a component or has one too many, it
            requires custom code, weights do not match their config, or the components do not fit each other.
    """
    if Path(name).is_dir() and not (Path(name) / INDEX_FILE).is_file():
        inside, advice = Path(name, INPAINTING_FOLDER), ""
        if (Path(name, UPSAMPLER_FOLDER) / INDEX_FILE).is_file():
            system = _settings(Path(name, UPSAMPLER_FOLDER)).get("system", "glide")
            stage = "decoder" if system == "dalle2" else "base"
            train = f"train it with --system {system} --stage {stage} --output_dir {name}"
            advice = f"; the base of its upsampler is missing: {train}"
        elif (inside / INDEX_FILE).is_file():
            advice = f"; give {inside}, which has one"
        raise ValueError(f"pipeline {name!r} has no {INDEX_FILE}{advice}")
    try:
        index = DDPMPipeline.load_config(name)
        pipeline_class = check_index(index, name)
        for component in components(index) if Path(name).is_dir() else ():
            config_file(Path(name), component)  # raises if it is missing
        disable_progress_bar()  # of a few files
        pipeline = pipeline_class.from_pretrained(name)
    except OSError as problem:
        raise ValueError(f"cannot load pipeline {name!r} from a folder or the Hub: {problem}") from None
    try:
        pipeline.check_parts()
    except ValueError as problem:
        raise ValueError(f"pipeline {name!r} has components that do not fit each other: {problem}") from None
    return pipeline


def check_whole(name: str) -> None:
    """Raises ValueError for a folder whose upsampler is still being trained, so that pictures would stay small."""
    folder = Path(name, UPSAMPLER_FOLDER)
    if (folder / CONFIG_FILE).is_file() and not (folder / INDEX_FILE).is_file():
        settings = _settings(folder)
        stage = " ".join(settings.get("stage") or ["upsampler"])
        raise ValueError(
            f"{name} lacks its stage {stage}, which is not finished: train it with --system "
            f"{settings.get('system', 'glide')} --stage {stage} --output_dir {name}, or draw with --stage base alone"
        )


def _settings(folder: Path) -> dict[str, Any]:
    """Of the run in a folder, if they are there."""
    file = folder / CONFIG_FILE
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}


def for_inpainting(pipeline: DDPMPipeline, name: str) -> DDPMPipeline:
    """What draws a part of a picture best.

    Args:
        pipeline: from `load_pipeline`.
        name: of the pipeline, as it was given there.

    Returns:
        The model that was fine-tuned from it for inpainting, with its upsampler; itself if there is none.

    Raises:
        ValueError: as `load_pipeline`.
    """
    if [condition.name for condition in pipeline.conditions] != ["prompt"]:  # no text-to-image pipeline
        return pipeline
    folder = Path(name)
    if not folder.is_dir():
        folder = Path(snapshot_download(name, allow_patterns=f"{INPAINTING_FOLDER}/*"))
    if not (folder / INPAINTING_FOLDER / INDEX_FILE).is_file():
        return pipeline
    tuned = load_pipeline(str(folder / INPAINTING_FOLDER))
    if hasattr(pipeline, "upsampler"):
        tuned.upsampler = pipeline.upsampler
        tuned.check_parts()
    return tuned


def class_for(name: str) -> type[DiffusionPipeline]:
    """The class that loads what an index calls a `name`, one of `PIPELINES`."""
    if isinstance(PIPELINES[name], type):
        return PIPELINES[name]
    module, own_name = PIPELINES[name]
    return getattr(import_module(f".{module}", __package__), own_name)


def component_names(pipeline_class: type[DiffusionPipeline]) -> list[str]:
    """The components of a pipeline class, optional ones included."""
    return pipeline_class._get_signature_keys(pipeline_class)[0]


def check_index(index: dict[str, Any], name: str) -> type[DiffusionPipeline]:
    """The class of `PIPELINES` that loads a pipeline, found by its `model_index.json`.

    Args:
        index: content of the file, or the result of `load_config`.
        name: of the pipeline, for the message.

    Raises:
        ValueError: the pipeline's class is unknown, it requires code outside diffusers and transformers, or it lacks
            a component or has one too many.
    """
    class_name, found = index.get("_class_name"), components(index)
    if isinstance(class_name, list):
        _refuse_code(name, "the pipeline", class_name)
    if class_name not in PIPELINES:
        raise ValueError(f"pipeline {name!r} must be a {' or '.join(PIPELINES)}, got {class_name}")
    for component, pair in found.items():
        if stock_component(*pair)[0] not in _LIBRARIES:
            _refuse_code(name, component, pair)
    pipeline_class = class_for(class_name)
    known = {*component_names(pipeline_class)}
    for component in sorted(known - found.keys() - {*pipeline_class._optional_components}):
        raise ValueError(f"pipeline {name!r} has no {component} in {INDEX_FILE}")
    for component in sorted(found.keys() - known):
        raise ValueError(f"pipeline {name!r} has a {component} in {INDEX_FILE}, which no {class_name} has")
    return pipeline_class


def config_file(path: Path, component: str) -> Path:
    """The config file of a component, in its own folder or, as in old repositories, beside the index.

    Raises:
        ValueError: there is none.
    """
    own = [path / component / name for name in _CONFIG_FILES]
    for file in (*own, path / f"{component}_config.json", path / NETWORK_CONFIG):
        if file.is_file():
            return file
    raise ValueError(f"{path} has no config of its {component}")


def _refuse_code(name: str, component: str, pair: tuple[str, str]) -> None:
    raise ValueError(
        f"pipeline {name!r} requires code outside diffusers and transformers, which is never run here: {component} is "
        f"{pair[1]} from {pair[0]!r}; if you trust it, load it in Python with trust_remote_code=True"
    )
