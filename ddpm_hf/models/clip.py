"""CLIP (Radford et al. 2021, arXiv 2103.00020): one to train, its tokenizer and its image processor, and any of
transformers."""

import copy
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from tokenizers.pre_tokenizers import ByteLevel

# By its own name, the processor needs no torchvision.
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from .fingerprint import network_fingerprint
from .text import fingerprint

logging.disable_progress_bar()  # of a file or two

_HEAD = 32  # channels
_WORD_END = "</w>"
# Where model, tokenizer and image processor are: in a repository of transformers, in one of `--stage clip`, and in
# one of a system that has that stage.
_PLACES = (
    ("", "", ""),
    ("clip", "tokenizer", "image_processor"),
    ("clip/clip", "clip/tokenizer", "clip/image_processor"),
)


def new_clip(
    resolution: int,
    tokenizer: CLIPTokenizer,
    *,
    channels: int = 3,
    width: int,
    layers: int,
    text_width: int,
    text_layers: int,
    embedding_width: int,
    patch: int,
) -> CLIPModel:
    """A CLIP with random weights, drawn by torch's global generator, and heads of 32 channels.

    Args:
        resolution: height and width of its pictures, a multiple of `patch`.
        tokenizer: whose tokens it reads, so many to a caption as its `model_max_length` says.
        channels: of pictures.
        width, layers: of the transformer that looks at patches; its width is a multiple of 32.
        text_width, text_layers: of the one that reads.
        embedding_width: E, of what both are projected to.
        patch: height and width of a patch.
    """
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length, **ends}
    vision = {"image_size": resolution, "patch_size": patch, "num_channels": channels}
    projection = {"projection_dim": embedding_width}
    return CLIPModel(
        CLIPConfig(
            text_config=text | projection | _transformer(text_width, text_layers),
            vision_config=vision | projection | _transformer(width, layers),
            **projection,
        )
    )


def _transformer(width: int, layers: int) -> dict[str, int]:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width}
    return sizes | {"num_hidden_layers": layers, "num_attention_heads": width // _HEAD}


def train_clip_tokenizer(captions: Iterable[str], length: int, merges: int = 8192) -> CLIPTokenizer:
    """A tokenizer laid out as that of Radford et al., always the same for the same captions.

    Its byte pairs make tokens of whole words, the commonest first, because a small network learns those far sooner.
    All other text is spelled with what pairs it has, and with single bytes. (The trainer of `tokenizers` numbers
    letters in the order of a hash table, which differs from one process to the next, and breaks ties by it.)

    Args:
        length: tokens of a caption, the two that begin and end it included.
        merges: pairs of bytes or tokens that become one, at most.
    """
    blank = CLIPTokenizer().backend_tokenizer
    words = Counter()
    for caption, count in Counter(captions).items():
        for word, _ in blank.pre_tokenizer.pre_tokenize_str(blank.normalizer.normalize_str(caption)):
            words[word] += count
    pairs: dict[tuple[str, str], int] = {}
    for word in sorted(words, key=lambda word: (-words[word], word)):
        parts = _merged([*word[:-1], word[-1] + _WORD_END], pairs)
        while len(parts) > 1 and len(pairs) < merges:
            pairs[parts[0], parts[1]] = len(pairs)
            parts = _merged(parts, pairs)
        if len(pairs) >= merges:
            break
    alphabet = sorted(ByteLevel.alphabet())
    names = [*alphabet, *(byte + _WORD_END for byte in alphabet), *map("".join, pairs)]
    names = dict.fromkeys([*names, "<|startoftext|>", "<|endoftext|>"])
    vocabulary = {name: number for number, name in enumerate(names)}
    return CLIPTokenizer(vocab=vocabulary, merges=list(pairs), model_max_length=length)


def _merged(parts: list[str], pairs: dict[tuple[str, str], int]) -> list[str]:
    """Parts of a word, joined as byte pair encoding does: the earliest pair first, wherever it is."""
    while known := [pair for pair in zip(parts, parts[1:], strict=False) if pair in pairs]:
        first, joined = min(known, key=pairs.get), []
        for part in parts:
            if joined and (joined[-1], part) == first:
                joined[-1] += part
            else:
                joined.append(part)
        parts = joined
    return parts


def new_image_processor(resolution: int) -> CLIPImageProcessorPil:
    """Pictures resized and cropped to a square, and their pixels in [-1, 1]."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": resolution}, crop_size=resolution, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


@dataclass(frozen=True)
class Clip:
    """A CLIP that is used and not trained: `CLIPModel`, tokenizer and image processor.

    Attributes:
        model: in evaluation mode, without gradients.
        tokenizer: of captions.
        processor: of pictures of any size.
    """

    model: CLIPModel
    tokenizer: PreTrainedTokenizerFast
    processor: CLIPImageProcessorPil

    @property
    def dimension(self) -> int:
        """E, of embeddings."""
        return self.model.config.projection_dim

    @property
    def length(self) -> int:
        """Tokens of a caption that are read."""
        return min(self.tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings)

    def look(self, pictures: torch.Tensor) -> torch.Tensor:
        """Embeddings of pictures, as `look`."""
        return look(self.model, self.processor, pictures)

    @torch.no_grad()
    def read(self, captions: Sequence[str]) -> torch.Tensor:
        """Captions -> float32 (B, E), on the model's device: the `text_embeds` of `CLIPTextModelWithProjection`."""
        options = {"padding": True, "truncation": True, "max_length": self.length, "return_tensors": "pt"}
        tokens = self.tokenizer(list(captions), **options).to(self.model.device)
        told = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        return self.model.text_projection(self.model.text_model(**told).pooler_output)

    def count_cut(self, captions: Sequence[str]) -> int:
        """How many captions have more tokens than are read."""
        return sum(len(ids) > self.length for ids in self.tokenizer(list(captions), verbose=False).input_ids)

    def vision(self) -> CLIPVisionModelWithProjection:
        """The part that looks, as stock diffusers has it; its weights are those of `model`, not copies."""
        config = self.model.config.vision_config
        return self._half(CLIPVisionModelWithProjection, config, "vision_model", "visual_projection")

    def text(self) -> CLIPTextModelWithProjection:
        """The part that reads, as stock diffusers has it; its weights are those of `model`, not copies."""
        config = self.model.config.text_config
        return self._half(CLIPTextModelWithProjection, config, "text_model", "text_projection")

    def _half(self, kind: type, config: PreTrainedConfig, *parts: str) -> Any:
        config = copy.deepcopy(config)
        config.projection_dim = self.dimension
        with torch.device("meta"):
            half = kind(config)
        for name in parts:
            setattr(half, name, getattr(self.model, name))
        return half.eval()

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all on which embeddings depend."""
        parts = (network_fingerprint(self.model), fingerprint(self.tokenizer), self.processor.to_json_string())
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


@torch.no_grad()
def look(
    encoder: CLIPModel | CLIPVisionModelWithProjection, processor: CLIPImageProcessorPil, pictures: torch.Tensor
) -> torch.Tensor:
    """Pictures, uint8 (B, 3, H, W) -> their embeddings, float32 (B, E), where the part that looks is.

    They are the `image_embeds` of stock's `CLIPVisionModelWithProjection`, whose length is not 1.
    """
    listed = [Image.fromarray(pixels) for pixels in pictures.permute(0, 2, 3, 1).cpu().numpy()]
    # Of a `CLIPModel` whose `vision()` was moved, device and dtype are still those of the rest.
    pixels = processor(listed, return_tensors="pt").pixel_values.to(encoder.visual_projection.weight)
    return encoder.visual_projection(encoder.vision_model(pixel_values=pixels).pooler_output).float()


def load_clip(name: str | os.PathLike, flag: str) -> Clip:
    """A CLIP in float32, frozen.

    Args:
        name: Hub name or folder of a `CLIPModel` with its tokenizer and image processor; or of a pipeline of
            `--stage clip`, or of a system that has it in `clip`.
        flag: that gives it, for messages.

    Raises:
        ValueError: it cannot be loaded, or is no CLIP.
    """
    try:
        kind, (model_in, tokenizer_in, processor_in) = _found(name)
        if kind != "clip":
            raise ValueError(f"it is a model of type {kind!r}")
        model, found = CLIPModel.from_pretrained(
            name, subfolder=model_in, dtype=torch.float32, output_loading_info=True
        )
        if found["missing_keys"]:
            raise ValueError(f"it has no weights {min(found['missing_keys'])}")
        tokenizer = AutoTokenizer.from_pretrained(name, subfolder=tokenizer_in)
        if 2 * len(tokenizer) < model.config.text_config.vocab_size:  # transformers makes one where there are no files
            raise ValueError(f"its tokenizer has {len(tokenizer)} of {model.config.text_config.vocab_size} tokens")
        processor = CLIPImageProcessorPil.from_pretrained(name, subfolder=processor_in)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as problem:
        reason = str(problem).partition("\n")[0]
        raise ValueError(
            f"{flag} must be the Hub name or folder of a CLIPModel of transformers with its tokenizer and image "
            f"processor, got {name}: {reason}"
        ) from None
    return Clip(model.eval().requires_grad_(False), tokenizer, processor)


def _found(name: str | os.PathLike) -> tuple[str, tuple[str, str, str]]:
    """The type of the model, and in which of `_PLACES` it is."""
    problems = []
    for place in _PLACES:
        try:
            return AutoConfig.from_pretrained(name, subfolder=place[0]).model_type, place
        except (OSError, ValueError) as problem:
            problems.append(problem)
    raise problems[0]
