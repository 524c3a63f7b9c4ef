"""Captions: the column that holds them, one or several to a row, or none, and the one that a batch shows."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..seeds import derive_seed
from .class_labels import ClassColumn
from .columns import existing, typed
from .order import below

if TYPE_CHECKING:
    import datasets

CAPTIONS = "captions"  # in batches

# In lower case; the first that a data set has is its caption column.
USUAL_NAMES = (
    *("caption", "captions", "text", "texts", "prompt", "prompts", "description", "descriptions"),
    *("sentence", "sentences", "title"),
)


@dataclass(frozen=True)
class CaptionColumn:
    """A column of captions: a string, a list of strings or null in each cell."""

    name: str

    def __str__(self) -> str:
        return f"captions in the column {self.name!r}"

    def read(self, cell: str | list[str | None] | None) -> str:
        """The captions of a cell, one per line, their white space collapsed; "" if there are none."""
        captions = cell if isinstance(cell, list) else [cell]
        return "\n".join(filter(None, (" ".join(caption.split()) for caption in captions if caption)))


@dataclass(frozen=True)
class LabelCaptions:
    """Captions that name the class of a row.

    Attributes:
        labels: the class column.
        template: the caption, with {} for the class name.
    """

    labels: ClassColumn
    template: str

    def __str__(self) -> str:
        return f"captions {self.template!r} of their names"

    @property
    def name(self) -> str:
        """The name of the class column."""
        return self.labels.name

    def read(self, cell: object) -> str:
        """The caption of a class, its white space collapsed; "" if the cell is no class."""
        caption = self.template.replace("{}", self.labels.classes[cell]) if cell in self.labels.classes else ""
        return " ".join(caption.split())


def text_columns(features: "datasets.Features", image_column: str) -> list[str]:
    """All columns of text but that of images, which may hold file names."""
    return [name for name, feature in features.items() if _holds_text(feature) and name != image_column]


def find_caption_column(features: "datasets.Features", image_column: str, wanted: str | None) -> CaptionColumn:
    """The caption column: the user's, else the first that holds text and has a usual name, else the only one of text.

    Args:
        features: column name -> type.
        image_column: no candidate.
        wanted: the user's column, or None.

    Raises:
        ValueError: there is no such column, none or several to choose from, or it holds no text.
    """
    found = text_columns(features, image_column)
    if wanted is not None:
        if existing("caption_column", wanted, features) not in found:
            raise ValueError(
                f"`caption_column` must hold strings or lists of strings, got {wanted!r} of {typed(features)}."
            )
        return CaptionColumn(wanted)
    usual = [name for name in found if name.lower() in USUAL_NAMES]
    if usual:
        return CaptionColumn(min(usual, key=lambda name: USUAL_NAMES.index(name.lower())))
    if len(found) != 1:
        problem = f"several columns hold text: {', '.join(found)}" if found else "no column holds text"
        raise ValueError(f"`caption_column` is not given and {problem}; the columns are {typed(features)}.")
    return CaptionColumn(found[0])


def _holds_text(feature: object) -> bool:
    import datasets

    if isinstance(feature, datasets.List | datasets.LargeList):
        feature = feature.feature
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string", "string_view")


def captions_of(cell: str) -> list[str]:
    """The captions of a row, as a caption column reads them."""
    return cell.split("\n") if cell else []


def meanings_of(cells: Iterable[str]) -> np.ndarray:
    """A number for the captions of each row, int64 (B,): rows with the same captions show the same."""
    return np.array([derive_seed(*sorted({*captions_of(cell)})) for cell in cells], dtype=np.int64)


def choose_captions(cells: Iterable[str], bits: np.ndarray | None = None) -> np.ndarray:
    """One caption of each row, strings (B,), "" where there is none.

    Args:
        cells: (B,) as a caption column reads them.
        bits: (B,) uint64 random bits that choose; None for the first captions.
    """
    several = [captions_of(cell) or [""] for cell in cells]
    counts = [len(captions) for captions in several]
    places = [0] * len(several) if bits is None else below(bits, counts)
    return np.array([captions[place] for captions, place in zip(several, places, strict=True)], dtype=np.str_)
