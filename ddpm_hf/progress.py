"""Progress of long work: a bar on a terminal or in a notebook, elsewhere a plain line now and then."""

import sys

from tqdm.asyncio import tqdm as terminal_tqdm
from tqdm.auto import tqdm

SECONDS_BETWEEN_LINES = 30
_LINE = "{desc}: {n:.0f} of {total_fmt}, {rate_noinv_fmt}, {elapsed} so far, {remaining} left{postfix}"
_LINE_OF_UNKNOWN_LENGTH = "{desc}: {n:.0f}, {rate_noinv_fmt}, {elapsed} so far{postfix}"


class _Lines:
    """stderr without the carriage returns and padding with which tqdm overwrites a bar."""

    def write(self, text: str) -> None:
        if line := text.strip():
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()


def is_shown() -> bool:
    """Whether the output can show a bar: a terminal or a notebook."""
    return tqdm is not terminal_tqdm or sys.stderr.isatty()


def progress_bar(iterable=None, **options) -> tqdm:
    """tqdm with the same arguments; in a log file or a pipe, a line every half minute.

    Bars that stay on the screen (`leave`, the default) also write a line at the start and at the end; others write
    none if they take less than half a minute.
    """
    if not is_shown():
        is_measurable = options.get("total") is not None or hasattr(iterable, "__len__")
        options |= {
            "file": _Lines(),
            "bar_format": _LINE if is_measurable else _LINE_OF_UNKNOWN_LENGTH,
            "mininterval": SECONDS_BETWEEN_LINES,
            "miniters": 1,
            "delay": 0 if options.get("leave", True) else SECONDS_BETWEEN_LINES,
            "position": 0,
        }
    return tqdm(iterable, **options)
