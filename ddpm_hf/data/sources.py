"""From the user's words to one kind of data set: rows that are not decoded yet, and what their columns mean."""

import glob
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..progress import is_shown
from .columns import find_classes, find_image_column, listed
from .folder import TABLE_SUFFIXES, FolderListing, image_splits, list_folder, table_splits
from .transforms import read_payload

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

DIGITS = Path(__file__).with_name("digits.parquet")

# Few enough that a reader of large photographs holds little, enough that tiny images are read as fast as they can be.
ROWS_AT_ONCE = 32

# Where to look for a data set's own held-out images, the first that exists.
HOLDOUT_SPLITS = ("test", "validation", "valid", "val", "dev", "eval")


class Split(NamedTuple):
    """Rows, and how many they are (None: a stream that does not tell)."""

    rows: "datasets.Dataset | datasets.IterableDataset"
    count: int | None


class RawRow(NamedTuple):
    """One row as stored: its number, the cell of the image column, its class id (None without labels)."""

    index: int
    value: object
    label: int | None


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """Rows that hold images, none of them decoded.

    Attributes:
        name: what the user called it, for messages and records.
        rows: a `datasets.Dataset`, or a `datasets.IterableDataset` when streaming.
        features: column name -> type.
        image_column: the column of images.
        base_dir: where relative paths in that column start.
        streaming: whether `rows` can only be read one after the other.
        num_rows: how many rows there are; None for a stream that does not tell.
        fingerprint: changes when rows change or the files that they name; None when streaming.
        label_column: the column of classes; None for unconditional training.
        classes: what stands in the label column -> the name of its class, in the order of class ids.
        holdout_split, holdout: the data set's own test or validation split, if it has one.
    """

    name: str
    rows: "datasets.Dataset | datasets.IterableDataset"
    features: "datasets.Features"
    image_column: str
    base_dir: Path | None = None
    streaming: bool = False
    num_rows: int | None = None
    fingerprint: str | None = None
    label_column: str | None = None
    classes: dict[object, str] | None = None
    holdout_split: str | None = None
    holdout: "ImageData | None" = None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Name of each class id; None without a label column."""
        return None if self.classes is None else tuple(self.classes.values())

    def batches(self, start: int = 0, batch_size: int = ROWS_AT_ONCE) -> Iterator[list[RawRow]]:
        """Rows from `start` in the data set's order, in lists of up to `batch_size`.

        Never split over DataLoader workers: every reader sees the same rows at the same indices.

        Raises:
            ValueError: a label is missing or no class.
        """
        columns = [column for column in (self.image_column, self.label_column) if column]
        rows = self.rows.select_columns(columns)
        rows = rows.select(range(start, len(rows))) if not self.streaming else rows.skip(start)
        for table in rows.with_format("arrow").iter(batch_size):
            values = table[self.image_column].to_pylist()
            labels = [None] * len(values) if self.label_column is None else self._class_ids(table, start)
            numbers = range(start, start + len(values))
            yield [RawRow(*cells) for cells in zip(numbers, values, labels, strict=True)]
            start = numbers.stop

    def payload(self, row: RawRow) -> object:
        """The row's encoded bytes or array.

        Raises:
            UnreadableImage: the cell is empty or its file cannot be read.
        """
        return read_payload(row.value, self.base_dir)

    def describe(self, row: RawRow) -> str:
        """Words that name a row: its number, and its file if it has one."""
        path = row.value.get("path") if isinstance(row.value, dict) else row.value
        return f"row {row.index}" + (f" ({path})" if isinstance(path, (str, os.PathLike)) else "")

    def _class_ids(self, table: "pa.Table", start: int) -> list[int]:
        id_of = {value: i for i, value in enumerate(self.classes)}
        values = table[self.label_column].to_pylist()
        for i, value in enumerate(values):
            if value not in id_of:
                raise ValueError(
                    f"label_column {self.label_column!r}: row {start + i} of {self.name} has {value!r}, "
                    f"which is no class; the classes are {listed(self.class_names)}"
                )
        return [id_of[value] for value in values]


def load_images(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_data_dir: str | os.PathLike | None = None,
    *,
    dataset_split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    class_conditional: bool = False,
    streaming: bool = False,
    cache_dir: str | os.PathLike | None = None,
) -> ImageData:
    """Find the images a user means. Without a name and a folder: the embedded digits.

    Args:
        dataset_name: on the Hub, or whatever else `datasets.load_dataset` takes as a path.
        dataset_config_name: one of its configurations.
        train_data_dir: a folder of images (in sub-folders or not, with `metadata.jsonl`, `.csv` or `.parquet` or not),
            a parquet or arrow file or a folder of them, or a folder written by `Dataset.save_to_disk`.
        dataset_split: which split to train on, slices such as `train[:10%]` included; "train" by default, or the only
            one there is.
        image_column: found by its type when not given.
        label_column: its classes are read when it is named or when `class_conditional` asks for them.
        streaming: read rows as they come instead of downloading and indexing all of them.
        cache_dir: of `datasets`.

    Raises:
        ValueError: contradicting or unknown arguments, nothing found, an empty data set, an unknown column.
    """
    if dataset_name is not None and train_data_dir is not None:
        raise ValueError(f"dataset_name is {dataset_name!r} and train_data_dir is {str(train_data_dir)!r}; give one")
    if dataset_config_name is not None and dataset_name is None:
        raise ValueError(f"dataset_config_name is {dataset_config_name!r}, but dataset_name is not given")
    cache_dir = None if cache_dir is None else str(cache_dir)
    base_dir = None
    if dataset_name is not None:
        argument = f"dataset_name {dataset_name!r} (dataset_config_name {dataset_config_name!r})"
        name, arguments = dataset_name, {"streaming": streaming, "cache_dir": cache_dir}
        splits = _load(argument, dataset_name, dataset_config_name, **arguments)
    else:
        name = "digits" if train_data_dir is None else str(train_data_dir)
        path = DIGITS if train_data_dir is None else Path(train_data_dir)
        base_dir = path if path.is_dir() else path.parent
        splits = _load_local(path, streaming=streaming, cache_dir=cache_dir)
    split, used_splits = _choose_split(splits, dataset_split, name)
    data = _describe_rows(name, split, image_column, base_dir)
    if label_column is not None or class_conditional:
        label_column, classes = find_classes(data.features, data.rows, label_column)
        data = replace(data, label_column=label_column, classes=classes)
    own = next((word for word in HOLDOUT_SPLITS if word in splits and word not in used_splits), None)
    if own is None:
        return data
    own_data = _describe_rows(f"{name} ({own})", splits[own], data.image_column, base_dir)
    own_data = replace(own_data, label_column=data.label_column, classes=data.classes)
    return replace(data, holdout_split=own, holdout=own_data)


@contextmanager
def _in_one_line(argument: str) -> Iterator[None]:
    """What `datasets` finds wrong, as one line that begins with the argument (IndexError: a saved set of no rows)."""
    import datasets

    try:
        yield
    except (OSError, ValueError, IndexError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise ValueError(f"{argument} cannot be loaded: {reason}") from error


def _load(argument: str, path: str, config: str | None = None, *, streaming: bool, **arguments) -> dict[str, Split]:
    import datasets

    if not is_shown():
        datasets.disable_progress_bars()
    with _in_one_line(argument):
        if streaming:
            builder = datasets.load_dataset_builder(path, config, **arguments)
            _read_as_it_comes(builder)
            splits = builder.as_streaming_dataset()
        else:
            splits = datasets.load_dataset(path, config, **arguments)
    return {name: Split(rows, _count(rows, name)) for name, rows in splits.items()}


def _read_as_it_comes(builder: "datasets.DatasetBuilder") -> None:
    """Arrow would fetch what is ahead in a parquet file, keep it to the file's end, and unpack whole row groups."""
    from pyarrow.dataset import ParquetFragmentScanOptions

    if hasattr(builder.config, "fragment_scan_options"):
        builder.config.fragment_scan_options = ParquetFragmentScanOptions(pre_buffer=False)
        builder.config.batch_size = ROWS_AT_ONCE


def _count(rows: "datasets.Dataset | datasets.IterableDataset", split: str) -> int | None:
    if hasattr(rows, "__len__"):
        return len(rows)
    known = (rows.info.splits or {}).get(split)
    return known.num_examples if known and known.num_examples else None


def _as_stream(splits: "dict[str, datasets.Dataset]", streaming: bool) -> dict[str, Split]:
    return {name: Split(rows.to_iterable_dataset() if streaming else rows, len(rows)) for name, rows in splits.items()}


def _load_local(path: Path, *, streaming: bool, cache_dir: str | None) -> dict[str, Split]:
    import datasets

    if not path.exists():
        raise ValueError(f"train_data_dir {str(path)!r} does not exist")
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        with _in_one_line(f"train_data_dir {str(path)!r}"):
            saved = datasets.load_from_disk(str(path))
        return _as_stream(saved if isinstance(saved, dict) else {"train": saved}, streaming)
    if path.is_file():
        listing = FolderListing(path.parent)
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise ValueError(f"train_data_dir {str(path)!r} is a file; give a folder, or a .parquet or .arrow file")
        listing.tables.append(Path(path.name))
    else:
        listing = list_folder(path)
    if listing.images and listing.tables:
        raise ValueError(
            f"train_data_dir {str(path)!r} holds {len(listing.images)} images and {len(listing.tables)} tables "
            f"(such as {listing.tables[0]}); give a folder with one kind"
        )
    if listing.images:
        return _as_stream(image_splits(listing), streaming)
    if listing.tables:
        return _load_tables(f"train_data_dir {str(path)!r}", listing, streaming=streaming, cache_dir=cache_dir)
    raise ValueError(f"train_data_dir {str(path)!r} holds no images and no parquet or arrow files")


def _load_tables(argument: str, listing: FolderListing, **arguments) -> dict[str, Split]:
    kinds = {path.suffix.lower() for path in listing.tables}
    if len(kinds) > 1:
        raise ValueError(f"{argument} holds parquet and arrow files; choose one kind")
    kind = kinds.pop()[1:]
    files, counts = {}, {}
    for name, paths in table_splits(listing).items():
        lengths = [_parquet_rows(listing.root / path) if kind == "parquet" else None for path in paths]
        # datasets cannot read a table of no rows, and takes names for patterns.
        full = [path for path, length in zip(paths, lengths, strict=True) if length != 0]
        if full:
            files[name] = [glob.escape(str((listing.root / path).absolute())) for path in full]
            counts[name] = None if None in lengths else sum(lengths)
    if not files:
        raise ValueError(f"{argument} has no rows")
    splits = _load(argument, kind, data_files=files, **arguments)
    return {name: Split(split.rows, split.count or counts[name]) for name, split in splits.items()}


def _parquet_rows(path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"train_data_dir: {str(path)!r} cannot be read: {error}") from None


def _choose_split(splits: dict[str, Split], wanted: str | None, name: str) -> tuple[Split, set[str]]:
    """The rows to train on, and the names of the splits that they come from."""
    import datasets

    choices = f"the splits of {name} are {', '.join(splits)}"
    if wanted is None:
        wanted = "train" if "train" in splits else next(iter(splits))
        if wanted != "train" and len(splits) > 1:
            raise ValueError(f"dataset_split is not given and there is no train split; {choices}")
    if wanted in splits:
        return splits[wanted], {wanted}
    try:
        lengths = {name: len(split.rows) for name, split in splits.items()}
        parts = datasets.ReadInstruction.from_spec(wanted).to_absolute(lengths)
    except (ValueError, TypeError, AssertionError):
        hint = "" if hasattr(next(iter(splits.values())).rows, "__len__") else " (and a stream has no slices)"
        raise ValueError(f"dataset_split is {wanted!r}; {choices}{hint}") from None
    slices = [splits[part.splitname].rows.select(range(part.from_, part.to)) for part in parts]
    rows = datasets.concatenate_datasets(slices)
    return Split(rows, len(rows)), {part.splitname for part in parts}


def _describe_rows(name: str, split: Split, image_column: str | None, base_dir: Path | None) -> ImageData:
    """An `ImageData` without labels: the image column found and set not to decode."""
    import datasets

    rows = split.rows
    for column, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    with _in_one_line(name):
        first = next(iter(rows.with_format("arrow").iter(1)), None)
    if first is None or len(first) == 0:
        raise ValueError(f"{name} has no rows")
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
    """A hash that changes when the rows change, or the size or time of a file that they only name."""
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
