"""Which failures are worth another attempt, when it comes, and what is said of them."""

import json
import time

import pytest
from huggingface_hub import get_session
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, Response

from ddpm_hf.hub import retry


def answered(status: int, **headers: str) -> HfHubHTTPError:
    """The client's exception for an answer with this status, made of the client's own kind of response."""
    request = get_session().build_request("GET", "http://127.0.0.1/api")
    return HfHubHTTPError(f"{status} for url", response=Response(status, headers=headers, request=request))


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


TRANSIENT = [
    *(answered(408), answered(429), answered(500), answered(502), answered(503), answered(504)),
    *(HTTPError("timed out"), ConnectionResetError(104, "reset"), TimeoutError(), json.JSONDecodeError("x", "", 0)),
    caused(RuntimeError("Error while uploading"), answered(503)),
    caused(LocalEntryNotFoundError("not on the disk"), HTTPError("no connection")),
]
FINAL = [
    *(answered(400), answered(401), answered(403), answered(404), answered(413), OfflineModeIsEnabled("offline")),
    *(ValueError("holds something else"), FileNotFoundError(2, "no such file")),
    caused(RuntimeError("Error while uploading"), answered(403)),
]


@pytest.fixture
def pauses(monkeypatch):
    """The pauses that would have been made."""
    made = []
    monkeypatch.setattr(time, "sleep", made.append)
    return made


def failing(*errors: Exception):
    """An action that fails with these, one after the other, and then succeeds."""
    left = list(errors)

    def act() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return act


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_what_may_pass_is_tried_again_after_growing_pauses(pauses, error):
    lines = []
    assert retry.persistently(failing(error, error, error), lines.append) == "done"
    assert pauses == sorted(set(pauses)) and len(pauses) == len(lines) == 3
    assert all("next attempt in" in line and "\n" not in line for line in lines)


@pytest.mark.parametrize("error", FINAL, ids=repr)
def test_what_will_not_pass_is_raised_at_once(pauses, error):
    with pytest.raises(type(error)) as raised:
        retry.persistently(failing(error), print)
    assert raised.value is error and pauses == []


def test_there_is_an_end_to_it(pauses):
    errors = [ConnectionResetError(number) for number in range(20)]
    with pytest.raises(ConnectionResetError) as raised:
        retry.persistently(failing(*errors), lambda line: None)
    assert raised.value is errors[len(retry.WAITS)] and pauses == list(retry.WAITS)


@pytest.mark.parametrize(("asked", "made"), [("90", 90), ("1", 2), ("86400", 300), ("tomorrow", 2)])
def test_a_pause_that_the_server_asks_for_is_made(pauses, asked, made):
    retry.persistently(failing(answered(429, **{"Retry-After": asked})), lambda line: None)
    assert pauses == [made]


def test_the_client_stops_waiting_for_an_answer(pauses):
    retry.persistently(lambda: None, print)
    assert get_session().timeout.read == retry.PATIENCE


def test_errors_are_said_in_one_line_with_their_root():
    several = caused(RuntimeError("Error while uploading 'x'."), ConnectionResetError(104, "Connection reset by peer"))
    assert retry.one_line(several) == "Error while uploading 'x'. ([Errno 104] Connection reset by peer)"
    assert retry.one_line(TimeoutError()) == "TimeoutError"
    assert retry.one_line(ValueError("a\n b")) == "a b"
    with_article = HTTPError("Server error '503' for url 'x'\nFor more information check: https://an/article")
    assert retry.one_line(with_article) == "Server error '503' for url 'x'"
