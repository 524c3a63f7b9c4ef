"""Fields of dataclasses that `HfArgumentParser` turns into flags."""

from dataclasses import field
from typing import Any


def flag(default: Any = None, help: str = "", aliases: tuple[str, ...] = (), **metadata: Any) -> Any:
    """A dataclass field that becomes a command-line flag with this help text."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help, "aliases": list(aliases)})
    return field(default=default, metadata={"help": help, "aliases": list(aliases), **metadata})


def switch(help: str) -> Any:
    """A flag that is true when given without a value, and that a preset may set when it is not given."""
    return flag(help=help, nargs="?", const=True)
