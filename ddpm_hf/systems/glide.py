"""GLIDE (Nichol et al. 2021, arXiv 2112.10741): pixels told a caption, by a text encoder learned with the U-Net, an
upsampler that is told the caption and the small picture, and a base fine-tuned for inpainting.

Three things differ from the paper. The caption's states are pooled by attention for the time embedding, where the
paper takes the state of the last token, which stock pipelines do not pass on. The upsampler takes the base's text
encoder as it is, where the paper learns a second one: most of what the caption says is in the small picture already,
so the upsampler's loss would teach an encoder little. (The base's encoder may also be a frozen one.) And for
inpainting the paper gives the network the known pixels and the mask as four more channels, where stock pipelines put
the known pixels into x_t, without noise: here the network is fine-tuned to draw a hole in such an x_t.
"""

from dataclasses import replace
from functools import partial

from diffusers import DDPMScheduler, UNet2DConditionModel

from ..codecs.pixels import PixelCodec
from ..conditions.hole import Hole
from ..conditions.low_resolution import LowResolution
from ..data.captioned_digits import level_for
from ..data.examples import TrainingImages
from ..data.transforms import parse_resolution
from ..diffusion.process import LEARNED_VARIANCES
from ..models.text import CAPTION_LENGTH
from ..models.text_unet import new_text_unet
from ..pipelines.ddpm import DDPMPipeline
from ..pipelines.text_to_image import InpaintingPipeline, TextDenoiser, TextToImagePipeline
from ..pipelines.upsampling import UpsamplingDenoiser, UpsamplingPipeline
from ..portable import INPAINTING_FOLDER, UPSAMPLER_FOLDER
from ..seeds import seeded
from ..settings.checks import OF_LEARNED_ENCODER
from ..settings.config import Config
from ..settings.resolve import ARCHITECTURE_FLAGS, check_start, choose_preset, filled, resolve
from ..steps.sampler import OF_THRESHOLDING
from .base import check_as_in_base, for_inpainting, start_from_base, with_holes
from .ddpm import build_loss, build_scheduler, check_size
from .system import Stage, System
from .text import Text, build_prompt, build_text, check_parts, on, teach, with_dropout


def build(config: Config, images: TrainingImages, start: TextToImagePipeline | None) -> System:
    """Tokenizer, text encoder, U-Net, process and objective; arguments and errors as for a DDPM."""
    check_start(start, TextToImagePipeline, config.model.system)
    scheduler, learned = build_scheduler(config, start), config.model.text_encoder == "train"
    text = tokenizer, text_encoder = build_text(config, images, start)
    if start is None:
        check_size(lambda: [build_unet(config, images.shape, text_encoder.config.hidden_size)])
        unet = build_unet(config, images.shape, text_encoder.config.hidden_size)
    else:
        unet = with_dropout(start.unet, config.model.dropout)

    def pipeline(network: TextDenoiser) -> TextToImagePipeline:
        encoder = network.text_encoder if learned else on(network.unet.device, text_encoder)
        return TextToImagePipeline(tokenizer, encoder, network.unet, scheduler, None, None, None)

    learns_variance = config.process.variance_type in LEARNED_VARIANCES
    network = TextDenoiser(unet, text_encoder if learned else None, all_outputs=learns_variance)
    if not learned:
        check_parts(pipeline(network), f"--text_encoder {config.model.text_encoder}")
    prompt, facts = build_prompt(config, images, text, length=CAPTION_LENGTH)
    return System(
        codec=PixelCodec(images.shape),
        conditions=[prompt],
        network=network,
        scheduler=scheduler,
        loss=build_loss(config, scheduler),
        pipeline=pipeline,
        begin=partial(teach, config, images, text),
        rates={"text_encoder": config.model.text_rate} if learned else {},
        facts={"text_encoder": facts},
    )


def build_unet(
    config: Config,
    shape: tuple[int, int, int],
    text_width: int,
    low_side: int | None = None,
    told_noise: bool = False,
    told: str = "text",
) -> UNet2DConditionModel:
    """A new network; ValueError for pictures that are not square. Arguments as for `new_text_unet`."""
    channels, height, width = shape
    if height != width:
        raise ValueError(f"--resolution must be square for --system {config.model.system}, got {height}x{width}")
    with seeded(config.optimization.seed, "initial weights"):
        return new_text_unet(
            low_side,
            told_noise,
            resolution=height,
            channels=channels,
            dropout=config.model.dropout,
            text_width=text_width,
            told=told,
            efficient=bool(config.model.efficient_unet),
            **{name: getattr(config.model, name) for name in ARCHITECTURE_FLAGS},
        )


# The stages after the base


def resolve_upsampler(config: Config, base: DDPMPipeline | None) -> Config:
    """The settings of the upsampler with every one filled in; as `resolve`, from the base and the preset."""
    if base is not None:
        channels, side, _ = base.image_shape
        steps = base.scheduler.config.num_train_timesteps
        config = config.filled({"resolution": str(side), "channels": channels, "num_train_timesteps": steps})
        given = (config.data.channels, *parse_resolution(config.data.resolution))
        if given != base.image_shape:
            raise ValueError(
                f"--resolution and --channels must be those of the base in --output_dir, {side} and {channels}, got "
                f"{config.data.resolution} and {config.data.channels}; leave them out"
            )
        if config.process.num_train_timesteps != steps:
            raise ValueError(  # both are sampled in as many steps
                f"--num_train_timesteps must be that of the base in --output_dir, {steps}, got "
                f"{config.process.num_train_timesteps}; leave it out"
            )
        check_as_in_base(config, "text_encoder", *OF_LEARNED_ENCODER)  # it is taken as it is
    preset = choose_preset(config)
    if config.process.thresholding is None:
        config = config.with_values(dict.fromkeys(OF_THRESHOLDING))  # given for the base
    config = filled(config, preset.upsampler)
    if base is None:  # the text encoder that it will have
        config = config.filled(preset.model)
    if config.data.is_bundled:
        level = level_for(parse_resolution(config.data.resolution))  # what the base can draw
        config = config.filled({"dataset_config_name": level})
    multiple, (side, _) = 2 ** (len(config.model.channel_multipliers) - 1), parse_resolution(upsampled(config))
    if side % multiple:
        raise ValueError(
            f"--resolution {config.data.resolution} times --upsampling {config.model.upsampling} must be a multiple "
            f"of {multiple}, to be halved for each of --channel_multipliers but the first, got {side}"
        )
    build_loss(config, build_scheduler(config, None))  # what is wrong with them is said before the base is trained
    return config


def upsampled(config: Config) -> str:
    """The resolution of the upsampler's own pictures."""
    height, width = (config.model.upsampling * side for side in parse_resolution(config.data.resolution))
    return f"{height}x{width}"


def build_upsampler(
    config: Config,
    images: TrainingImages,
    base: DDPMPipeline | None,
    told_noise: bool = False,
    text: Text | None = None,
) -> System:
    """U-Net, process and objective, with the base's tokenizer and text encoder; arguments and errors as in `build`.

    Args:
        told_noise: whether the small pictures get noise, as in Imagen, of the cosine process that DeepFloyd IF has for
            it, and are not blurred.
        text: tokenizer and text encoder, if not those of the base; of no captions if it is told none.
    """
    scheduler = build_scheduler(config, None)
    tokenizer, text_encoder = text = text or build_text(config, images, base)
    channels, side, _ = images.shape
    low_side = side // config.model.upsampling
    unet = build_unet(config, images.shape, text_encoder.config.hidden_size, low_side, told_noise)
    learns_variance = config.process.variance_type in LEARNED_VARIANCES
    if told_noise:
        noising = DDPMScheduler(scheduler.config.num_train_timesteps, beta_schedule="squaredcos_cap_v2")
    else:
        noising = DDPMScheduler(beta_start=0.0, beta_end=0.0)

    def pipeline(network: UpsamplingDenoiser) -> UpsamplingPipeline:
        encoder = on(network.unet.device, text_encoder)
        return UpsamplingPipeline(tokenizer, encoder, network.unet, scheduler, noising, None, None, None)

    network = UpsamplingDenoiser(unet, None, all_outputs=learns_variance)
    shown = images.some_batch(config.run.preview_images)
    as_it_is = config.with_values({"text_encoder": "frozen"})
    prompt, facts = build_prompt(as_it_is, images, text, **pipeline(network).about_prompt)
    picture = LowResolution(
        shape=(channels, low_side, low_side),
        factor=config.model.upsampling,
        blurred=0.0 if told_noise else 0.5,
        noising=noising if told_noise else None,
        seed=config.optimization.seed,
    )
    return System(
        codec=PixelCodec(images.shape),
        conditions=[
            replace(prompt, examples=list(map(str, shown["captions"]))),
            replace(picture, examples=list(picture.reduced(shown["images"]))),
        ],
        network=network,
        scheduler=scheduler,
        loss=build_loss(config, scheduler),
        pipeline=pipeline,
        facts={"text_encoder": facts},
    )


def resolve_inpainting(config: Config, base: TextToImagePipeline | None) -> Config:
    """The settings of the fine-tuning with every one filled in; as `resolve`, with the base's architecture."""
    return resolve(for_inpainting(config, base), base)


def build_inpainting(config: Config, images: TrainingImages, base: TextToImagePipeline | None) -> System:
    """The base, told random holes; arguments and errors as in `build`."""
    system = build(config, images, base)
    return replace(
        with_holes(system, config, images, Hole(seed=config.optimization.seed)),
        pipeline=lambda network: InpaintingPipeline(**system.pipeline(network).components),
    )


_from_base = partial(start_from_base, kind=TextToImagePipeline, stage="base")


def _is_captioned(config: Config) -> bool:
    return True


STAGES = (
    Stage(name="base", captioned=_is_captioned, resolve=resolve, build=build),
    Stage(
        name="upsampler",
        folder=UPSAMPLER_FOLDER,
        by_default=lambda config: config.model.init_from is None,
        captioned=_is_captioned,
        start=_from_base,
        resolve=resolve_upsampler,
        resolution=upsampled,
        build=build_upsampler,
    ),
    Stage(
        name="inpainting",
        folder=INPAINTING_FOLDER,
        by_default=lambda config: False,
        captioned=_is_captioned,
        start=_from_base,
        resolve=resolve_inpainting,
        build=build_inpainting,
    ),
)
