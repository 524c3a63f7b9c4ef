"""Progress of long work: a bar on a terminal and in a notebook, elsewhere a plain line now and then."""

import sys

from tqdm.asyncio import tqdm as terminal_tqdm
from tqdm.auto import tqdm

SECONDS_BETWEEN_LINES = 30
_LINE = "{desc}: {n:.0f} of {total_fmt}, {rate_noinv_fmt}, {elapsed} so far, {remaining} left{postfix}"
_LINE_OF_UNKNOWN_LENGTH = "{desc}: {n:.0f}, {rate_noinv_fmt}, {elapsed} so far{postfix}"


class _Lines:
    """stderr without the carriage returns and padding with which tqdm draws over what it drew before."""

    def write(self, text: str) -> None:
        if line := text.strip():
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()


def is_shown() -> bool:
    """Whether a bar can be drawn over itself where this program's messages go."""
    return tqdm is not terminal_tqdm or sys.stderr.isatty()


def progress_bar(iterable=None, **options) -> tqdm:
    """tqdm with the same arguments.

    In a log file or a pipe it writes a line every half minute. Work that is to stay on the screen (`leave`, the
    default) also has one at its beginning and at its end; other work that takes less than that leaves nothing.
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
