"""The flags of the Hub: what they refuse, what they never repeat, and the command that they add up to."""

import shlex
import sys
from pathlib import Path

import pytest
import yaml

from ddpm_hf.cli.parser import OneLineParser, parse_training_arguments
from ddpm_hf.outputs.publish import push_command
from ddpm_hf.settings.config import HUB_FLAGS
from ddpm_hf.settings.hub_arguments import PageArguments

SECRET = "hf_ThisMustNotBeRepeated"


def error_of(capsys, arguments) -> str:
    with pytest.raises(SystemExit) as end:
        parse_training_arguments(arguments)
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--hub_token", SECRET], [f"--hub_token={SECRET}"], ["--hub_tokn", SECRET]])
def test_a_token_on_the_command_line_is_refused_and_not_repeated(capsys, arguments):
    line = error_of(capsys, ["--push_to_hub", *arguments])
    assert arguments[0].partition("=")[0] in line and "hub_token_file" in line and SECRET not in line


def test_a_token_in_a_file_of_flags_is_refused_and_not_repeated(capsys, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"hub_token": SECRET}))
    line = error_of(capsys, ["--config", str(tmp_path / "run.yaml")])
    assert "'hub_token'" in line and SECRET not in line


@pytest.mark.parametrize("flag", [["--hub_model_id", "x"], ["--hub_private_repo"], ["--hub_token_file", "x"]])
def test_flags_that_would_do_nothing_are_named(capsys, flag):
    assert f"{flag[0]} needs --push_to_hub" in error_of(capsys, flag)


def test_where_a_model_is_published_is_no_property_of_the_run(tmp_path):
    from ddpm_hf.outputs.folder import OutputFolder

    config = parse_training_arguments(["--push_to_hub", "--hub_model_id", "alice/x", "--output_dir", str(tmp_path)])
    folder = OutputFolder(tmp_path)
    folder.open(config, {}, overwrite=False)
    written = yaml.safe_load((tmp_path / "training_config.yaml").read_text())
    assert HUB_FLAGS and not HUB_FLAGS & written.keys()
    # And the run goes on whatever is said of the Hub.
    folder.open(parse_training_arguments(["--output_dir", str(tmp_path)]), {}, overwrite=False)


def test_the_command_for_later_says_the_same_again():
    hub = PageArguments(hub_private_repo=True, hub_license="mit", hub_token_file="my token")
    words = shlex.split(push_command(hub, Path("my folder"), "alice/x"))
    assert words[:3] == [sys.executable, "-m", "ddpm_hf.cli.push"]
    parser = OneLineParser(PageArguments)
    parser.add_argument("folder")
    said, rest = parser.parse(words[3:])
    assert rest.folder == "my folder"
    assert said == PageArguments(
        hub_model_id="alice/x", hub_private_repo=True, hub_license="mit", hub_token_file="my token"
    )
