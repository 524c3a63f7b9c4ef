"""Captions, as tokens of fixed length."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from .condition import Condition, Told


@dataclass(frozen=True, kw_only=True)
class Prompt(Condition):
    """A caption, told as `input_ids` and `attention_mask`, int64 (B, length) each; "" when it is hidden.

    Lower-cased and padded to the same length always, as stock diffusers' IFPipeline does: the network is told the
    states of the padding too.

    Attributes:
        length: tokens of a caption, padding included; what is longer is cut.
        hidden: the fraction of training images whose caption is hidden; 0.2 in GLIDE (arXiv 2112.10741, §4).
        examples: captions to draw when nothing is asked for.
    """

    tokenizer: PreTrainedTokenizerBase
    length: int
    hidden: float = 0.0
    examples: Sequence[str] = ("",)
    name = "prompt"
    has_null = True

    def of_rows(self, batch: Mapping[str, Any]) -> Told:
        """The tokens of the batch's captions."""
        return self.of_words(list(batch["captions"]), batch["images"].device)

    def of_words(self, words: Sequence[str], device: torch.device) -> Told:
        """The tokens of these captions."""
        for word in words:
            if not isinstance(word, str):
                raise ValueError(f"`prompt` must be {self.choices()}, got {word!r}.")
        tokens = self.tokenizer(
            [word.lower().strip() for word in words],
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_tensors="pt",
        )
        return {name: tokens[name].to(device) for name in ("input_ids", "attention_mask")}

    def null(self, told: Told) -> Told:
        """The tokens of the empty caption."""
        empty = self.of_words([""], told["input_ids"].device)
        return {name: value.expand_as(told[name]) for name, value in empty.items()}

    def usual(self) -> list[str]:
        """The examples."""
        return list(self.examples)

    def words_of(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[str]:
        """The captions of the rows."""
        return (str(caption) for batch in batches for caption in batch["captions"])

    def cut(self, words: Iterable[str]) -> list[str]:
        """The captions of more tokens than are told."""
        words = list(dict.fromkeys(words))
        tokens = self.tokenizer([word.lower().strip() for word in words]).input_ids if words else []
        return [word for word, ids in zip(words, tokens, strict=True) if len(ids) > self.length]

    def choices(self) -> str:
        """Text."""
        return "a caption, or one per image"
