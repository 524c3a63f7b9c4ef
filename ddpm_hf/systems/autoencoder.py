"""The autoencoder of latent diffusion (Rombach et al. 2022, arXiv 2112.10752), trained by itself before the rest."""

import copy
from collections.abc import Iterator

import torch
from diffusers import AutoencoderKL

from ..codecs.pixels import PixelCodec
from ..conditions.picture import Picture
from ..data.examples import TrainingImages
from ..data.transforms import parse_resolution
from ..diffusion.reconstruction import ReconstructionLoss
from ..evaluation.image_sets import ImageSet
from ..models.autoencoder import latent_statistics, new_autoencoder, standardize
from ..pipelines.reconstruction import Autoencoder, ReconstructionPipeline
from ..seeds import generator_for
from ..settings.config import Config
from ..settings.resolve import check_architecture, choose_preset, filled_from
from .adversarial import judged, perceptual
from .ddpm import check_size
from .system import System

ARCHITECTURE = ("base_channels", "channel_multipliers", "blocks_per_level", "latent_channels")
# Training pictures by which latents or embeddings are standardised, at most. Of the latents of two halves of 10,000
# captioned digits, the variances of a channel differed by up to 2.7 %; of so many they are known within 1 %.
_MEASURED = 50_000


def resolve_autoencoder(config: Config, start: None = None) -> Config:
    """The settings with every one filled in that an autoencoder has, from the preset.

    Raises:
        ValueError: if they contradict each other, naming the argument.
    """
    if config.model.vae is not None:
        raise ValueError(f"--vae {config.model.vae} takes the place of --stage autoencoder; leave one out")
    preset = choose_preset(config)
    preset = preset.autoencoder or preset
    check_architecture(config, preset)
    if config.data.is_bundled:  # digits, of which more can be told
        config = config.filled({"eval_metrics": ["reconstruction", "frechet", "prompt"], "eval_extractor": "digits"})
    config = filled_from(config, preset)
    check_divides(2 ** (len(config.model.channel_multipliers) - 1), config.data.resolution)
    return config.with_values({"preview_guidance_scale": 1.0})


def check_divides(factor: int, resolution: str) -> None:
    """Raises ValueError, with the nearest that would do, for pictures that are no multiple of their latents."""
    sides = parse_resolution(resolution)
    if any(side % factor for side in sides):
        near = [str(max(1, round(side / factor)) * factor) for side in sides]
        raise ValueError(
            f"--resolution must be a multiple of {factor}, by which the autoencoder makes pictures smaller, got "
            f"{resolution}; the nearest is {near[0] if sides[0] == sides[1] else 'x'.join(near)}"
        )


def draft_autoencoder(config: Config, images: TrainingImages) -> AutoencoderKL:
    """One with random weights, which is a function of the seed."""
    channels, *size = images.shape
    architecture = {name: getattr(config.model, name) for name in ARCHITECTURE} | {"channels": channels}
    check_size(lambda: [new_autoencoder(tuple(size), **architecture)])
    generator = generator_for(config.optimization.seed, "initial weights", "autoencoder")
    return new_autoencoder(tuple(size), **architecture, generator=generator)


def build_autoencoder(config: Config, images: TrainingImages, start: None = None) -> System:
    """Network and objective.

    Raises:
        ValueError: the latents would be larger than the pictures, the weights larger than this machine's memory, or
            what judges the reconstructions cannot be had.
    """
    channels = images.shape[0]
    factor = 2 ** (len(config.model.channel_multipliers) - 1)
    if config.model.latent_channels > channels * factor**2:
        raise ValueError(
            f"--latent_channels must be at most {channels * factor**2}, with which latents have as many numbers as "
            f"pictures, got {config.model.latent_channels}"
        )
    network = Autoencoder(draft_autoencoder(config, images))
    options = config.optimization
    trained, adversarial = judged(config, images, network) or (None, None)
    codec = PixelCodec(images.shape)

    def finish(network: Autoencoder) -> Autoencoder:
        network = copy.deepcopy(network)
        pictures = (codec.encode(batch) for batch in first_batches(images, options.train_batch_size))
        standardize(network.vae, *latent_statistics(network.vae, pictures))
        return network

    return System(
        codec=codec,
        conditions=[Picture(shape=images.shape, examples=list(codec.encode(example_batch(config, images))))],
        network=network,
        trained=trained,
        scheduler=None,
        loss=ReconstructionLoss(options.rec_loss, options.kl_weight, perceptual(config, images), adversarial),
        told_from=(0, {}) if trained is None else (options.adversarial_start, {"judged": True}),
        pipeline=lambda network: ReconstructionPipeline(network.vae),
        finish=finish,
    )


def first_batches(images: TrainingImages, batch_size: int) -> Iterator[dict]:
    """An epoch of training pictures, or the first of it, cropped and flipped as in training."""
    count = min(_MEASURED, images.count or _MEASURED)
    return images.batches(range(start, min(start + batch_size, count)) for start in range(0, count, batch_size))


def example_batch(config: Config, images: TrainingImages) -> dict[str, torch.Tensor]:
    """Rows for previews: held out of training, if there are any at hand, else of training."""
    count = config.run.preview_images
    batch = images.some_batch(count)
    if images.store is not None and images.holdout.holds_out:
        held_out = ImageSet(
            data=images.source,
            holdout=images.holdout,
            size=images.shape[1:],
            channels=images.shape[0],
            most=count,
            skip_unreadable=True,
            cache_dir=config.data.cache_dir,
            decoded=images.store,
        )
        batch = next(held_out.batches(count), batch)
    return batch
