"""For any combination of values a user gets a run's settings or one line; never a traceback."""

import contextlib
import dataclasses
import io
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.settings.config import ARGUMENT_GROUPS, Config

FIELDS = {field.name: field for group in ARGUMENT_GROUPS for field in dataclasses.fields(group)}

NUMBERS = st.one_of(
    st.integers(-3, 300).map(str),
    st.sampled_from("0 1 -1 0.5 1e-4 1e400 -0.0 nan inf -inf 10000000000000000000000000 1_000 0x10 ١٢".split()),
    st.floats().map(str),
)
WORDS = st.one_of(
    st.sampled_from(
        ["", " ", "none", "None", "true", "no", "auto", "16", "12x20", "0x0", "-", "--", "latest", "=", "%s"]
    ),
    st.text(max_size=6),
)


def value_of(annotation: Any) -> st.SearchStrategy[list[str]]:
    """Words behind a flag of this type: mostly such as it takes, some of another type, several or none."""
    kinds = get_args(annotation) if get_origin(annotation) is UnionType else (annotation,)
    sensible = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            sensible.append(st.sampled_from(get_args(kind)))
        elif kind is bool:
            sensible.append(st.sampled_from(["true", "false"]))
        elif kind in (int, float) or get_origin(kind) is list:
            sensible.append(NUMBERS)
    one = st.one_of(*sensible, WORDS) if sensible else WORDS
    return st.one_of(one.map(lambda word: [word]), one.map(lambda word: [word]), st.lists(one, max_size=3))


FLAG = st.one_of(
    *[value_of(field.type).map(lambda words, name=name: [f"--{name}", *words]) for name, field in FIELDS.items()],
    st.text(max_size=6).map(lambda word: [word]),
)
COMMAND_LINES = st.lists(FLAG, min_size=1, max_size=4).map(lambda flags: [word for flag in flags for word in flag])


def outcome(arguments: list[str]) -> Config | None:
    """The settings; None if one line and status 2 (or a help text and status 0) said no."""
    error, output = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(output):
        try:
            return parse_training_arguments(arguments)
        except SystemExit as stop:
            assert (stop.code == 2) != ({"-h", "--help"} & set(arguments) != set() and stop.code == 0)
            if stop.code == 2:
                assert output.getvalue() == ""
                assert error.getvalue().startswith("train.py: error: ") and error.getvalue().count("\n") == 1
                assert len(error.getvalue().splitlines()) == 1
            return None


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(COMMAND_LINES)
def test_any_command_line_gives_settings_or_one_line(arguments):
    config = outcome(arguments)
    if config is not None:
        assert set(config.flags()) == set(FIELDS)


YAML_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    content=st.dictionaries(st.one_of(st.sampled_from(sorted(FIELDS)), st.text(max_size=4)), YAML_VALUES, max_size=3)
)
def test_any_yaml_file_gives_settings_or_one_line(tmp_path, content):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    outcome(["--config", str(file)])


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=20))
def test_any_bytes_as_a_yaml_file_give_settings_or_one_line(tmp_path, content):
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    outcome(["--config", str(file)])


@pytest.mark.parametrize("value", ["inf", "1e400"])
@pytest.mark.parametrize("flag", ["learning_rate", "adam_weight_decay", "ema_inv_gamma", "holdout"])
def test_infinity_is_no_setting(flag, value):
    assert outcome([f"--{flag}", value]) is None


def test_an_infinite_norm_clips_nothing_and_is_one():
    assert outcome(["--max_grad_norm", "inf"]).optimization.max_grad_norm == float("inf")


@pytest.mark.parametrize(
    "flags",
    [
        "--resolution 100000",
        "--resolution 12x9000",
        "--resolution tiny",
        "--train_batch_size 10000000000000000000000000",
        "--num_train_timesteps 10000000000000000000000000",
        "--blocks_per_level 101",
    ],
)
def test_numbers_that_no_machine_bears_are_refused_at_once(flags):
    assert outcome(flags.split()) is None
