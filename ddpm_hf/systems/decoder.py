"""The decoder of DALL·E 2 (Ramesh et al. 2022, arXiv 2204.06125, §2.1): a picture, drawn for CLIP's embedding of it.

It differs from the paper in what it is told: the embedding as 32 tokens instead of four, and not the caption, which
stock `KandinskyV22Pipeline` does not tell.
"""

from dataclasses import replace
from pathlib import Path

from diffusers import UnCLIPScheduler, UNet2DConditionModel
from torch import nn

from ..codecs.pixels import ToldPixelCodec
from ..conditions.embedding import ImageEmbedding
from ..data.examples import TrainingImages
from ..diffusion.process import LEARNED_VARIANCES
from ..models.clip import Clip
from ..models.movq import identity_movq
from ..models.prior import new_prior
from ..pipelines.fingerprint import weights_fingerprint
from ..pipelines.loading import load_pipeline
from ..pipelines.prior import PriorPipeline
from ..pipelines.unclip import EmbeddingDenoiser, UnclipPipeline
from ..portable import PRIOR_FOLDER
from ..settings.config import Config
from ..settings.resolve import check_start, choose_preset, filled, given_unet_config, with_level
from .autoencoder import example_batch
from .base import finished_stage, judged_by_samples
from .clip import find_clip, preset_of_all
from .ddpm import build_loss, build_scheduler, check_size
from .glide import build_unet
from .kept_pictures import keep_embeddings
from .system import Stage, System, init_from
from .text import on, with_dropout


def start_of_decoder(config: Config) -> UnclipPipeline | None:
    """The model given to start from, if there is one; ValueError if there is no prior either."""
    start = init_from(config)
    folder = Path(config.run.output_dir, PRIOR_FOLDER)
    if start is None and not config.run.dry_run and finished_stage(config, "prior", folder) is None:
        raise ValueError(f"--stage decoder needs a finished prior in {folder}; train it with --stage prior")
    return start


def resolve_decoder(config: Config, start: UnclipPipeline | None) -> Config:
    """The settings with every one filled in; as `resolve`."""
    check_start(start, UnclipPipeline, config.model.system)
    unet_config = given_unet_config(config, start)
    config = judged_by_samples(config, "what the decoder is told says most of the picture")
    config = config.filled({"channels": 3})
    if config.data.channels != 3:
        raise ValueError(
            "--channels must be 3 for --stage decoder, to which grey pictures are converted, got "
            f"{config.data.channels}"
        )
    config = filled(config, preset_of_all(config, unet_config), unet_config, start)
    config = with_level(config)
    build_loss(config, build_scheduler(config, start))  # what is wrong with them is said before the first stage trains
    return config


def build_decoder(config: Config, images: TrainingImages, start: UnclipPipeline | None) -> System:
    """U-Net, process and objective, with the prior and the CLIP of the model, which are kept as they are.

    Raises:
        ValueError: if images, CLIP, prior, network, process and settings do not fit together, naming the argument.
    """
    if start is None:
        clip = find_clip(config, images)
        prior, known_by = _prior(config, clip), clip.fingerprint
    else:
        prior, known_by = start.prior, weights_fingerprint(start.prior_image_encoder)
    width = prior.image_encoder.config.projection_dim
    scheduler, unet = build_scheduler(config, start), _unet(config, images, width, start)
    kept, source = keep_embeddings(config, images, prior.image_encoder, prior.image_processor)
    sees = replace(prior.codec, kept=kept, source=source)
    codec, shown = ToldPixelCodec(images.shape), example_batch(config, images)
    captions = config.run.validation_prompts or images.some_captions(config.run.preview_images)

    def pipeline(network: EmbeddingDenoiser) -> UnclipPipeline:
        device = network.unet.device
        parts = {
            f"prior_{name}": on(device, part) if isinstance(part, nn.Module) else part
            for name, part in prior.components.items()
        }
        return UnclipPipeline(network.unet, scheduler, identity_movq().to(device), **parts)

    return System(
        codec=codec,
        conditions=[
            ImageEmbedding(
                width=width,
                embedder=sees,
                empty=prior.get_zero_embed()[0].detach(),
                hidden=config.model.condition_dropout,
                examples=list(sees.embeddings({"images": shown["images"]})),
                pictures=list(codec.encode(shown)),
            )
        ],
        network=EmbeddingDenoiser(unet, all_outputs=config.process.variance_type in LEARNED_VARIANCES),
        scheduler=scheduler,
        loss=build_loss(config, scheduler),
        pipeline=pipeline,
        shown=[replace(prior.conditions[0], examples=captions)],
        facts={
            "clip": f"one with the hash {known_by}",
            "prior": f"one with the hash {weights_fingerprint(prior.prior)}",
        },
    )


def _unet(config: Config, images: TrainingImages, width: int, start: UnclipPipeline | None) -> UNet2DConditionModel:
    if start is not None:
        return with_dropout(start.unet, config.model.dropout)
    check_size(lambda: [build_unet(config, images.shape, width, told="image")])
    return build_unet(config, images.shape, width, told="image")


def _prior(config: Config, clip: Clip) -> PriorPipeline:
    """The finished prior; for a dry run before there is one, a new one.

    Raises:
        ValueError: it was trained with another CLIP.
    """
    folder = finished_stage(config, "prior", Path(config.run.output_dir, PRIOR_FOLDER))
    if folder is None:
        shape = choose_preset(config).prior.model
        network = new_prior(clip.dimension, clip.length, width=shape["prior_width"], layers=shape["prior_layers"])
        parts = clip.vision(), clip.text(), clip.tokenizer, UnCLIPScheduler(), clip.processor
        return PriorPipeline(network, *parts)
    prior = load_pipeline(str(folder))
    if weights_fingerprint(prior.image_encoder) != weights_fingerprint(clip.vision()):
        raise ValueError(
            f"--stage decoder needs a prior of its own CLIP, but that in {folder} has learned from another; train it "
            "again with --stage prior --overwrite_output_dir, or name its own with --clip_model"
        )
    return prior


DECODER_STAGE = Stage(
    name="decoder",
    captioned=lambda config: True,
    start=start_of_decoder,
    resolve=resolve_decoder,
    build=build_decoder,
)
