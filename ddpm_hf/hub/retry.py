"""Calls to the Hub that outlive its bad moments."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from huggingface_hub import get_session
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

Result = TypeVar("Result")

# Seconds between attempts; one attempt more than there are waits.
WAITS = (2, 5, 10, 20, 40)
# Seconds without a byte after which a connection is given up; huggingface_hub itself would wait for ever.
PATIENCE = 60.0
_TRANSIENT_STATUS = (408, 425, 429, 500, 502, 503, 504)


def persistently(action: Callable[[], Result], report: Callable[[str], None]) -> Result:
    """The result of `action`, tried again with growing pauses while the Hub is out of reach or overloaded.

    huggingface_hub repeats single requests, but not the commit, the creation of a repository and the question who one
    is. `action` must be repeatable as a whole.

    Args:
        action: makes requests through huggingface_hub.
        report: told of every failed attempt, in one line.

    Raises:
        Exception: what `action` raised, if that is final or was so in the last attempt too.
    """
    for wait in (*WAITS, None):
        get_session().timeout = PATIENCE
        try:
            return action()
        except Exception as error:
            if wait is None or not is_transient(error):
                raise
            wait = max(wait, _asked_pause(error))
            report(f"the Hub: {one_line(error)}; next attempt in {wait:g} s")
            sys.stdout.flush()  # into a pipe or a log file too: somebody may be waiting with it
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: no connection, no answer, a broken answer, an overloaded server."""
    errors = list(_with_causes(error))
    if any(isinstance(e, OfflineModeIsEnabled) for e in errors):
        return False
    statuses = [e.response.status_code for e in errors if getattr(e, "response", None) is not None]
    if statuses:
        return statuses[0] in _TRANSIENT_STATUS
    # RuntimeError is what the Xet client raises.
    broken = (HTTPError, ConnectionError, TimeoutError, RuntimeError, json.JSONDecodeError)
    return any(isinstance(e, broken) for e in errors)


def one_line(error: BaseException) -> str:
    """What went wrong, without line breaks; the kind of error where it has no words of its own."""
    advice = " For more information check:"  # of the HTTP client: an article on status codes
    texts = [" ".join(str(cause).split()).partition(advice)[0] for cause in _with_causes(error)]
    root = texts[-1] or type(error).__name__
    if not texts[0] or root in texts[0]:
        return texts[0] or root
    return f"{texts[0]} ({root})"


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _asked_pause(error: BaseException) -> float:
    """Seconds that an overloaded server asks to be left alone, at most five minutes."""
    for cause in _with_causes(error):
        asked = getattr(getattr(cause, "response", None), "headers", {}).get("Retry-After", "")
        if asked.isdigit():
            return min(float(asked), 300.0)
    return 0.0
