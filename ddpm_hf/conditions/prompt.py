"""Captions, as tokens of fixed length, or as what a frozen text encoder says of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .condition import Condition, Told
from .states import KeptStates

# Of the states of captions on disk, bytes. Those of a million captions take 59 GB with MiniLM's width of 384.
KEPT_AT_MOST = 20e9


def lowered(caption: str) -> str:
    """A caption as stock diffusers' IFPipeline reads it."""
    return caption.lower().strip()


def as_it_is(caption: str) -> str:
    """A caption as stock diffusers' StableDiffusionPipeline reads it."""
    return caption


def unread(caption: str) -> str:
    """A caption as a model reads it that is told none."""
    return ""


def _captions(batch: Mapping[str, Any]) -> list[str]:
    """Of each row; the empty one if the data have none."""
    return [str(caption) for caption in batch.get("captions", [""] * len(batch["images"]))]


@dataclass(frozen=True, kw_only=True)
class Prompt(Condition):
    """A caption, told as `input_ids` and `attention_mask`, int64 (B, length) each; "" when it is hidden.

    Padded to the same length always, as stock diffusers' pipelines do: the network is told the states of the padding
    too.

    Attributes:
        length: tokens of a caption, padding included; what is longer is cut.
        read: caption -> what is turned into tokens.
        masked: whether the encoder is told `attention_mask`, and so does not attend to the padding.
        hidden: the fraction of training images whose caption is hidden; 0.2 in GLIDE (arXiv 2112.10741, §4).
        examples: captions to draw when nothing is asked for.
    """

    tokenizer: PreTrainedTokenizerBase
    length: int
    read: Callable[[str], str] = lowered
    masked: bool = True
    hidden: float = 0.0
    examples: Sequence[str] = ("",)
    name = "prompt"
    has_null = True

    def of_rows(self, batch: Mapping[str, Any]) -> Told:
        """The tokens of the batch's captions."""
        return self.of_words(_captions(batch), batch["images"].device)

    def of_words(self, words: Sequence[str], device: torch.device) -> Told:
        """The tokens of these captions."""
        for word in words:
            if not isinstance(word, str):
                raise ValueError(f"`prompt` must be {self.choices()}, got {word!r}.")
        tokens = self.tokenizer(
            [self.read(word) for word in words],
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_tensors="pt",
        )
        told = ("input_ids", "attention_mask") if self.masked else ("input_ids",)
        return {name: tokens[name].to(device) for name in told}

    def null(self, told: Told) -> Told:
        """The tokens of the empty caption."""
        empty = self.of_words([""], told["input_ids"].device)
        return {name: value.expand_as(told[name]) for name, value in empty.items()}

    def usual(self) -> list[str]:
        """The examples."""
        return list(self.examples)

    def words_of(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[str]:
        """The captions of the rows."""
        return (caption for batch in batches for caption in _captions(batch))

    def cut(self, words: Iterable[str]) -> list[str]:
        """The captions of more tokens than are told."""
        words = list(dict.fromkeys(words))
        # Verbose, it would warn that the model fails.
        tokens = self.tokenizer([self.read(word) for word in words], verbose=False).input_ids if words else []
        return [word for word, ids in zip(words, tokens, strict=True) if len(ids) > self.length]

    def choices(self) -> str:
        """Text."""
        return "a caption, or one per image"


@dataclass(frozen=True, kw_only=True)
class FrozenPrompt(Prompt):
    """A caption, told as the states of a frozen text encoder, `encoder_hidden_states` (B, length, width).

    These are what a pipeline of the same encoder makes of the tokens of `Prompt`, so that the encoder can be left out
    of the network that is trained.

    Attributes:
        encoder: of transformers, in evaluation mode.
        states: of all training captions and of "", if they are known in advance. Those that take no more than
            `KEPT_AT_MOST` are computed once, by `prepare`, and else in each step, as for streams.
    """

    encoder: PreTrainedModel
    states: KeptStates | None
    more_rows: ClassVar[int] = 0
    """Kept of a caption beside its `length` states."""

    @property
    def _are_kept(self) -> bool:
        return self.states is not None and self.states.array.size <= KEPT_AT_MOST

    def describe(self) -> str:
        """The encoder, and where its states come from."""
        weights = sum(weight.numel() for weight in self.encoder.parameters())
        source = "computed in each step"
        if self._are_kept:
            source = str(self.states.array)
        elif self.states is not None:
            size = self.states.array.size / 1e9
            source += f", since on disk they would take {size:.3g} GB, above {KEPT_AT_MOST / 1e9:g}"
        captions = "" if self.states is None else f" of {len(self.states):,} captions"
        return f"{type(self.encoder).__name__}, frozen, {weights:,} parameters; its states{captions} are {source}"

    def prepare(self, device: torch.device) -> None:
        """Compute the states that are kept; the encoder is on this device meanwhile, and else with those computed."""
        if self._are_kept:
            home = self.encoder.device
            self.states.fill(lambda words: self._encoded(words, device))
            self.encoder.to(home)

    def of_rows(self, batch: Mapping[str, Any]) -> Told:
        """The states of the batch's captions."""
        words, device = _captions(batch), batch["images"].device
        if self._are_kept:
            return self._told(words, self.states[[self.read(word) for word in words]].to(device).float())
        return self._told(words, self._encoded(words, device))

    def null(self, told: Told) -> Told:
        """The states of the empty caption."""
        empty = self.states[[""]].float() if self._are_kept else self._empty
        said = self._told([""], empty.to(told["encoder_hidden_states"].device))
        return {name: value.expand_as(told[name]) for name, value in said.items()}

    def of_words(self, words: Sequence[str], device: torch.device) -> Told:
        """The states of these captions, computed where the encoder is."""
        return self._told(words, self._encoded(words, self.encoder.device).to(device))

    def _told(self, words: Sequence[str], states: torch.Tensor) -> Told:
        """What the network is told of captions with these states."""
        return {"encoder_hidden_states": states}

    @cached_property
    def _empty(self) -> torch.Tensor:
        return self._encoded([""], self.encoder.device)

    @torch.no_grad()
    def _encoded(self, words: Sequence[str], device: torch.device) -> torch.Tensor:
        return self.encoder.to(device)(**super().of_words(words, device))[0]
