"""The upsampler of DALL·E 2 (Ramesh et al. 2022, arXiv 2204.06125, §2.1): what the decoder draws, made larger.

It is GLIDE's but for two things. It is told no caption, in which the paper saw no benefit: its text encoder reads the
empty caption alone, and is there because stock `IFSuperResolutionPipeline` has one. And it has no attention but in its
middle; the paper's has none. Like the paper's, it learns from small pictures some of which are blurred. The paper's
second upsampler, to 1024x1024, is missing.
"""

from dataclasses import replace
from functools import partial

from ..data.examples import TrainingImages
from ..models.text import small_text_encoder, train_tokenizer
from ..pipelines.unclip import UnclipPipeline
from ..seeds import seeded
from ..settings.config import Config
from .base import start_from_base
from .clip import preset_of_all
from .glide import STAGES as GLIDE
from .glide import build_upsampler, resolve_upsampler
from .system import System

_UPSAMPLER = next(stage for stage in GLIDE if stage.name == "upsampler")
_TEXT_WIDTH, _TEXT_LAYERS = 64, 1  # the least that there is: it always says the same


def resolve(config: Config, base: UnclipPipeline | None) -> Config:
    """The settings with every one filled in; as in GLIDE."""
    preset_of_all(config)
    return resolve_upsampler(config, base)


def build(config: Config, images: TrainingImages, base: UnclipPipeline | None) -> System:
    """U-Net, process and objective; arguments and errors as in GLIDE."""
    tokenizer = train_tokenizer([])
    with seeded(config.optimization.seed, "initial weights", "text encoder"):
        encoder = small_text_encoder(len(tokenizer), _TEXT_WIDTH, _TEXT_LAYERS)
    return build_upsampler(config, images, base, text=(tokenizer, encoder))


UPSAMPLER_STAGE = replace(
    _UPSAMPLER,
    by_default=lambda config: False,
    start=partial(start_from_base, kind=UnclipPipeline, stage="decoder"),
    resolve=resolve,
    build=build,
)
