"""What the values of settings mean."""

import pytest

from ddpm_hf.settings.checks import parse_duration


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("45:00", 2700), ("1:00:05", 3605), ("0:30", 30)])
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "1h", "-3", "1:2:3:4", "1.5"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="--max_train_time"):
        parse_duration(text)
