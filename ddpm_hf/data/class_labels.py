"""Find the class column of a data set, by its type where the user does not name it, and number the classes."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from .columns import existing, type_name, typed

if TYPE_CHECKING:
    import datasets

CLASS_LABELS = "class_labels"  # in batches


@dataclass(frozen=True)
class ClassColumn:
    """A column of classes, read as class ids.

    Attributes:
        name: its name in the data set.
        classes: cell -> class name, in the order of class ids.
    """

    name: str
    classes: dict[object, str]

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by id."""
        return tuple(self.classes.values())

    @cached_property
    def _ids(self) -> dict[object, int]:
        return {cell: number for number, cell in enumerate(self.classes)}

    def read(self, cell: object) -> int:
        """The class id of a cell; ValueError if it holds no known class."""
        if cell not in self._ids:
            known = ", ".join(self.names[:20]) + (f" and {len(self.names) - 20} more" if len(self.names) > 20 else "")
            raise ValueError(f"`label_column` {self.name!r} must hold one of {known}, got {cell!r}")
        return self._ids[cell]


def class_columns(features: "datasets.Features") -> list[str]:
    """The one called `label`, else every ClassLabel."""
    import datasets

    found = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    return ["label"] if "label" in features else found


def find_class_column(
    features: "datasets.Features", rows: "datasets.Dataset | datasets.IterableDataset", wanted: str | None
) -> ClassColumn:
    """The class column: the user's, else the one called `label`, else the only ClassLabel.

    Args:
        features: column name -> type.
        rows: read for the distinct values of a column that is not a ClassLabel.
        wanted: the user's column, or None.

    Raises:
        ValueError: there is no such column, none or several to choose from, or its type cannot hold classes.
    """
    import datasets

    if wanted is None:
        found = class_columns(features)
        if len(found) != 1:
            several = f"several columns have classes: {', '.join(found)}"
            problem = several if found else "no column is called label or has classes"
            raise ValueError(f"`label_column` is not given and {problem}; the columns are {typed(features)}.")
        wanted = found[0]
    feature = features[existing("label_column", wanted, features)]
    if isinstance(feature, datasets.ClassLabel):
        return ClassColumn(wanted, dict(enumerate(feature.names)))
    kind = type_name(feature)
    if not getattr(feature, "dtype", "").startswith(("int", "uint", "bool", "string", "large_string")):
        raise ValueError(f"`label_column` must be of type ClassLabel, string or integer; {wanted!r} is {kind}.")
    if isinstance(rows, datasets.IterableDataset):
        raise ValueError(f"`label_column` must be a ClassLabel when streaming; {wanted!r} is {kind}.")
    cells = sorted(cell for cell in rows.unique(wanted) if cell is not None)
    return ClassColumn(wanted, {cell: str(cell) for cell in cells})
