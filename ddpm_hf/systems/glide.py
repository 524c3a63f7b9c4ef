"""GLIDE (Nichol et al. 2021, arXiv 2112.10741): pixels told a caption, by a text encoder learned with the U-Net.

What stock diffusers runs differs from the paper in one thing: the caption's states are pooled by attention for the
time embedding, where the paper takes the state of the last token. The encoder may also be a frozen one.
"""

import copy
import hashlib
import json
from collections.abc import Iterator
from itertools import chain

import torch
from diffusers import UNet2DConditionModel
from transformers import PreTrainedModel, PreTrainedTokenizerFast, T5EncoderModel

from ..codecs.pixels import PixelCodec
from ..conditions.prompt import FrozenPrompt, Prompt, as_told
from ..conditions.states import KeptStates
from ..data.examples import TrainingImages
from ..diffusion.process import LEARNED_VARIANCES
from ..models.text import CAPTION_LENGTH, fingerprint, load_text_encoder, small_text_encoder, train_tokenizer
from ..models.text_unet import new_text_unet
from ..pipelines.fingerprint import weights_fingerprint
from ..pipelines.text_to_image import TextDenoiser, TextToImagePipeline
from ..seeds import derive_seed
from .config import Config
from .ddpm import build_loss, build_scheduler, check_size
from .resolve import ARCHITECTURE_FLAGS, check_start, resolve
from .system import Stage, System


def build(config: Config, images: TrainingImages, start: TextToImagePipeline | None) -> System:
    """Tokenizer, text encoder, U-Net, process and objective; arguments and errors as for a DDPM."""
    check_start(start, TextToImagePipeline, "glide")
    scheduler, learned = build_scheduler(config, start), config.model.text_encoder == "train"
    if start is not None:
        tokenizer, text_encoder, unet = start.tokenizer, start.text_encoder, start.unet
        if config.model.dropout is not None:
            unet = UNet2DConditionModel.from_config({**unet.config, "dropout": config.model.dropout})
            unet.load_state_dict(start.unet.state_dict())
    elif learned:
        tokenizer = train_tokenizer(images.captions())
        check_size(lambda: _networks(config, images.shape, len(tokenizer)))
        text_encoder, unet = _networks(config, images.shape, len(tokenizer))
    else:
        tokenizer, text_encoder = load_text_encoder(config.model.text_encoder)
        check_size(lambda: [_unet(config, images.shape, text_encoder.config.hidden_size)])
        unet = _unet(config, images.shape, text_encoder.config.hidden_size)

    def pipeline(network: TextDenoiser) -> TextToImagePipeline:
        encoder = network.text_encoder if learned else _on(network.unet.device, text_encoder)
        return TextToImagePipeline(tokenizer, encoder, network.unet, scheduler, None, None, None)

    about = {
        "tokenizer": tokenizer,
        "length": CAPTION_LENGTH,
        "hidden": config.model.condition_dropout,
        "examples": images.some_captions(config.run.preview_images),
    }
    learns_variance = config.process.variance_type in LEARNED_VARIANCES
    network = TextDenoiser(unet, text_encoder if learned else None, learns_variance)
    if learned:
        prompt = Prompt(**about)
        facts = f"learned from captions whose vocabulary has the hash {fingerprint(tokenizer)}"
    else:
        _check_frozen(config, pipeline(network))
        number = _hash_of(text_encoder, tokenizer)
        states = _states(images, number, text_encoder.config.hidden_size)
        prompt = FrozenPrompt(**about, encoder=text_encoder.eval().requires_grad_(False), states=states)
        facts = f"frozen, with the hash {number}"
    return System(
        codec=PixelCodec(images.shape),
        conditions=[prompt],
        network=network,
        scheduler=scheduler,
        loss=build_loss(config, scheduler),
        pipeline=pipeline,
        rates={"text_encoder": config.model.text_rate} if learned else {},
        facts={"text_encoder": facts},
    )


def _networks(config: Config, shape: tuple[int, int, int], tokens: int) -> tuple[T5EncoderModel, UNet2DConditionModel]:
    """Text encoder and U-Net with random weights, each a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.optimization.seed, "initial weights", "text encoder"))
        text_encoder = small_text_encoder(tokens, config.model.text_width, config.model.text_layers)
    return text_encoder, _unet(config, shape, config.model.text_width)


def _unet(config: Config, shape: tuple[int, int, int], text_width: int) -> UNet2DConditionModel:
    channels, height, width = shape
    if height != width:
        raise ValueError(f"--resolution must be square for --system glide, got {height}x{width}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.optimization.seed, "initial weights"))
        return new_text_unet(
            resolution=height,
            channels=channels,
            dropout=config.model.dropout,
            text_width=text_width,
            **{name: getattr(config.model, name) for name in ARCHITECTURE_FLAGS},
        )


# A frozen encoder


def _check_frozen(config: Config, pipeline: TextToImagePipeline) -> None:
    try:
        pipeline.check_parts()
    except ValueError as problem:
        raise ValueError(f"--text_encoder {config.model.text_encoder} cannot be used: {problem}") from None


def _hash_of(text_encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> str:
    """Of all that turns captions into states."""
    settings = text_encoder.config.to_dict()
    settings = {name: settings[name] for name in settings.keys() - {"_name_or_path", "transformers_version"}}
    about = [weights_fingerprint(text_encoder), fingerprint(tokenizer), settings]
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _states(images: TrainingImages, encoder: str, width: int) -> KeptStates | None:
    """Of all training captions; None for a stream, whose captions are not known in advance."""
    if images.store is None:
        return None

    def captions() -> Iterator[str]:
        return chain([""], map(as_told, images.captions()))

    return KeptStates(images.store.folder.parent, encoder, captions, (CAPTION_LENGTH, width))


def _on(device: torch.device, encoder: PreTrainedModel) -> PreTrainedModel:
    """On a device: a copy if it is not there, which goes with its pipeline, so that training has the room."""
    return encoder if encoder.device == device else copy.deepcopy(encoder).to(device)


STAGES = (Stage(resolve=resolve, build=build),)
