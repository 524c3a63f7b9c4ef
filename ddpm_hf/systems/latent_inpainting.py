"""A network of latents fine-tuned to draw a part of a picture (Rombach et al. 2022, arXiv 2112.10752, §4.5), which is
told the hole and the rest of the picture by five more channels of its input."""

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from ..conditions.hole import HoleBeside, Known, pictures
from ..data.examples import TrainingImages
from ..hub.folder import ModelFolder
from ..pipelines.latent_inpainting import INPUTS, InpaintingDenoiser, LatentInpaintingPipeline
from ..pipelines.latent_text_to_image import LatentTextToImagePipeline
from ..pipelines.loading import load_pipeline
from ..portable import INDEX_FILE
from ..settings.config import Config
from ..settings.resolve import ARCHITECTURE_FLAGS, choose_preset
from .system import System, init_from

_FIXED = (*ARCHITECTURE_FLAGS, "text_width", "text_layers", "text_length", "text_warmup_steps")


def start_of_inpainting(config: Config) -> LatentTextToImagePipeline | None:
    """The model given to start from, or else that in the folder above; None for a dry run before there is one.

    Raises:
        ValueError: there is none that has been trained to its end.
    """
    folder = Path(config.run.output_dir).parent
    if config.model.init_from is not None:
        return init_from(config)
    if (folder / INDEX_FILE).is_file() and ModelFolder.read(folder).summary.get("status") != "running":
        return load_pipeline(str(folder))
    if config.run.dry_run:
        return None
    raise ValueError(f"--stage inpainting needs a finished model in --output_dir {folder}; train it with --stage unet")


def as_in_base(config: Config, start: LatentTextToImagePipeline | None) -> Config:
    """Settings without those that the model in the folder above fixes, and with the preset's for this stage.

    Raises:
        ValueError: one of them is another there, or what there is to start from cannot be given more channels.
    """
    preset = choose_preset(config, None if start is None else dict(start.unet.config))
    usual = dict(preset.inpainting)
    if config.optimization.num_epochs is not None:
        usual.pop("max_train_steps", None)
    config = config.filled(usual)
    if config.model.lora_rank is not None:
        raise ValueError(f"--lora_rank {config.model.lora_rank} is not for --stage inpainting; leave one out")
    if start is None:
        return config
    if start.unet.config.in_channels != 4:
        raise ValueError(
            "--stage inpainting needs a model of latents with 4 channels, with which stock diffusers inpaints, got "
            f"{start.unet.config.in_channels}"
        )
    if config.model.init_from is not None:
        return config
    there, flags = ModelFolder.read(Path(config.run.output_dir).parent).settings, config.flags()
    for name in (*_FIXED, "text_encoder"):
        if flags[name] not in (None, "frozen", there.get(name)):
            raise ValueError(
                f"--{name} {flags[name]} is not that of the model in --output_dir, {there.get(name)}; leave it out"
            )
    frozen = flags["text_encoder"] == "frozen" or there.get("text_encoder") not in (None, "train")
    return config.with_values(dict.fromkeys(_FIXED) | {"text_encoder": "frozen" if frozen else None})


def told_holes(system: System, config: Config, images: TrainingImages) -> System:
    """The system whose network is told random holes beside x_t."""
    (prompt,), codec, network = system.conditions, system.codec, system.network
    shown = images.some_batch(config.run.preview_images)
    hole = HoleBeside(seed=config.optimization.seed, codec=replace(codec, kept=None))
    masks = [hole.drawn(images.shape[1:], "preview", number) for number in range(len(shown["images"]))]
    return replace(
        system,
        conditions=[
            replace(prompt, examples=list(map(str, shown.get("captions", [""])))),
            Known(examples=pictures(shown["images"])),
            replace(hole, examples=masks),
        ],
        network=InpaintingDenoiser(widened(network.unet), network.text_encoder, all_outputs=True),
        pipeline=lambda network: LatentInpaintingPipeline(**system.pipeline(network).components),
    )


def widened(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The network with more channels of input, which at first do nothing."""
    changed = UNet2DConditionModel.from_config({**unet.config, "in_channels": INPUTS})
    weights = dict(unet.state_dict())
    old = weights["conv_in.weight"]
    more = torch.zeros(old.shape[0], INPUTS - old.shape[1], *old.shape[2:])
    changed.load_state_dict(weights | {"conv_in.weight": torch.cat([old, more], dim=1)})
    return changed
