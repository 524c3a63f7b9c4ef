"""Retry calls to the Hub."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from huggingface_hub import get_session
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

Result = TypeVar("Result")

# Seconds between attempts; there is one attempt more than waits.
WAITS = (2, 5, 10, 20, 40)
# Read timeout in seconds; huggingface_hub has none.
PATIENCE = 60.0
_TRANSIENT_STATUS = (408, 425, 429, 500, 502, 503, 504)


def persistently(action: Callable[[], Result], say: Callable[[str], None]) -> Result:
    """Call `action`, retrying with growing pauses while the Hub is unreachable or overloaded.

    Needed because huggingface_hub does not retry commits, repository creation and `whoami`.

    Args:
        action: makes requests through huggingface_hub; must be safe to repeat.
        say: called with a line for each failed attempt.

    Raises:
        Exception: what `action` raised, if it is permanent or the last attempt failed.
    """
    for wait in (*WAITS, None):
        get_session().timeout = PATIENCE
        try:
            return action()
        except Exception as error:
            if wait is None or not is_transient(error):
                raise
            wait = max(wait, _asked_pause(error))
            say(f"the Hub: {one_line(error)}; next attempt in {wait:g} s")
            sys.stdout.flush()  # so that it shows in a pipe or log file during the pause
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def is_transient(error: BaseException) -> bool:
    """Whether a retry may succeed: no connection, a timeout, a broken response, an overloaded server."""
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
    """An error's message in one line, with its root cause; the type if there is no message."""
    advice = " For more information check:"  # the HTTP client appends a link about status codes
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
    """Seconds in the server's Retry-After header, at most 300."""
    for cause in _with_causes(error):
        asked = getattr(getattr(cause, "response", None), "headers", {}).get("Retry-After", "")
        if asked.isdigit():
            return min(float(asked), 300.0)
    return 0.0
