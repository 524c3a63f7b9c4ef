"""Imagen (Saharia et al. 2022, arXiv 2205.11487): pixels told a caption by a frozen text encoder, and super-resolution
that is told the caption, the small picture with noise, and how much noise that is.

It is composed of the parts of [GLIDE](glide.py), whose text encoder learns. What is its own: the encoder is one of T5,
or a small one that was taught the captions' wordings once and then frozen; pictures are sampled with dynamic
thresholding; super-resolution has noise conditioning augmentation. What differs from the paper: the U-Net of the base
is GLIDE's, there is one stage of super-resolution instead of two, it is not guided, and as an Efficient U-Net it has
attention to the caption alone, none within the picture.
"""

from functools import partial

from ..pipelines.text_to_image import TextToImagePipeline
from ..portable import UPSAMPLER_FOLDER
from ..settings.config import Config
from ..settings.resolve import check_start, resolve
from .glide import build, build_upsampler, from_base, is_captioned, resolve_upsampler, upsampled
from .system import Stage


def resolve_base(config: Config, start: TextToImagePipeline | None) -> Config:
    """The settings of the base with every one filled in; as `resolve`. A model to start from keeps its encoder."""
    check_start(start, TextToImagePipeline, config.model.system)
    return resolve(config if start is None else config.filled({"text_encoder": "frozen"}), start)


STAGES = (
    Stage(name="base", captioned=is_captioned, resolve=resolve_base, build=build),
    Stage(
        name="super-resolution",
        folder=UPSAMPLER_FOLDER,
        by_default=lambda config: config.model.init_from is None,
        captioned=is_captioned,
        start=from_base,
        resolve=resolve_upsampler,
        resolution=upsampled,
        build=partial(build_upsampler, told_noise=True),
    ),
)
