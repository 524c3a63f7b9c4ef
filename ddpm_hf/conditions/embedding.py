"""What a CLIP sees in a picture."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from .condition import Condition, Told


class Embedder(Protocol):
    """What looks at pictures, such as `EmbeddingCodec`."""

    def embeddings(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Of the batch's pictures, float32 (B, E)."""

    def prepare(self, device: torch.device) -> None:
        """As of a condition."""

    def describe(self) -> str:
        """As of a condition."""


@dataclass(frozen=True, kw_only=True)
class ImageEmbedding(Condition):
    """The embedding z of a picture, told as `image_embeds`, float32 (B, E).

    Attributes:
        width: E.
        embedder: makes the embeddings of rows; None where none are asked for by rows.
        empty: what is told when it is hidden, (E,): the embedding of a picture that is zero after its preparation, as
            in stock diffusers; None where each call brings its own.
        hidden: the fraction of training images whose embedding is hidden; 0.1 in DALL·E 2 (arXiv 2204.06125, §2.1).
        examples: embeddings to draw when nothing is asked for.
        pictures: that the examples are of, in [-1, 1], (C, H, W).
    """

    width: int
    embedder: Embedder | None = None
    empty: torch.Tensor | None = None
    hidden: float = 0.0
    examples: Sequence[torch.Tensor] = ()
    pictures: Sequence[torch.Tensor] = ()
    name = "image_embeds"
    has_null = True

    def of_rows(self, batch: Mapping[str, Any]) -> Told:
        """The embeddings of the batch's pictures."""
        return {"image_embeds": self.embedder.embeddings(batch)}

    def of_words(self, words: Sequence[torch.Tensor], device: torch.device) -> Told:
        """These embeddings."""
        for word in words:
            if not torch.is_tensor(word) or tuple(word.shape) != (self.width,):
                found = f"shape {tuple(word.shape)}" if torch.is_tensor(word) else repr(word)
                raise ValueError(f"`image_embeds` must be {self.choices()}, got {found}.")
        return {"image_embeds": torch.stack(list(words)).to(device, torch.float32)}

    def null(self, told: Told) -> Told:
        """The embedding of the zero picture; where it is not known, what was told."""
        like = told["image_embeds"]
        return {"image_embeds": like if self.empty is None else self.empty.to(like).expand_as(like)}

    def usual(self) -> list[torch.Tensor]:
        """The examples; without any, zeros."""
        return list(self.examples) or [torch.zeros(self.width)]

    def words_of(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[torch.Tensor]:
        """The embeddings of the rows' pictures."""
        return (embedding.cpu() for batch in batches for embedding in self.embedder.embeddings(batch))

    def table(self, words: Sequence[Any]) -> dict[str, list]:
        """Nothing: an embedding fits no table."""
        return {}

    def choices(self) -> str:
        """The size."""
        return f"a tensor of {self.width} numbers per image"

    def beside(self, words: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """The pictures that these examples are of."""
        if not self.pictures:
            return None
        places = (next(k for k, one in enumerate(self.examples) if torch.equal(one, word)) for word in words)
        return torch.stack([self.pictures[place] for place in places])

    def describe(self) -> str:
        """What looks, and where embeddings come from."""
        return self.embedder.describe()

    def prepare(self, device: torch.device) -> None:
        """Compute the embeddings that are kept."""
        self.embedder.prepare(device)
