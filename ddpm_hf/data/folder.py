"""Find the images, tables, splits, classes and metadata in a local folder. Decodes nothing."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

IMAGE_SUFFIXES = frozenset(
    ".apng .avif .bmp .dib .gif .ico .j2k .jfif .jp2 .jpe .jpeg .jpg .pbm .pcx .pgm .png .pnm .ppm .qoi .tga .tif"
    " .tiff .webp".split()
)
TABLE_SUFFIXES = frozenset({".parquet", ".arrow"})
METADATA_NAMES = frozenset({"metadata.jsonl", "metadata.csv", "metadata.parquet"})

# Folder and file names that `datasets` reads as a split -> the split's name.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}


@dataclass
class FolderListing:
    """The relevant files under a folder, sorted, as relative paths; text files by their path without suffix."""

    root: Path
    images: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    metadata: list[Path] = field(default_factory=list)
    texts: dict[Path, Path] = field(default_factory=dict)


def list_folder(root: Path) -> FolderListing:
    """Walk a folder in sorted order, following links but entering each real folder once.

    Skips hidden files and folders (a leading dot). In a folder of images `metadata.parquet` is metadata.

    Raises:
        ValueError: a name is not valid UTF-8, which Arrow tables require.
    """
    listing = FolderListing(root)
    entered = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            subfolders.clear()
            continue
        entered.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(files):
            path, suffix = Path(folder, name).relative_to(root), Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if not name.isascii() and name != name.encode(errors="replace").decode():
                raise ValueError(f"`train_data_dir` has a file name that is not UTF-8: {ascii(folder + '/' + name)}.")
            if name in METADATA_NAMES:
                listing.metadata.append(path)
            elif suffix in IMAGE_SUFFIXES:
                listing.images.append(path)
            elif suffix in TABLE_SUFFIXES:
                listing.tables.append(path)
            elif suffix == ".txt":
                listing.texts[path.with_suffix("")] = path
    if not listing.images:
        listing.tables += [path for path in listing.metadata if path.suffix == ".parquet"]
    return listing


def image_splits(listing: FolderListing, read_texts: bool = False) -> "dict[str, datasets.Dataset]":
    """Split name -> rows of the folder's images.

    Top-level folders are splits only if all of them are named like splits and `train` is among them. File names never
    name a split: `my test.png` is not a test set. The rows have a column `image` of paths and the columns of the
    folder's metadata. If every image is in a sub-folder (of its split), the column `label` holds the name of the
    topmost one as its class. With `read_texts`, the column `caption` holds the lines of `NAME.txt` beside `NAME.png`,
    unless there are no such files or the metadata has that column.
    """
    import datasets

    images = listing.images
    words = [SPLIT_WORDS.get(path.parts[0].lower()) if len(path.parts) > 1 else None for path in images]
    is_split = None not in words and "train" in words
    root = listing.root.absolute()  # readers join relative paths to the folder once more
    columns = {"image": [str(root / path) for path in images]}
    features = {"image": datasets.Image(decode=False)}
    classes = [path.parts[is_split] if len(path.parts) > is_split + 1 else None for path in images]
    if None not in classes:
        columns["label"] = classes
        features["label"] = datasets.ClassLabel(names=sorted(set(classes)))
    texts = [listing.texts.get(path.with_suffix("")) for path in images] if read_texts else []
    if any(texts):
        columns["caption"] = [path and _read_lines(listing.root / path) for path in texts]
        features["caption"] = datasets.List(datasets.Value("string"))
    for name, values in _metadata_columns(listing).items():
        columns[name] = values.to_pylist()
        features[name] = datasets.features.features.generate_from_arrow_type(values.type)
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    if not is_split:
        return {"train": rows}
    return {name: rows.select([i for i, word in enumerate(words) if word == name]) for name in sorted(set(words))}


def table_splits(listing: FolderListing) -> dict[str, list[Path]]:
    """Split name -> tables, named by a folder (`test/0.parquet`) or a prefix (`test-00000-of-00001.parquet`)."""
    splits = {}
    for path in listing.tables:
        words = [part.lower() for part in path.parts[:-1]] + [re.split(r"[-_.]", path.name.lower())[0]]
        named = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
        splits.setdefault(named[-1] if named else "train", []).append(path)
    return splits if "train" in splits else {"train": listing.tables}


def _metadata_columns(listing: FolderListing) -> "dict[str, pa.Array]":
    """Column name -> one value per image, null for images without metadata."""
    import pyarrow as pa

    tables = []
    for path in listing.metadata:
        table = _read_metadata(listing.root / path)
        if "file_name" not in table.column_names:
            raise ValueError(f"{listing.root / path} has no column file_name; it has {', '.join(table.column_names)}.")
        names = [os.path.normpath(path.parent / name) for name in table["file_name"].to_pylist()]
        tables.append(table.drop_columns("file_name").append_column("file_name", pa.array(names)))
    if not tables:
        return {}
    table = pa.concat_tables(tables, promote_options="permissive")
    line_of = {name: line for line, name in enumerate(table["file_name"].to_pylist())}
    lines = pa.array([line_of.get(str(path)) for path in listing.images], type=pa.int64())
    taken = table.drop_columns("file_name").take(lines)
    return {name: taken[name].combine_chunks() for name in taken.column_names if name != "image"}


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()  # some editors begin a file with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Cannot read {path}, which must be UTF-8: {error}.") from None


def _read_metadata(path: Path) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    try:
        if path.suffix == ".csv":
            return pa.csv.read_csv(path, parse_options=pa.csv.ParseOptions(newlines_in_values=True))
        return (pa.json.read_json if path.suffix == ".jsonl" else pa.parquet.read_table)(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"Cannot read {path}: {error}") from None
