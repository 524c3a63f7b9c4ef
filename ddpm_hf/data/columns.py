"""Find the image and class columns, by type where the user does not name them."""

from pathlib import Path
from typing import TYPE_CHECKING

from .transforms import UnreadableImage, open_image, read_payload

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa


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
        return _existing("image_column", wanted, features)
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


def find_classes(
    features: "datasets.Features", rows: "datasets.Dataset | datasets.IterableDataset", wanted: str | None
) -> tuple[str, dict[object, str]]:
    """The class column, and a mapping from its values to class names in the order of class ids.

    Args:
        features: column name -> type.
        rows: read for the distinct values of a column that is not a ClassLabel.
        wanted: the user's column; None for the one called `label`, else the only ClassLabel.

    Raises:
        ValueError: there is no such column, none or several to choose from, or its type cannot hold classes.
    """
    import datasets

    if wanted is None:
        found = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        found = ["label"] if "label" in features else found
        if len(found) != 1:
            several = f"several columns have classes: {', '.join(found)}"
            problem = several if found else "no column is called label or has classes"
            raise ValueError(f"`label_column` is not given and {problem}; the columns are {typed(features)}.")
        wanted = found[0]
    feature = features[_existing("label_column", wanted, features)]
    if isinstance(feature, datasets.ClassLabel):
        return wanted, dict(enumerate(feature.names))
    if not getattr(feature, "dtype", "").startswith(("int", "uint", "bool", "string", "large_string")):
        raise ValueError(
            f"`label_column` must be of type ClassLabel, string or integer; {wanted!r} is {_type(feature)}."
        )
    if isinstance(rows, datasets.IterableDataset):
        raise ValueError(f"`label_column` must be a ClassLabel when streaming; {wanted!r} is {_type(feature)}.")
    return wanted, {value: str(value) for value in sorted(value for value in rows.unique(wanted) if value is not None)}


def _existing(argument: str, column: str, features: "datasets.Features") -> str:
    if column not in features:
        raise ValueError(f"`{argument}` must be one of the columns {typed(features)}, got {column!r}.")
    return column


def typed(features: "datasets.Features") -> str:
    return ", ".join(f"{name} ({_type(feature)})" for name, feature in features.items())


def _type(feature: object) -> str:
    kind = type(feature).__name__
    return feature.dtype if kind == "Value" else kind


def listed(names: tuple[str, ...], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
