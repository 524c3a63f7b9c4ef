"""Load a data set from the Hub, a folder or the bundled digits as undecoded rows with known columns."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from .captioned_digits import CAPTIONS as LEVELS
from .captioned_digits import DATA_SET, DIGITS, SIDE, captioned_digits, level_for
from .captions import CAPTIONS, CaptionColumn, LabelCaptions, find_caption_column, text_columns
from .class_labels import CLASS_LABELS, class_columns, find_class_column
from .columns import Column, find_image_column
from .order import spread
from .splits import ROWS_AT_ONCE, Split, in_one_line, load_local, load_splits
from .transforms import read_payload

if TYPE_CHECKING:
    import datasets
    import pyarrow


# A data set's own split to evaluate on is the first of these that exists.
EVALUATION_SPLITS = ("test", "validation", "valid", "val", "dev", "eval")


class RawRow(NamedTuple):
    """One undecoded row: its index, the cell of the image column, and what else it has by key in batches."""

    index: int
    value: object
    extra: dict[str, object]


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """A data set of undecoded images.

    Attributes:
        name: the user's name for it, for messages and records.
        features: column name -> type.
        base_dir: folder that relative paths in the image column start from.
        streaming: whether `rows` can only be read sequentially.
        num_rows: number of rows; None for a stream of unknown length.
        fingerprint: changes when the rows or the files they name change; None when streaming.
        columns: what goes into batches beside the images, by key in batches.
        own_split, own_split_data: name and images of the data set's own test or validation split, if it has one.
    """

    name: str
    rows: "datasets.Dataset | datasets.IterableDataset"
    features: "datasets.Features"
    image_column: str
    base_dir: Path | None = None
    streaming: bool = False
    num_rows: int | None = None
    fingerprint: str | None = None
    columns: dict[str, Column] = field(default_factory=dict)
    own_split: str | None = None
    own_split_data: "ImageData | None" = None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Class names by id; None without class labels or captions made of them."""
        column = self.columns.get(CLASS_LABELS) or getattr(self.columns.get(CAPTIONS), "labels", None)
        return None if column is None else column.names

    def batches(self, start: int = 0, batch_size: int = ROWS_AT_ONCE) -> Iterator[list[RawRow]]:
        """Rows from `start` on in data set order, in lists of up to `batch_size`; the same in every DataLoader worker.

        Raises:
            ValueError: a cell cannot be read, such as a class label that is missing or unknown.
        """
        rows = self._needed_columns()
        rows = rows.select(range(start, len(rows))) if not self.streaming else rows.skip(start)
        for table in rows.with_format("arrow").iter(batch_size):
            yield self._raw_rows(range(start, start + len(table)), table)
            start += len(table)

    def row(self, index: int) -> RawRow:
        """One row; a stream is read up to it."""
        return next(self.batches(index, 1))[0] if self.streaming else self.rows_at([index])[0]

    def rows_at(self, indices: Iterable[int]) -> list[RawRow]:
        """Rows in this order, all read at once; not of a stream. Raises as `batches` does."""
        indices = list(map(int, indices))
        return self._raw_rows(indices, self._needed_columns().select(indices).with_format("arrow")[:])

    def some_rows(self, most: int) -> list[RawRow]:
        """Up to `most` rows spread over the data, or the first ones of a stream."""
        return next(self.batches(0, most)) if self.streaming else self.rows_at(spread(self.num_rows, most))

    def _needed_columns(self) -> "datasets.Dataset | datasets.IterableDataset":
        return self.rows.select_columns(sorted({self.image_column, *(c.name for c in self.columns.values())}))

    def _raw_rows(self, indices: Iterable[int], table: "pyarrow.Table") -> list[RawRow]:
        cells = zip(indices, table.to_pylist(), strict=True)
        return [RawRow(index, row[self.image_column], self._extra(row, index)) for index, row in cells]

    def payload(self, row: RawRow) -> object:
        """The row's encoded bytes or array.

        Raises:
            UnreadableImage: the cell is empty or its file cannot be read.
        """
        return read_payload(row.value, self.base_dir)

    def describe(self, row: RawRow) -> str:
        """A row's index and file name, for messages."""
        path = row.value.get("path") if isinstance(row.value, dict) else row.value
        return f"row {row.index}" + (f" ({path})" if isinstance(path, (str, os.PathLike)) else "")

    def _extra(self, cells: dict[str, object], index: int) -> dict[str, object]:
        try:
            return {key: column.read(cells[column.name]) for key, column in self.columns.items()}
        except ValueError as problem:
            raise ValueError(f"{problem} in row {index} of {self.name}.") from None


def load_images(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_data_dir: str | os.PathLike | None = None,
    *,
    dataset_split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    class_conditional: bool = False,
    captioned: bool | Literal["if any"] = False,
    caption_column: str | None = None,
    init_caption_from_labels: str | None = None,
    size: tuple[int, int] | None = None,
    streaming: bool = False,
    cache_dir: str | os.PathLike | None = None,
) -> ImageData:
    """Open a data set without decoding it: the bundled digits or captioned digits, unless a name or a folder is given.

    Args:
        dataset_name: a data set on the Hub, or another path that `datasets.load_dataset` accepts.
        dataset_config_name: one of its configurations; of captioned digits their level, which by default follows from
            `size`.
        train_data_dir: a folder of images (optionally in sub-folders, with `metadata.jsonl`, `.csv` or `.parquet`, or
            with captions in `NAME.txt` beside `NAME.png`, one a line), a parquet or arrow file or a folder of them, or
            a folder written by `Dataset.save_to_disk`.
        dataset_split: the split to train on, or a slice such as `train[:10%]`; by default "train" or the only one.
        image_column: found by its type by default.
        label_column: the class column, read only if given or if `class_conditional` is set.
        captioned: read captions; "if any": where no column holds text, the names of classes are captions, and without
            classes there are none.
        caption_column: of strings or lists of strings; by default found by its type and the usual names. Read only if
            `captioned` is set, like the following.
        init_caption_from_labels: a caption in which {} is replaced by the name of the class, from `label_column`; if
            `captioned` is "if any", "" for no captions.
        size: (height, width) that the images are for: captioned digits of less than 32 pixels all have one size and
            place.
        streaming: read rows on the fly instead of downloading and indexing all of them.
        cache_dir: cache folder of `datasets`.

    Raises:
        ValueError: arguments contradict each other or are unknown, or the data set is missing or empty.
    """
    if dataset_name is not None and train_data_dir is not None:
        raise ValueError(
            f"Give `dataset_name` or `train_data_dir`, not both, got {dataset_name!r} and {str(train_data_dir)!r}."
        )
    if dataset_config_name is not None and dataset_name is None and (train_data_dir is not None or not captioned):
        raise ValueError(f"`dataset_config_name` needs `dataset_name`, got {dataset_config_name!r} alone.")
    cache_dir = None if cache_dir is None else str(cache_dir)
    base_dir = None
    if dataset_name is not None:
        argument = f"`dataset_name` {dataset_name!r} (`dataset_config_name` {dataset_config_name!r})"
        name, arguments = dataset_name, {"streaming": streaming, "cache_dir": cache_dir}
        splits = load_splits(argument, dataset_name, dataset_config_name, **arguments)
    else:
        if train_data_dir is not None:
            name, path = str(train_data_dir), Path(train_data_dir)
        elif captioned:
            level = dataset_config_name or level_for(size or (SIDE, SIDE))
            name, path = DATA_SET, _captioned_digits(level, cache_dir)
        else:
            name, path = "digits", DIGITS
        base_dir = path if path.is_dir() else path.parent
        read_texts = captioned and init_caption_from_labels is None
        splits = load_local(path, read_texts=read_texts, streaming=streaming, cache_dir=cache_dir)
    split, used_splits = _choose_split(splits, dataset_split, name)
    data = _describe_rows(name, split, image_column, base_dir)
    captions, columns = None, {}
    if captioned:
        may_lack = captioned == "if any"
        captions = _caption_column(data, caption_column, init_caption_from_labels, label_column, may_lack)
    if class_conditional or (label_column is not None and not isinstance(captions, LabelCaptions)):
        columns[CLASS_LABELS] = find_class_column(data.features, data.rows, label_column)
    if captions is not None:
        columns[CAPTIONS] = captions
    data = replace(data, columns=columns)
    own = next((word for word in EVALUATION_SPLITS if word in splits and word not in used_splits), None)
    if own is None:
        return data
    own_data = _describe_rows(f"{name} ({own})", splits[own], data.image_column, base_dir)
    return replace(data, own_split=own, own_split_data=replace(own_data, columns=data.columns))


def _captioned_digits(level: str, cache_dir: str | None) -> Path:
    if level not in LEVELS:
        choices = ", ".join(LEVELS)
        raise ValueError(f"`dataset_config_name` of captioned digits must be one of {choices}, got {level!r}.")
    return captioned_digits(level, cache_dir)


def _caption_column(
    data: ImageData, wanted: str | None, template: str | None, label_column: str | None, may_lack: bool
) -> CaptionColumn | LabelCaptions | None:
    if may_lack and (template, wanted) == (None, None) and not text_columns(data.features, data.image_column):
        template = "{}" if label_column is not None or class_columns(data.features) else ""
    if may_lack and template == "":
        return None
    if template is None:
        return find_caption_column(data.features, data.image_column, wanted)
    if wanted is not None:
        raise ValueError(
            f"Give `caption_column` or `init_caption_from_labels`, not both, got {wanted!r} and {template!r}."
        )
    if "{}" not in template:
        raise ValueError(f"`init_caption_from_labels` must have {{}} for the class name, got {template!r}.")
    try:
        return LabelCaptions(find_class_column(data.features, data.rows, label_column), template)
    except ValueError as problem:
        raise ValueError(f"`init_caption_from_labels` needs classes, but {problem}") from None


def _choose_split(splits: dict[str, Split], wanted: str | None, name: str) -> tuple[Split, set[str]]:
    """The rows to train on, and the names of the splits they come from."""
    import datasets

    must_be = f"`dataset_split` must be one of the splits of {name}: {', '.join(splits)}"
    if wanted is None:
        wanted = "train" if "train" in splits else next(iter(splits))
        if wanted != "train" and len(splits) > 1:
            raise ValueError(f"{must_be}. It has no default here, because there is no train split.")
    if wanted in splits:
        return splits[wanted], {wanted}
    try:
        lengths = {name: len(split.rows) for name, split in splits.items()}
        parts = datasets.ReadInstruction.from_spec(wanted).to_absolute(lengths)
    except (ValueError, TypeError, AssertionError):
        hint = "" if hasattr(next(iter(splits.values())).rows, "__len__") else " (a stream has no slices)"
        raise ValueError(f"{must_be}{hint}, got {wanted!r}.") from None
    slices = [splits[part.splitname].rows.select(range(part.from_, part.to)) for part in parts]
    rows = datasets.concatenate_datasets(slices)
    return Split(rows, len(rows)), {part.splitname for part in parts}


def _describe_rows(name: str, split: Split, image_column: str | None, base_dir: Path | None) -> ImageData:
    """An `ImageData` of images alone, their column set not to decode."""
    import datasets

    rows = split.rows
    for column, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    with in_one_line(name):
        first = next(iter(rows.with_format("arrow").iter(1)), None)
    if first is None or len(first) == 0:
        raise ValueError(f"{name} has no rows.")
    features = rows.features or datasets.Features.from_arrow_schema(first.schema)
    column = find_image_column(features, first, image_column, base_dir)
    streaming = isinstance(rows, datasets.IterableDataset)
    return ImageData(
        name=name,
        rows=rows,
        features=features,
        image_column=column,
        base_dir=base_dir,
        streaming=streaming,
        num_rows=split.count,
        fingerprint=None if streaming else _fingerprint(rows, column, base_dir),
    )


def _fingerprint(rows: "datasets.Dataset", column: str, base_dir: Path | None) -> str:
    """A hash that changes when the rows change, or the size or modification time of a file they name."""
    import pyarrow as pa
    import pyarrow.compute as pc

    digest = hashlib.sha256(rows._fingerprint.encode())
    for table in rows.select_columns([column]).with_format("arrow").iter(10_000):
        cell = table[column].combine_chunks()
        if pa.types.is_struct(cell.type):
            cell = pc.struct_field(cell.filter(pc.is_null(pc.struct_field(cell, "bytes"))), "path")
        if not pa.types.is_string(cell.type):
            break
        for path in filter(None, cell.to_pylist()):
            digest.update(f"{path}{_stamp(Path(base_dir or '', path))}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns
