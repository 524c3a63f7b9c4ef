"""Class labels, by number or name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch

from .condition import Condition, Told


@dataclass(frozen=True, kw_only=True)
class ClassLabels(Condition):
    """One of several classes, told as the network's `class_labels`.

    Attributes:
        count: number of classes.
        names: class number -> name, if they have names.
        has_null: whether the network has one embedding more, which means "no class".
        hidden: the fraction of training images whose class is hidden.
        numbers: class number of a data set -> of the model; None if they agree.
    """

    count: int
    names: Mapping[int, str] | None = None
    has_null: bool = True
    hidden: float = 0.0
    numbers: torch.Tensor | None = None
    name = "class_labels"

    @classmethod
    def of_model(
        cls, unet_config: Mapping[str, Any], names: Mapping[int, str] | None, hidden: float = 0.0
    ) -> "list[ClassLabels]":
        """The condition of a network with these classes; none for an unconditional one."""
        embeddings = unet_config.get("num_class_embeds") or 0
        count = len(names) if names is not None else embeddings
        return [cls(count=count, names=names, has_null=embeddings == count + 1, hidden=hidden)] if count else []

    def of_rows(self, batch: Mapping[str, torch.Tensor]) -> Told:
        """The labels of a batch, int64 (B,)."""
        labels = batch["class_labels"]
        return {"class_labels": labels if self.numbers is None else self.numbers.to(labels.device)[labels]}

    def of_words(self, words: Sequence[int | str], device: torch.device) -> Told:
        """The numbers of classes given by number or name."""
        return {"class_labels": torch.tensor([self.number(word) for word in words], device=device)}

    def null(self, told: Told) -> Told:
        """The last embedding."""
        return {"class_labels": torch.full_like(told["class_labels"], self.count)}

    def usual(self) -> list[int]:
        """All classes."""
        return list(range(self.count))

    def choices(self) -> str:
        """The numbers and the first names."""
        named = ", ".join(f"{number} ({name})" for number, name in list((self.names or {}).items())[:20])
        return f"from 0 to {self.count - 1}" + (f": {named}" if named else "")

    def number(self, label: int | str) -> int:
        """The number of a class given by name or number; ValueError with the choices if it does not exist."""
        for number, name in (self.names or {}).items():
            if label == name:
                return number
        if isinstance(label, Integral) and 0 <= label < self.count:
            return int(label)
        raise ValueError(f"`class_labels` must be {self.choices()}, got {label!r}.")

    def table(self, words: Sequence[int | str]) -> dict[str, list]:
        """`label`, and `class_name` if the classes have names."""
        numbers = [self.number(word) for word in words]
        return {"label": numbers} | ({} if self.names is None else {"class_name": [self.names[n] for n in numbers]})

    def rows(self, count: int) -> tuple[list[int], list[str]]:
        """A row for each of the first ten classes."""
        shown = range(min(self.count, 10))
        columns = -(-count // len(shown))
        names = self.names or {number: str(number) for number in shown}
        return [number for number in shown for _ in range(columns)], [names[number] for number in shown]

    def of_data(self, data: Any) -> "ClassLabels":
        """With the data set's classes found by name, if the model's have names."""
        labels = range(len(data.class_names)) if self.names is None else data.class_names
        return replace(self, numbers=torch.tensor([self.number(label) for label in labels]))
