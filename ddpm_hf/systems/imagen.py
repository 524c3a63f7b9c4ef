"""Imagen (Saharia et al. 2022, arXiv 2205.11487): pixels told a caption by a frozen text encoder, and super-resolution
that is told the caption, the small picture with noise, and how much noise that is.

It is composed of the parts of [GLIDE](glide.py), whose text encoder learns. What is its own: the encoder is one of T5,
or a small one that was taught the captions' wordings once and then frozen; pictures are sampled with dynamic
thresholding; super-resolution has noise conditioning augmentation. What differs from the paper: the U-Net of the base
is GLIDE's, there is one stage of super-resolution instead of two, it is not guided, and as an Efficient U-Net it has
attention to the caption alone, none within the picture.
"""

from dataclasses import replace
from functools import partial

from ..pipelines.text_to_image import TextToImagePipeline
from ..settings.config import Config
from ..settings.resolve import check_start, resolve
from .glide import STAGES as GLIDE
from .glide import build_upsampler


def resolve_base(config: Config, start: TextToImagePipeline | None) -> Config:
    """The settings of the base with every one filled in; as `resolve`. A model to start from keeps its encoder."""
    check_start(start, TextToImagePipeline, config.model.system)
    return resolve(config if start is None else config.filled({"text_encoder": "frozen"}), start)


_BASE, _UPSAMPLER, _ = GLIDE

STAGES = (
    replace(_BASE, resolve=resolve_base),
    replace(_UPSAMPLER, name="super-resolution", build=partial(build_upsampler, told_noise=True)),
)
