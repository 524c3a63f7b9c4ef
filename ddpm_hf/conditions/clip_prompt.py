"""A caption as CLIP reads it, for the prior of DALL·E 2 (Ramesh et al. 2022, arXiv 2204.06125)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from .condition import Told
from .prompt import FrozenPrompt, Prompt, as_it_is


@dataclass(frozen=True, kw_only=True)
class ClipPrompt(FrozenPrompt):
    """A caption, told as stock `KandinskyV22PriorPipeline` tells it to a `PriorTransformer`.

    That is its embedding `proj_embedding` (B, E), the states `encoder_hidden_states` (B, length, E), and which of them
    are of its tokens, `attention_mask`, bool (B, length). They are those of "" when it is hidden.

    Attributes:
        encoder: a `CLIPTextModelWithProjection` whose states are as wide as its embeddings.
    """

    read: Callable[[str], str] = as_it_is
    more_rows: ClassVar[int] = 1

    @torch.no_grad()
    def _encoded(self, words: Sequence[str], device: torch.device) -> torch.Tensor:
        """States, and the embedding as one more, (B, length + 1, E)."""
        read = self.encoder.to(device)(Prompt.of_words(self, words, device)["input_ids"])
        return torch.cat([read.last_hidden_state, read.text_embeds[:, None]], dim=1)

    def _told(self, words: Sequence[str], states: torch.Tensor) -> Told:
        return {
            "proj_embedding": states[:, -1],
            "encoder_hidden_states": states[:, :-1],
            "attention_mask": Prompt.of_words(self, words, states.device)["attention_mask"].bool(),
        }
