"""Latent diffusion (Rombach et al. 2022, arXiv 2112.10752) in the form of Stable Diffusion: an autoencoder, and a
diffusion of its latents told a caption.

It differs from the paper in the text encoder, which by default is a small one learned with the U-Net (CLIP and others
can be named), and in the latents, whose channels are standardised one by one in the autoencoder itself.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, PreTrainedModel, PreTrainedTokenizerFast

from ..codecs.latents import LatentCodec
from ..data.examples import TrainingImages
from ..diffusion.process import LEARNED_VARIANCES
from ..diffusion.scheduler import LinearDDPMScheduler
from ..models.autoencoder import factor_of
from ..models.latent_unet import new_latent_unet
from ..models.text import is_learned
from ..pipelines.adapters import AdaptedDenoiser
from ..pipelines.fingerprint import weights_fingerprint
from ..pipelines.latent_inpainting import LATENTS, LatentInpaintingPipeline
from ..pipelines.latent_text_to_image import LatentTextToImagePipeline, missing_weights
from ..pipelines.text_to_image import TextDenoiser
from ..portable import AUTOENCODER_FOLDER, INPAINTING_FOLDER
from ..seeds import seeded
from ..settings.checks import check_text_encoder
from ..settings.config import Config
from ..settings.resolve import (
    ARCHITECTURE_FLAGS,
    check_start,
    choose_preset,
    filled,
    given_unet_config,
    plain,
    resolution_text,
    with_level,
)
from .autoencoder import (
    ARCHITECTURE,
    build_autoencoder,
    check_divides,
    draft_autoencoder,
    resolve_autoencoder,
)
from .base import finished_stage, for_inpainting, judged_by_samples, start_from_base
from .ddpm import build_loss, build_scheduler, check_size
from .kept_pictures import keep
from .latent_inpainting import told_holes
from .system import Stage, System, init_from
from .text import build_prompt, build_text, check_parts, on, teach, with_dropout

# The autoencoder


def _place_of_autoencoder(config: Config) -> str | None:
    """Folder or Hub name of the autoencoder that makes the latents; None if it has not been trained yet."""
    if config.model.vae is not None:
        return config.model.vae
    folder = finished_stage(config, "autoencoder", Path(config.run.output_dir, AUTOENCODER_FOLDER))
    return None if folder is None else str(folder)


def _find_autoencoder(config: Config) -> dict[str, Any] | None:
    """Its configuration, with the `name` and `subfolder` from which it is loaded; None as above.

    Raises:
        ValueError: it is no `AutoencoderKL`.
    """
    name = _place_of_autoencoder(config)
    if name is None:
        return None
    for subfolder in ("vae", ""):
        try:
            found = AutoencoderKL.load_config(name, subfolder=subfolder or None)
        except OSError:
            continue
        if found.get("_class_name") == "AutoencoderKL":
            return {**found, "name": name, "subfolder": subfolder}
    raise ValueError(f"--vae must be a folder or Hub name with an AutoencoderKL, or with one in its vae/, got {name}")


def _autoencoder(config: Config, start: LatentTextToImagePipeline | None, images: TrainingImages) -> AutoencoderKL:
    """The frozen autoencoder.

    Raises:
        ValueError: its weights cannot be loaded, or it does not fit the images.
    """
    found = _find_autoencoder(config) if start is None else None
    if start is not None:
        vae = start.vae
    elif found is None:
        preset = choose_preset(config)
        fixed = {name: value for name, value in config.flags().items() if value != plain(preset.model.get(name))}
        shape = {name: plain(preset.autoencoder.model[name]) for name in ARCHITECTURE}
        vae = draft_autoencoder(config.with_values({name: fixed.get(name) or shape[name] for name in shape}), images)
    else:
        try:
            vae = AutoencoderKL.from_pretrained(
                found["name"], subfolder=found["subfolder"], torch_dtype=torch.float32, use_safetensors=True
            )
        except (OSError, ValueError) as problem:
            reason = str(problem).strip().partition("\n")[0]
            raise ValueError(f"--vae must have its weights as safetensors, got {found['name']}: {reason}") from None
        if missing := missing_weights(vae):
            raise ValueError(f"--vae must have all of its weights, got {found['name']} without {missing[0]}")
    _check_pictures(vae.config, images.shape[0], config.data.resolution)
    return vae.eval().requires_grad_(False)


def _check_pictures(vae_config: Mapping[str, Any], channels: int, resolution: str) -> None:
    """Raises ValueError for pictures that an autoencoder of this configuration cannot take."""
    if vae_config["in_channels"] != channels:
        raise ValueError(
            f"--channels must be {vae_config['in_channels']} for this autoencoder, got {channels}, which is what the "
            "images have or was given"
        )
    check_divides(factor_of(vae_config), resolution)


# The diffusion


def start_of_unet(config: Config) -> LatentTextToImagePipeline | None:
    """The model given to start from, if there is one; ValueError if there is no autoencoder either."""
    start = init_from(config)
    if start is None and _place_of_autoencoder(config) is None and not config.run.dry_run:
        folder = Path(config.run.output_dir, AUTOENCODER_FOLDER)
        raise ValueError(
            f"--stage unet needs a finished autoencoder in {folder}; train it with --stage autoencoder, or name one "
            "with --vae"
        )
    return start


def resolve_unet(config: Config, start: LatentTextToImagePipeline | None) -> Config:
    """The settings with every one filled in; as `resolve`, with channels and size of the autoencoder's pictures."""
    check_start(start, LatentTextToImagePipeline, "stable-diffusion")
    if isinstance(start, LatentInpaintingPipeline):
        raise ValueError(f"{config.start} was fine-tuned for inpainting; give the model before it")
    if start is not None and (config.model.lora_rank or not is_learned(start.tokenizer)):
        config = config.filled({"text_encoder": "frozen"})
        check_text_encoder(config.flags())
    unet_config = given_unet_config(config, start)
    preset = choose_preset(config, unet_config)
    if not preset.process:
        raise ValueError(f"--preset {config.model.preset} is for --stage autoencoder alone")
    config = judged_by_samples(config, "latents have no bits/dim")
    found = _find_autoencoder(config) if start is None else None
    if found is not None:
        size = found.get("sample_size")
        config = config.filled(
            {"channels": found["in_channels"], "resolution": resolution_text(size) if size else None}
        )
        _check_pictures(found, config.data.channels, config.data.resolution)
    config = filled(config, preset, unet_config, start)
    config = with_level(config)
    if config.process.variance_type in LEARNED_VARIANCES:
        raise ValueError(
            "--variance_type must be fixed_small or fixed_large for --system stable-diffusion, whose stock pipelines "
            f"would guide a learned variance, got {config.process.variance_type}"
        )
    build_loss(config, build_scheduler(config, start))  # what is wrong with them is said before the first stage trains
    return config


def build_unet(config: Config, images: TrainingImages, start: LatentTextToImagePipeline | None) -> System:
    """U-Net, process and objective on the latents of the autoencoder, which is kept as it is.

    Raises:
        ValueError: if images, autoencoder, network, process and settings do not fit together, naming the argument.
    """
    vae, text = _autoencoder(config, start, images), build_text(config, images, start)
    tokenizer, text_encoder = text
    shape = vae.config.latent_channels, *(side // factor_of(vae.config) for side in images.shape[1:])
    scheduler, learned = _scheduler(config, start), config.model.text_encoder == "train"
    if start is None:
        read_as_stock_does(*text, config.model.text_length)
        check_size(lambda: [_unet(config, shape, text_encoder.config.hidden_size)])
        unet = _unet(config, shape, text_encoder.config.hidden_size)
    else:
        unet = with_dropout(start.unet, config.model.dropout)

    def pipeline(network: TextDenoiser) -> LatentTextToImagePipeline:
        device = network.unet.device
        encoder = network.text_encoder if learned else on(device, text_encoder)
        made = LatentTextToImagePipeline(on(device, vae), encoder, tokenizer, network.unet, scheduler)
        made.adapters = network.adapters
        return made

    if config.model.lora_rank is None:
        network = TextDenoiser(unet, text_encoder if learned else None, all_outputs=True)
    else:
        with seeded(config.optimization.seed, "initial weights", "adapters"):
            network = AdaptedDenoiser(unet, config.model.lora_rank)
    finished = pipeline(network)
    check_parts(finished, "--text_encoder" if config.model.vae is None else "--vae or --text_encoder")
    prompt, facts = build_prompt(config, images, text, **finished.about_prompt)
    return System(
        codec=_codec(config, images, vae, shape),
        conditions=[prompt],
        network=network,
        scheduler=scheduler,
        loss=build_loss(config, scheduler),
        pipeline=pipeline,
        begin=partial(teach, config, images, text),
        finish=None if config.model.lora_rank is None else AdaptedDenoiser.fused,
        rates={"text_encoder": config.model.text_rate} if learned else {},
        facts={"text_encoder": facts, "autoencoder": f"one with the hash {weights_fingerprint(vae)}"},
    )


def resolve_inpainting(config: Config, base: LatentTextToImagePipeline | None) -> Config:
    """The settings of the fine-tuning with every one filled in; as `resolve_unet`."""
    if config.model.lora_rank is not None:
        raise ValueError(f"--lora_rank {config.model.lora_rank} is not for --stage inpainting; leave one out")
    config = resolve_unet(for_inpainting(config, base), base)
    if base is not None:
        channels = base.latent_channels
    elif (found := _find_autoencoder(config)) is not None:
        channels = found["latent_channels"]
    else:
        channels = config.model.latent_channels or choose_preset(config).autoencoder.model["latent_channels"]
    if channels != LATENTS:
        raise ValueError(
            f"--stage inpainting needs latents with {LATENTS} channels, with which stock diffusers inpaints, got "
            f"{channels}; leave it out, or choose --latent_channels or --vae"
        )
    return config


def build_inpainting(config: Config, images: TrainingImages, base: LatentTextToImagePipeline | None) -> System:
    """The base, told random holes; arguments and errors as in `build_unet`."""
    return told_holes(build_unet(config, images, base), config, images)


def _codec(config: Config, images: TrainingImages, vae: AutoencoderKL, shape: tuple[int, int, int]) -> LatentCodec:
    """One that keeps posteriors, which the batches of `images` have then, if each picture is always the same."""
    settings = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    kept, source = keep(config, images, "latents", (2, *shape), [weights_fingerprint(vae), settings])
    return LatentCodec(shape, vae, config.optimization.seed, kept, source)


def _scheduler(config: Config, start: LatentTextToImagePipeline | None) -> LinearDDPMScheduler:
    """Latents have no range to clip to, and of another `steps_offset` stock's pipeline warns, though nothing uses it
    with this spacing."""
    return LinearDDPMScheduler.from_config(build_scheduler(config, start).config, clip_sample=False, steps_offset=1)


def read_as_stock_does(tokenizer: PreTrainedTokenizerFast, text_encoder: PreTrainedModel, length: int) -> None:
    """The length of captions, and, but for CLIP, which never had it, a mask of their padding: stock's
    `StableDiffusionPipeline` finds both in the saved files."""
    tokenizer.model_max_length = min(tokenizer.model_max_length, length)
    if not isinstance(text_encoder, CLIPTextModel):
        text_encoder.config.use_attention_mask = True


def _unet(config: Config, shape: tuple[int, int, int], text_width: int) -> UNet2DConditionModel:
    with seeded(config.optimization.seed, "initial weights"):
        return new_latent_unet(
            shape[1:],
            channels=shape[0],
            dropout=config.model.dropout,
            text_width=text_width,
            **{name: getattr(config.model, name) for name in ARCHITECTURE_FLAGS},
        )


def _reads_captions(config: Config) -> bool:
    """Of an autoencoder, which is not told them: whether it is asked how many can still be read."""
    data = config.data
    return data.is_bundled or data.caption_column is not None or bool(data.init_caption_from_labels)


STAGES = (
    Stage(
        name="autoencoder",
        folder=AUTOENCODER_FOLDER,
        by_default=lambda config: config.model.vae is None and config.model.init_from is None,
        captioned=_reads_captions,
        start=lambda config: None,
        resolve=resolve_autoencoder,
        build=build_autoencoder,
    ),
    Stage(
        name="unet",
        captioned=lambda config: "if any",
        start=start_of_unet,
        resolve=resolve_unet,
        build=build_unet,
    ),
    Stage(
        name="inpainting",
        folder=INPAINTING_FOLDER,
        by_default=lambda config: False,
        captioned=lambda config: "if any",
        start=partial(start_from_base, kind=LatentTextToImagePipeline, stage="unet"),
        resolve=resolve_inpainting,
        build=build_inpainting,
    ),
)
