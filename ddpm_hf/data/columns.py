"""Columns of a data set: the images, found by type where the user does not name them, and what goes with them."""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .transforms import UnreadableImage, open_image, read_payload

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa


class Column(Protocol):
    """A column that goes into batches beside the images.

    A dataclass that can be pickled: its `repr` tells stores of decoded data sets apart.

    Attributes:
        name: its name in the data set.
    """

    name: str

    def read(self, cell: object) -> object:
        """A cell as a number or string, which NumPy can save; ValueError, completed with the row, if it is neither."""


def find_image_column(
    features: "datasets.Features", first: "pa.Table", wanted: str | None, base_dir: Path | None
) -> str:
    """The image column: the user's, else the only one of type Image, else the only one whose first cell decodes.

    If there are several, the one called `image`.

    Raises:
        ValueError: there is no such column, or none or several to choose from; lists all columns with their types.
    """
    import datasets

    if wanted is not None:
        return existing("image_column", wanted, features)
    found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    found = found or [name for name in features if _decodes(first[name][0].as_py(), base_dir)]
    if "image" in found:
        return "image"
    if len(found) != 1:
        problem = f"several columns hold images: {', '.join(found)}" if found else "no column holds images"
        raise ValueError(f"`image_column` is not given and {problem}; the columns are {typed(features)}.")
    return found[0]


def _decodes(value: object, base_dir: Path | None) -> bool:
    try:
        open_image(read_payload(value, base_dir))
    except UnreadableImage:
        return False
    return True


def existing(argument: str, column: str, features: "datasets.Features") -> str:
    """`column`, if the data set has it; else ValueError naming the argument and all columns."""
    if column not in features:
        raise ValueError(f"`{argument}` must be one of the columns {typed(features)}, got {column!r}.")
    return column


def typed(features: "datasets.Features") -> str:
    """All columns with their types, for messages."""
    return ", ".join(f"{name} ({type_name(feature)})" for name, feature in features.items())


def type_name(feature: object) -> str:
    """The type of a column, for messages."""
    kind = type(feature).__name__
    return feature.dtype if kind == "Value" else kind
