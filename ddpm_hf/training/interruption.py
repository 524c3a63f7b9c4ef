"""Reasons to stop before the last step: a signal, the death of the launcher, or the end of `--max_train_time`."""

import os
import signal
import time
from types import FrameType

from ..cores import LAUNCHER_MARK

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
TIME_UP = 1


class Stopped(Exception):
    """A run has saved its state and ended before its last step; the same command continues it.

    Attributes:
        status: the exit status that tells why.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Interruption:
    """A context that watches for a reason to stop. The first signal is noted; a second one kills the process.

    Reasons are integers, which processes can exchange: 0 for none, `TIME_UP`, or 128 + n, the exit status of a process
    that ends by signal n.

    Args:
        max_seconds: running time allowed from now; None for no limit.
    """

    def __init__(self, max_seconds: float | None):
        self.deadline = None if max_seconds is None else time.monotonic() + max_seconds
        # If the launcher dies, nothing else stops its processes.
        self.parent = os.getppid() if LAUNCHER_MARK in os.environ else None
        self.signal = 0

    def __enter__(self) -> "Interruption":
        self.before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    def reason(self) -> int:
        """Why this process should stop now."""
        if self.signal:
            return 128 + self.signal
        if self.parent is not None and os.getppid() != self.parent:
            return 128 + signal.SIGHUP
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return TIME_UP
        return 0


def describe_reason(reason: int) -> str:
    """The reason in words."""
    if reason == TIME_UP:
        return "the end of --max_train_time"
    return "the end of its launcher" if reason == 128 + signal.SIGHUP else signal.Signals(reason - 128).name


def exit_status(reason: int) -> int:
    """The exit status of a process that stops for this reason; running out of the time asked for is no failure."""
    return 0 if reason == TIME_UP else reason
