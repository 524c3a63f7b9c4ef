"""The text encoder that a run learns from its own captions."""

import torch
from transformers import PreTrainedTokenizerFast, T5EncoderModel

from ..conditions.prompt import as_told
from ..data.captions import captions_of
from ..data.examples import TrainingImages
from ..models.text import small_text_encoder, teach_wordings
from ..seeds import derive_seed, generator_for
from .config import Config


def new_encoder(config: Config, tokens: int) -> T5EncoderModel:
    """Random weights, a function of the seed, for a vocabulary of so many tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.optimization.seed, "initial weights", "text encoder"))
        return small_text_encoder(tokens, config.model.text_width, config.model.text_layers)


def teach(encoder: T5EncoderModel, config: Config, images: TrainingImages, tokenizer: PreTrainedTokenizerFast) -> None:
    """Teach it the wordings of the images' captions, as `teach_wordings` does, for `--text_warmup_steps`."""
    if config.model.text_warmup_steps:
        rows = {tuple(map(as_told, captions_of(cell))) for _, cell in images.caption_cells() if cell}
        generator = generator_for(config.optimization.seed, "wordings")
        teach_wordings(encoder, tokenizer, sorted(rows), config.model.text_warmup_steps, generator)
