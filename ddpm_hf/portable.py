"""Saved configs and indexes that stock diffusers can read.

A saved pipeline names diffusers' own classes in `model_index.json`, `unet/config.json` and
`scheduler/scheduler_config.json`, so stock diffusers loads it. `ddpm_hf.DDPMPipeline.from_pretrained` reads the same
files and returns our classes.
"""

import json
from collections.abc import Mapping
from typing import Any

PACKAGE = __name__.partition(".")[0]
INDEX_FILE = "model_index.json"
CONFIG_FILE = "training_config.yaml"  # a run's settings
UPSAMPLER_FOLDER = "upsampler"  # in the folder of the pipeline whose pictures it enlarges
AUTOENCODER_FOLDER = "autoencoder"  # in the folder of the pipeline whose latents it makes, as it was trained
CLIP_FOLDER = "clip"  # in the folder of the pipeline that draws what it embeds
PRIOR_FOLDER = "prior"  # likewise, of what makes such embeddings of captions
ADAPTERS_FILE = "pytorch_lora_weights.safetensors"  # where stock's `load_lora_weights` looks
INPAINTING_FOLDER = "inpainting"  # in the folder of the pipeline from which it was fine-tuned

# Our class -> the diffusers class with the same configuration and weights.
STOCK_CLASS_NAMES = {"DDPMUNet2D": "UNet2DModel", "LinearDDPMScheduler": "DDPMScheduler"}
# Without torchvision, transformers loads the first of these where stock pipelines name the second, and warns.
_PIL_PROCESSOR, _PROCESSOR = "CLIPImageProcessorPil", "CLIPImageProcessor"
STOCK_PIPELINES = {
    "TextToImagePipeline": "IFPipeline",
    "UpsamplingPipeline": "IFSuperResolutionPipeline",
    "InpaintingPipeline": "IFInpaintingPipeline",
    "LatentTextToImagePipeline": "StableDiffusionPipeline",
    "LatentInpaintingPipeline": "StableDiffusionInpaintPipeline",
    "PriorPipeline": "KandinskyV22PriorPipeline",
    "DecoderPipeline": "KandinskyV22Pipeline",
    "UnclipPipeline": "KandinskyV22CombinedPipeline",
}


class PortableConfig:
    """Mixin for our subclasses of diffusers' models and schedulers: their saved config names the stock class.

    List it before the diffusers class in the bases. `save_pretrained` and `push_to_hub` both call `to_json_string`. A
    user's subclass of one of our classes keeps its own name, because the stock class may lack what it adds.
    """

    def to_json_string(self) -> str:
        """The configuration as JSON, with the stock `_class_name`."""
        config = json.loads(super().to_json_string())
        if type(self).__module__.partition(".")[0] == PACKAGE:
            config["_class_name"] = STOCK_CLASS_NAMES[type(self).__name__]
        return json.dumps(config, indent=2, sort_keys=True) + "\n"


def components(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The parts of a pipeline by its `model_index.json`: name -> (library, class), without optional ones left out."""
    return {
        name: tuple(value)
        for name, value in index.items()
        if isinstance(value, list) and [type(word) for word in value] == [str, str] and not name.startswith("_")
    }


def stock_component(library: str | None, class_name: str | None) -> list[str | None]:
    """The `[library, class]` pair of an index entry, with our class replaced by diffusers'.

    Accepts both names that diffusers writes for our library: `ddpm_hf` (if registered) and the full module path.
    """
    if library is not None and library.partition(".")[0] == PACKAGE and class_name in STOCK_CLASS_NAMES:
        return ["diffusers", STOCK_CLASS_NAMES[class_name]]
    return [library, _PROCESSOR if class_name == _PIL_PROCESSOR else class_name]


def own_component(library: str | None, class_name: str | None) -> list[str | None]:
    """The reverse of `stock_component`: diffusers' class replaced by ours, if there is one."""
    for own_name, stock_name in STOCK_CLASS_NAMES.items():
        if (library, class_name) == ("diffusers", stock_name):
            return [PACKAGE, own_name]
    return [library, _PIL_PROCESSOR if class_name == _PROCESSOR else class_name]


class StrictWeights:
    """Mixin for our subclasses of diffusers' models: weights that do not match the network exactly are an error.

    diffusers only warns and leaves missing weights random. List it before the diffusers class in the bases.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in diffusers, which documents the arguments.

        Raises:
            ValueError: the config belongs to another class, or keys or shapes of the weights do not match (lists
                them). With `ignore_mismatched_sizes=True` shapes may differ.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        may_differ = kwargs.pop("ignore_mismatched_sizes", False)
        # Tolerant here, to list missing, unknown and mismatched keys in one error.
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        differing = [] if may_differ else info["mismatched_keys"]
        problems = {
            "missing": info["missing_keys"],
            "unknown": info["unexpected_keys"],
            "of another shape": [f"{key} ({list(there)}, not {list(here)})" for key, there, here in differing],
        }
        if any(problems.values()):
            listed = "; ".join(f"{what}: {_first_of(keys)}" for what, keys in problems.items() if keys)
            raise ValueError(
                f"The weights in {pretrained_model_name_or_path} do not match the config of {cls.__name__}: {listed}."
            )
        return (model, info) if wants_info else model

    @classmethod
    def load_config(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in diffusers. ValueError if the config belongs to a class that is not a base of this one."""
        config = super().load_config(pretrained_model_name_or_path, *args, **kwargs)
        saved = (config[0] if isinstance(config, tuple) else config).get("_class_name")
        if saved is not None and saved not in {base.__name__ for base in cls.__mro__}:
            raise ValueError(
                f"{pretrained_model_name_or_path} must have a config that {cls.__name__} can load, got {saved}."
            )
        return config


def _first_of(keys: list[str], limit: int = 10) -> str:
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(sorted(keys)[:limit]) + more
