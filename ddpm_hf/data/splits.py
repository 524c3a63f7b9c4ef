"""Open a data set of any form as splits of undecoded rows."""

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..progress import is_shown
from .folder import TABLE_SUFFIXES, FolderListing, image_splits, list_folder, table_splits

if TYPE_CHECKING:
    import datasets

# Small enough to hold large photographs in memory, large enough to read tiny images at full speed.
ROWS_AT_ONCE = 32


class Split(NamedTuple):
    """Rows and their number (None for a stream of unknown length)."""

    rows: "datasets.Dataset | datasets.IterableDataset"
    count: int | None


@contextmanager
def in_one_line(argument: str) -> Iterator[None]:
    """Turn errors of `datasets` into one line that names the argument (IndexError: a saved data set without rows)."""
    import datasets

    try:
        yield
    except (OSError, ValueError, IndexError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise ValueError(f"Cannot load {argument}: {reason}") from error


def load_splits(
    argument: str, path: str, config: str | None = None, *, streaming: bool, **arguments
) -> dict[str, Split]:
    """The splits of what `datasets.load_dataset` accepts; `argument` names it in errors, which are ValueErrors."""
    import datasets

    if not is_shown():
        datasets.disable_progress_bars()
    with in_one_line(argument):
        if streaming:
            builder = datasets.load_dataset_builder(path, config, **arguments)
            _limit_read_ahead(builder)
            splits = builder.as_streaming_dataset()
        else:
            splits = datasets.load_dataset(path, config, **arguments)
    return {name: Split(rows, _count(rows, name)) for name, rows in splits.items()}


def _limit_read_ahead(builder: "datasets.DatasetBuilder") -> None:
    """Keep Arrow from buffering a whole parquet file and from decoding whole row groups."""
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


def load_local(path: Path, *, read_texts: bool, streaming: bool, cache_dir: str | None) -> dict[str, Split]:
    """The splits of a folder or table, in any form that `load_images` reads; ValueError if there is nothing."""
    import datasets

    if not path.exists():
        raise ValueError(f"`train_data_dir` {str(path)!r} does not exist.")
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        with in_one_line(f"`train_data_dir` {str(path)!r}"):
            saved = datasets.load_from_disk(str(path))
        return _as_stream(saved if isinstance(saved, dict) else {"train": saved}, streaming)
    if path.is_file():
        listing = FolderListing(path.parent)
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise ValueError(f"`train_data_dir` must be a folder or a .parquet or .arrow file, got {str(path)!r}.")
        listing.tables.append(Path(path.name))
    else:
        listing = list_folder(path)
    if listing.images and listing.tables:
        raise ValueError(
            f"`train_data_dir` must hold either images or tables, but {str(path)!r} has {len(listing.images)} images "
            f"and {len(listing.tables)} tables (such as {listing.tables[0]})."
        )
    if listing.images:
        return _as_stream(image_splits(listing, read_texts), streaming)
    if listing.tables:
        return _load_tables(f"`train_data_dir` {str(path)!r}", listing, streaming=streaming, cache_dir=cache_dir)
    raise ValueError(f"`train_data_dir` {str(path)!r} has no images and no parquet or arrow files.")


def _load_tables(argument: str, listing: FolderListing, **arguments) -> dict[str, Split]:
    kinds = {path.suffix.lower() for path in listing.tables}
    if len(kinds) > 1:
        raise ValueError(f"{argument} must hold either parquet or arrow files, not both.")
    kind = kinds.pop()[1:]
    files, counts = {}, {}
    for name, paths in table_splits(listing).items():
        lengths = [_parquet_rows(listing.root / path) if kind == "parquet" else None for path in paths]
        # `datasets` cannot read an empty table, and treats names as glob patterns.
        full = [path for path, length in zip(paths, lengths, strict=True) if length != 0]
        if full:
            files[name] = [glob.escape(str((listing.root / path).absolute())) for path in full]
            counts[name] = None if None in lengths else sum(lengths)
    if not files:
        raise ValueError(f"{argument} has no rows.")
    splits = load_splits(argument, kind, data_files=files, **arguments)
    return {name: Split(split.rows, split.count or counts[name]) for name, split in splits.items()}


def _parquet_rows(path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"Cannot read {str(path)!r} of `train_data_dir`: {error}") from None
