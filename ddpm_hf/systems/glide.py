"""GLIDE (Nichol et al. 2021, arXiv 2112.10741): pixels told a caption, by a text encoder learned with the U-Net.

What stock diffusers runs differs from the paper in one thing: the caption's states are pooled by attention for the
time embedding, where the paper takes the state of the last token.
"""

import torch
from diffusers import UNet2DConditionModel
from transformers import T5EncoderModel

from ..codecs.pixels import PixelCodec
from ..conditions.prompt import Prompt
from ..data.examples import TrainingImages
from ..diffusion.process import LEARNED_VARIANCES
from ..models.text import CAPTION_LENGTH, fingerprint, small_text_encoder, train_tokenizer
from ..models.text_unet import new_text_unet
from ..pipelines.text_to_image import TextDenoiser, TextToImagePipeline
from ..seeds import derive_seed
from .config import Config
from .ddpm import build_loss, build_scheduler, check_size
from .resolve import ARCHITECTURE_FLAGS, check_start, resolve
from .system import Stage, System


def build(config: Config, images: TrainingImages, start: TextToImagePipeline | None) -> System:
    """Tokenizer, text encoder, U-Net, process and objective; arguments and errors as for a DDPM."""
    check_start(start, TextToImagePipeline, "glide")
    scheduler = build_scheduler(config, start)
    if start is not None:
        tokenizer, text_encoder, unet = start.tokenizer, start.text_encoder, start.unet
        if config.model.dropout is not None:
            unet = UNet2DConditionModel.from_config({**unet.config, "dropout": config.model.dropout})
            unet.load_state_dict(start.unet.state_dict())
    else:
        tokenizer = train_tokenizer(images.captions())
        check_size(lambda: _networks(config, images.shape, len(tokenizer)))
        text_encoder, unet = _networks(config, images.shape, len(tokenizer))
    network = TextDenoiser(unet, text_encoder, config.process.variance_type in LEARNED_VARIANCES)
    prompt = Prompt(
        tokenizer=tokenizer,
        length=CAPTION_LENGTH,
        hidden=config.model.condition_dropout,
        examples=images.some_captions(config.run.preview_images),
    )
    return System(
        codec=PixelCodec(images.shape),
        conditions=[prompt],
        network=network,
        scheduler=scheduler,
        loss=build_loss(config, scheduler),
        pipeline=lambda network: TextToImagePipeline(
            tokenizer, network.text_encoder, network.unet, scheduler, None, None, None
        ),
        rates={"text_encoder": config.model.text_rate},
        facts={"text_encoder": f"learned from captions whose vocabulary has the hash {fingerprint(tokenizer)}"},
    )


def _networks(config: Config, shape: tuple[int, int, int], tokens: int) -> tuple[T5EncoderModel, UNet2DConditionModel]:
    """Text encoder and U-Net with random weights, each a function of the seed."""
    channels, height, width = shape
    if height != width:
        raise ValueError(f"--resolution must be square for --system glide, got {height}x{width}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.optimization.seed, "initial weights", "text encoder"))
        text_encoder = small_text_encoder(tokens, config.model.text_width, config.model.text_layers)
        torch.manual_seed(derive_seed(config.optimization.seed, "initial weights"))
        unet = new_text_unet(
            resolution=height,
            channels=channels,
            dropout=config.model.dropout,
            text_width=config.model.text_width,
            **{name: getattr(config.model, name) for name in ARCHITECTURE_FLAGS},
        )
    return text_encoder, unet


STAGES = (Stage(resolve=resolve, build=build),)
