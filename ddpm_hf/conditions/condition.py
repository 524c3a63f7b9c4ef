"""What every condition has, and how a training batch is told to the network."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

# Argument of the network -> a tensor whose first dimension is the batch.
Told = dict[str, torch.Tensor]


def cycled(words: Sequence[Any], indices: Iterable[int]) -> list[Any]:
    """The word for each image, by its index."""
    return [words[k % len(words)] for k in indices]


class Condition:
    """Something that the network is told. Nothing in it is trained: a learned encoder is a part of the network.

    Attributes:
        name: the argument of the pipeline call that asks for it.
        hidden: the fraction of training images for which it is hidden.
        has_null: whether the network learns what it means when it is hidden, which guidance needs.
    """

    name: str
    hidden: float
    has_null: bool

    def of_rows(self, batch: Mapping[str, Any]) -> Told:
        """What the rows of a batch say, on the batch's device; in training with the `positions` of its images."""
        raise NotImplementedError

    def of_words(self, words: Sequence[Any], device: torch.device) -> Told:
        """What a user asks for, one word an image; ValueError with the choices if it cannot be asked for."""
        raise NotImplementedError

    def null(self, told: Told) -> Told:
        """What is told instead when it is hidden, in the shape of `told`."""
        raise NotImplementedError

    def usual(self) -> list[Any]:
        """Words to cycle through when nothing is asked for."""
        raise NotImplementedError

    def words_of(self, batches: Iterable[Mapping[str, Any]]) -> Iterable[Any]:
        """Words to cycle through in samples that are compared with the rows of these batches; by default the usual."""
        return self.usual()

    def choices(self) -> str:
        """What can be asked for, for messages: "`name` must be …"."""
        raise NotImplementedError

    def table(self, words: Sequence[Any]) -> dict[str, list]:
        """The words as columns of the table beside samples."""
        return {self.name: list(words)}

    def rows(self, count: int) -> tuple[list[Any], list[str] | None]:
        """Words for a picture of at least so many images, and the names of its rows, if it has any."""
        return cycled(self.usual(), range(count)), None

    def beside(self, words: Sequence[Any]) -> torch.Tensor | None:
        """x_0 to show to the left of what is drawn for each of these words in previews; by default nothing."""
        return None

    def cut(self, words: Iterable[Any]) -> list[Any]:
        """Those of the words that are told only in part."""
        return []

    def describe(self) -> str:
        """What a plan says of it; by default nothing."""
        return ""

    def prepare(self, device: torch.device) -> None:
        """Compute what training needs and what takes long, on this device."""

    def of_data(self, data: Any) -> "Condition":
        """This condition as the rows of a data set tell it, which may number its classes otherwise."""
        return self


def usual(conditions: Sequence[Condition], count: int, device: torch.device) -> Told:
    """What the network is told about so many images when nothing is asked for."""
    told = {}
    for condition in conditions:
        told |= condition.of_words(cycled(condition.usual(), range(count)), device)
    return told


def tell(conditions: Sequence[Condition], batch: Mapping[str, Any], masks: Sequence[torch.Tensor] = ()) -> Told:
    """What the network is told about a batch.

    Args:
        masks: for each condition the images, bool (B,), for which it is hidden; by default none.
    """
    told = {}
    for position, condition in enumerate(conditions):
        said = condition.of_rows(batch)
        if masks:
            null, mask = condition.null(said), masks[position]
            said = {
                name: torch.where(mask.view(-1, *[1] * (value.ndim - 1)), null[name], value)
                for name, value in said.items()
            }
        told |= said
    return told
