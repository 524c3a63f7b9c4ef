"""The caption that a CLIP learns to match with its picture."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..seeds import derive_seed
from .condition import Told
from .prompt import Prompt, as_it_is


@dataclass(frozen=True, kw_only=True)
class MatchedCaption(Prompt):
    """A caption, told as `input_ids`, int64 (B, length), with `meaning`, int64 (B,): a number that rows share whose
    captions are all the same. Never hidden."""

    read: Callable[[str], str] = as_it_is
    masked: bool = False

    def of_rows(self, batch: Mapping[str, Any]) -> Told:
        """The tokens of the batch's captions, and what its rows mean."""
        return super().of_rows(batch) | {"meaning": batch["meanings"]}

    def of_words(self, words: Sequence[str], device: torch.device) -> Told:
        """The tokens of these captions, each of which means something else."""
        meaning = torch.tensor([derive_seed(word) for word in words])
        return super().of_words(words, device) | {"meaning": meaning.to(device)}
