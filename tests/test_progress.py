"""Progress where there is no terminal: plain lines, few of them."""

import sys

import pytest

from ddpm_hf import progress
from ddpm_hf.progress import progress_bar


def work(**options) -> None:
    with progress_bar(total=40, desc="training", unit=" steps", **options) as bar:
        for _ in range(40):
            bar.set_postfix({"loss": "0.5"}, refresh=False)
            bar.update()


def test_a_log_has_a_line_at_the_beginning_one_at_the_end_and_one_now_and_then(capsys, monkeypatch):
    work()
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("training: 0 of 40, ") and last.startswith("training: 40 of 40, ")
    assert "steps/s" in last and last.endswith("loss=0.5")
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    work()
    text = capsys.readouterr().err
    assert text.count("\n") == 42 and "\r" not in text and "\x1b" not in text


def test_short_work_within_other_work_leaves_nothing_in_a_log(capsys, tiny_pipeline):
    work(leave=False)
    pipeline = tiny_pipeline()
    pipeline.set_progress_bar_config(disable=False, desc="sampling", leave=False)
    pipeline(num_inference_steps=2)
    for _ in progress_bar(iter("abc"), desc="of unknown length", leave=None):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("iterable", ["abc", iter("abc")], ids=["known length", "unknown length"])
def test_the_time_left_is_told_where_it_is_known(capsys, iterable):
    assert list(progress_bar(iterable, desc="letters")) == list("abc")
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("letters: 3") and (" of 3, " in last) == (" left" in last) == (iterable == "abc")


def test_a_terminal_has_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    work()
    assert "\rtraining: 100%|" in capsys.readouterr().err
