"""What a card says of each kind of pipeline; its sentences are in `model_card.md`, under the name of the class."""

import json
from collections.abc import Sequence
from typing import Any

from ..conditions.low_resolution import usual_level
from ..models.autoencoder import factor_of
from ..models.text_unet import LOW_SIDE
from ..portable import INDEX_FILE
from ..sampling.samplers import FAST_CALLS
from .folder import ModelFolder
from .stock import DDPM, betas_argument, fast_samplers, network_lines, obstacles


def _kind(channels: int) -> str:
    return {1: "grey", 3: "RGB", 4: "RGBA"}.get(channels, f"{channels}-channel")


def _common_values(model: DDPM) -> dict[str, Any]:
    height, width = model.size
    return {
        "kind": _kind(model.channels),
        "height": height,
        "width": width,
        "timesteps": model.timesteps,
        "obstacles": obstacles(model),
        "fewer_steps": FAST_CALLS if model.timesteps > 2 * FAST_CALLS and fast_samplers(model) else None,
        "betas_argument": betas_argument(model),
        "learned_variance": model.learns_variance,
    }


def _ddpm_values(folder: ModelFolder) -> dict[str, Any]:
    model = DDPM(folder.index, **folder.configs)
    names, variance_type = model.class_names, model.scheduler.get("variance_type")
    # As Python source: names, or numbers if the classes have no names.
    labels = [repr(name) if model.index.get("id2label") else name for name in names]
    several = f"class_labels=[{', '.join(labels[:4])}]" if names else "batch_size=4"
    values = _common_values(model)
    return values | {
        "tags": ["ddpm", "diffusion-models", "ddpm_hf"] + ["class-conditional-image-generation"] * bool(names),
        "class_count": len(names),
        "network_lines": network_lines(model),
        "channels": model.channels,
        "labels": list(range(min(4, len(names)))),
        "label_names": ", ".join(" ".join(name.split()) for name in names[:4]),
        # The same variance, of which diffusers takes the root as it should.
        "scheduler_change": ', variance_type="fixed_large"' if variance_type == "fixed_large_log" else "",
        # Stock `DDPMPipeline` assumes 1000.
        "call": f"num_inference_steps={model.timesteps}" if model.timesteps != 1000 else "",
        "own_call": several,
        "classes": _listed(names),
        "guided": model.is_guided,
        "stock_samplers": [] if values["obstacles"] else ["DDPMScheduler", *fast_samplers(model)],
    }


def _network_and_process(folder: ModelFolder) -> DDPM:
    return DDPM(folder.index, folder.configs["unet"], folder.configs["scheduler"])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:100]) + ", …" * (len(names) > 100)


def _example(folder: ModelFolder) -> str:
    """A caption, of a class if captions were made of their names."""
    names, template = folder.summary.get("class_names"), folder.settings.get("init_caption_from_labels")
    return template.replace("{}", names[0]) if names and template else "a red apple"


def _asked(caption: str, scale: float = 3.0) -> str:
    """What an example asks for, in stock's pipeline and in ours, as Python source."""
    return f"{json.dumps(caption, ensure_ascii=False)}, guidance_scale={scale}, "


_OF_DALLE2 = ["dall-e-2", "unclip", "diffusion-models", "ddpm_hf"]


def _of_system(folder: ModelFolder) -> dict[str, Any]:
    """Whether it is one of Imagen, of DALL·E 2 or of GLIDE, which have the same pipelines."""
    system = folder.settings.get("system")
    system = system if system in ("imagen", "dalle2") else "glide"
    tags = _OF_DALLE2 if system == "dalle2" else [system, "diffusion-models", "ddpm_hf"]
    return {"system": system, "tags": tags}


def _usual_noise(upsampler: DDPM | None) -> int | None:
    """The level of noise of the small picture where none is asked for; None for an upsampler without it."""
    if upsampler is None or upsampler.unet.get("class_embed_type") is None:
        return None
    return usual_level(upsampler.timesteps)


def _enlarging(folder: ModelFolder) -> dict[str, Any]:
    """What a card says of the upsampler in a folder."""
    upsampler = folder.upsampler and _network_and_process(folder.upsampler)
    return {
        "upsampled": upsampler and upsampler.size[0],
        "upsampler_timesteps": upsampler and upsampler.timesteps,
        "upsampler_obstacles": upsampler and obstacles(upsampler),
        "noise_level": _usual_noise(upsampler),
    }


def _text_values(folder: ModelFolder) -> dict[str, Any]:
    model = _network_and_process(folder)
    return _common_values(model) | {
        **_of_system(folder),
        **_enlarging(folder),
        "asked": _asked(_example(folder)),
        "asked_unguided": _asked(_example(folder), scale=1.0),
        "inpaints": folder.inpainting is not None and not obstacles(_network_and_process(folder.inpainting)),
    }


def _inpainting_values(folder: ModelFolder) -> dict[str, Any]:
    return _common_values(_network_and_process(folder)) | {
        "tags": ["glide", "inpainting", "diffusion-models", "ddpm_hf"],
        "fewer_steps": None,
        "asked": _asked(_example(folder)),
        "has_base": _has_base(folder),
    }


def _has_base(folder: ModelFolder) -> bool:
    """Whether it was fine-tuned from the model above it."""
    return (folder.path.resolve().parent / INDEX_FILE).is_file() and not folder.settings.get("init_from")


def _upsampler_values(folder: ModelFolder) -> dict[str, Any]:
    model = _network_and_process(folder)
    return _common_values(model) | {
        **_of_system(folder),
        "noise_level": _usual_noise(model),
        "fewer_steps": None,  # the card of the base says how
        "low_side": model.unet[LOW_SIDE],
    }


def _latent_values(folder: ModelFolder) -> dict[str, Any]:
    model, vae = _network_and_process(folder), folder.configs["vae"]
    values, factor = _common_values(model), factor_of(vae)
    height, width = (factor * side for side in model.size)
    if height % 8 or width % 8:
        values["obstacles"].append(f"It needs sides divisible by 8; these images are {width}x{height}.")
    learned_none = "text_encoder" in folder.summary and folder.summary.get("caption_column") is None
    template = folder.settings.get("init_caption_from_labels")
    return values | {
        **({"task": "unconditional-image-generation"} if learned_none else {}),
        "captioned": not learned_none,
        "classes": _listed(folder.summary.get("class_names") or ()) if template else None,
        "template": template,
        "tags": ["stable-diffusion", "latent-diffusion", "diffusion-models", "ddpm_hf"],
        "kind": _kind(vae["out_channels"]),
        "height": height,
        "width": width,
        "latent_height": model.size[0],
        "latent_width": model.size[1],
        "asked": _asked("", scale=1.0) if learned_none else _asked(_example(folder)),
        "inpaints": folder.inpainting is not None and not values["obstacles"],
        "tokens": folder.configs["tokenizer"]["model_max_length"],
    }


def _latent_inpainting_values(folder: ModelFolder) -> dict[str, Any]:
    values = _latent_values(folder)
    return values | {
        "task": TASKS[folder.index["_class_name"]][0],
        "tags": [*values["tags"], "inpainting"],
        "fewer_steps": None,
        "has_base": _has_base(folder),
    }


def _unclip_values(folder: ModelFolder) -> dict[str, Any]:
    height, width = _network_and_process(folder).size
    return _common_values(_network_and_process(folder)) | {
        **_enlarging(folder),
        "tags": _OF_DALLE2,
        "asked": f"{_asked(_example(folder))}height={height}, width={width}, ",
        "own_asked": _asked(_example(folder)),
        "embedding_width": folder.configs["unet"]["encoder_hid_dim"],
        "tokens": folder.configs["prior_tokenizer"]["model_max_length"],
    }


def _autoencoder_values(folder: ModelFolder) -> dict[str, Any]:
    vae = folder.configs["vae"]
    height, width = (vae["sample_size"],) * 2 if isinstance(vae["sample_size"], int) else vae["sample_size"]
    factor = factor_of(vae)
    return {
        "tags": ["autoencoder", "diffusion-models", "ddpm_hf"],
        "kind": _kind(vae["in_channels"]),
        "channels": vae["in_channels"],
        "height": height,
        "width": width,
        "factor": factor,
        "latent_channels": vae["latent_channels"],
        "compression": vae["in_channels"] * factor**2 / vae["latent_channels"],
    }


def _clip_values(folder: ModelFolder) -> dict[str, Any]:
    config = folder.configs["clip"]
    side = config["vision_config"]["image_size"]
    return {
        "tags": ["clip", "dalle-2", "ddpm_hf"],
        "height": side,
        "width": side,
        "embedding_width": config["projection_dim"],
        "tokens": folder.configs["tokenizer"]["model_max_length"],
        "caption": json.dumps(_example(folder), ensure_ascii=False),
        "zero_shot": any(metric["name"].startswith("zero_shot_") for metric in folder.metrics),
    }


def _prior_values(folder: ModelFolder) -> dict[str, Any]:
    return {
        "tags": _OF_DALLE2,
        "embedding_width": folder.configs["prior"]["embedding_dim"],
        "tokens": folder.configs["tokenizer"]["model_max_length"],
        "caption": json.dumps(_example(folder), ensure_ascii=False),
    }


# For each of `pipelines.loading.PIPELINES` its task on the Hub, and what gives a model's tags and the card's values.
TASKS = {
    "DDPMPipeline": ("unconditional-image-generation", _ddpm_values),
    "IFPipeline": ("text-to-image", _text_values),
    "IFSuperResolutionPipeline": ("image-to-image", _upsampler_values),
    "IFInpaintingPipeline": ("image-to-image", _inpainting_values),
    "StableDiffusionPipeline": ("text-to-image", _latent_values),
    "StableDiffusionInpaintPipeline": ("image-to-image", _latent_inpainting_values),
    "KandinskyV22CombinedPipeline": ("text-to-image", _unclip_values),
    "ReconstructionPipeline": ("image-to-image", _autoencoder_values),
    "KandinskyV22PriorPipeline": ("feature-extraction", _prior_values),
    "ContrastivePipeline": ("zero-shot-image-classification", _clip_values),
}
