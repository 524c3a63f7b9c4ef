"""The one way to replace a file or folder: a process that is killed, or fails, leaves the old one or the new one."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def partial_path(path: Path) -> Path:
    """Where `replacing` writes what will become `path`; what a killed process leaves has this name."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A temporary path next to `path` for a file or folder, renamed to `path` at the end and removed after an error.

    A folder that is replaced is moved out of the way just before: a process killed at that instant leaves the complete
    new one under its temporary name.

    Args:
        shared: several processes may write `path` at the same time, each under a name of its own.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial") if shared else partial_path(path)
    old = path.with_name(f".{path.name}.0.partial")  # 0 is nobody's process number
    remove(beside)
    try:
        yield beside
        if path.is_dir():  # which a rename cannot replace
            remove(old)
            os.replace(path, old)
        os.replace(beside, path)
    except BaseException:
        remove(beside)
        raise
    remove(old)


def write_text(file: Path, text: str) -> None:
    """Replace a file's text."""
    with replacing(file) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(file: Path, content: Any) -> None:
    """Replace a file's content by JSON values."""
    write_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(file: Path) -> dict[str, Any]:
    """A file's JSON object; ValueError, naming the file, if it cannot be read or holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise ValueError(f"{file} cannot be read as JSON: {problem}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a mapping, got a {type(content).__name__}")
    return content


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(*paths: Path) -> None:
    """Flush files, and the lists of names that folders are, to the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
