"""What systems told captions have in common: tokenizer, text encoder, and the condition made of them."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, T5EncoderModel

from ..conditions.prompt import FrozenPrompt, Prompt, lowered
from ..conditions.states import KeptStates
from ..data.captions import CAPTIONS, captions_of
from ..data.examples import TrainingImages
from ..files import replacing
from ..hub.folder import TAUGHT_FOLDER
from ..models.text import (
    CAPTION_LENGTH,
    fingerprint,
    knows_words,
    leave_out_last_layers,
    load_text_encoder,
    small_text_encoder,
    teach_wordings,
    train_tokenizer,
)
from ..pipelines.fingerprint import weights_fingerprint
from ..pipelines.text_to_image import TextDenoising
from ..seeds import generator_for, seeded
from ..settings.config import Config
from .ddpm import check_size

# Entries of an encoder's configuration that say how it was saved.
_OF_SAVED = {"_name_or_path", "transformers_version", "architectures", "dtype"}

Text = tuple[PreTrainedTokenizerFast, PreTrainedModel]


def build_text(config: Config, images: TrainingImages, start: TextDenoising | None) -> Text:
    """Tokenizer and text encoder: those to start from, new ones that are learned or taught, or frozen ones.

    Raises:
        ValueError: the encoder cannot be loaded, is taught in no step, does not fit into memory, has no layers to
            leave out, or there is nothing to tell it.
    """
    given = config.model.text_encoder
    if start is not None or given not in (None, "train", "taught"):
        text = load_text_encoder(given) if start is None else (start.tokenizer, start.text_encoder)
        name, captions = images.source.name, images.source.columns.get(CAPTIONS)
        if captions is None and knows_words(text[0]):
            raise ValueError(
                f"{'--text_encoder' if start is None else config.start} needs captions, and {name} has none; give "
                "--caption_column or --init_caption_from_labels"
            )
        if captions is not None and not knows_words(text[0]):
            raise ValueError(
                f"{config.start} was trained without captions, and {name} has {captions}; give "
                '--init_caption_from_labels "" to leave them out'
            )
        if config.model.clip_skip is not None:
            leave_out_last_layers(text[1], config.model.clip_skip)
        return text
    if given == "taught" and config.model.text_warmup_steps == 0:
        raise ValueError("--text_warmup_steps must be at least 1 for --text_encoder taught, got 0")
    tokenizer = train_tokenizer(images.captions())
    check_size(lambda: [_learned_encoder(config, len(tokenizer))])
    if given == "taught":
        return tokenizer, _taught_encoder(config, images, tokenizer)
    return tokenizer, _learned_encoder(config, len(tokenizer))


def teach(config: Config, images: TrainingImages, text: Text) -> None:
    """Teach a text encoder, in place, the wordings of the training captions, if it is learned and new.

    One that `build_text` taught is kept in the run's folder instead.
    """
    tokenizer, text_encoder = text
    if config.model.text_encoder == "train" and config.model.text_warmup_steps:
        _teach(config, tokenizer, text_encoder, _wordings(images))
    if config.model.text_encoder == "taught" and PartialState().is_main_process:
        with replacing(_kept_encoder(config)) as beside:
            text_encoder.save_pretrained(beside)


def _taught_encoder(config: Config, images: TrainingImages, tokenizer: PreTrainedTokenizerFast) -> T5EncoderModel:
    """A small one that was taught the wordings of these captions, and then is frozen; equal on all processes.

    A run that goes on reads what it kept, because teaching with another number of threads could change the last bits.
    """
    encoder, kept = _learned_encoder(config, len(tokenizer)), _kept_encoder(config)
    if PartialState().is_main_process:
        if kept.is_dir() and not config.run.overwrite_output_dir:
            encoder = T5EncoderModel.from_pretrained(kept)
        elif not config.run.dry_run:  # which tells nothing of what it would learn
            _teach(config, tokenizer, encoder, _wordings(images))
    return broadcast_object_list([encoder])[0].eval()


def _kept_encoder(config: Config) -> Path:
    return Path(config.run.output_dir, TAUGHT_FOLDER)


def _wordings(images: TrainingImages) -> list[tuple[str, ...]]:
    """The captions of each row, without those that another row has too."""
    return sorted({tuple(map(lowered, captions_of(cell))) for _, cell in images.caption_cells() if cell})


def _teach(
    config: Config, tokenizer: PreTrainedTokenizerFast, encoder: T5EncoderModel, rows: Sequence[Sequence[str]]
) -> None:
    generator, most = generator_for(config.optimization.seed, "wordings"), config.model.text_length or CAPTION_LENGTH
    teach_wordings(encoder, tokenizer, rows, config.model.text_warmup_steps, generator, most)


def _learned_encoder(config: Config, tokens: int) -> T5EncoderModel:
    """A small one with random weights, a function of the seed."""
    with seeded(config.optimization.seed, "initial weights", "text encoder"):
        return small_text_encoder(tokens, config.model.text_width, config.model.text_layers)


def build_prompt(
    config: Config, images: TrainingImages, text: Text, kind: type[FrozenPrompt] = FrozenPrompt, **about: Any
) -> tuple[Prompt, str]:
    """The condition, and what there is to record of the encoder.

    Args:
        kind: of an encoder that is kept as it is.
        **about: attributes of `Prompt` that the pipeline's are made with too.
    """
    tokenizer, text_encoder = text
    if config.run.validation_prompts and CAPTIONS not in images.source.columns:
        raise ValueError(f"--validation_prompts must be left out: {images.source.name} has no captions")
    about |= {
        "tokenizer": tokenizer,
        "hidden": config.model.condition_dropout,
        "examples": config.run.validation_prompts or images.some_captions(config.run.preview_images) or [""],
    }
    if config.model.text_encoder == "train":
        return Prompt(**about), f"learned from captions whose vocabulary has the hash {fingerprint(tokenizer)}"
    number = _hash_of(text_encoder, tokenizer)
    shape = about["length"] + kind.more_rows, text_encoder.config.hidden_size
    states = _states(images, number, shape, about.get("read", kind.read))
    prompt = kind(**about, encoder=text_encoder.eval().requires_grad_(False), states=states)
    return prompt, f"frozen, with the hash {number}"


def check_parts(pipeline: TextDenoising, flag: str) -> None:
    """Raises ValueError, naming the flag and its value, if what it brought does not fit the rest."""
    try:
        pipeline.check_parts()
    except ValueError as problem:
        raise ValueError(f"{flag} cannot be used: {problem}") from None


def with_dropout(unet: UNet2DConditionModel, dropout: float | None) -> UNet2DConditionModel:
    """The same network with another dropout; itself if none is given."""
    if dropout is None:
        return unet
    changed = UNet2DConditionModel.from_config({**unet.config, "dropout": dropout})
    changed.load_state_dict(unet.state_dict())
    return changed


def on(device: torch.device, part: nn.Module) -> nn.Module:
    """On a device: a copy if it is not there, which goes with its pipeline, so that training has the room."""
    return part if part.device == device else copy.deepcopy(part).to(device)


def _hash_of(text_encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> str:
    """Of all that turns captions into states."""
    settings = text_encoder.config.to_dict()
    settings = {name: settings[name] for name in settings.keys() - _OF_SAVED}
    about = [weights_fingerprint(text_encoder), fingerprint(tokenizer), settings]
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _states(
    images: TrainingImages, encoder: str, shape: tuple[int, int], read: Callable[[str], str]
) -> KeptStates | None:
    """Of all training captions; None for a stream, whose captions are not known in advance."""
    if images.store is None:
        return None

    def captions() -> Iterator[str]:
        return chain([""], map(read, images.captions()))

    return KeptStates(images.store.folder.parent, encoder, captions, shape)
