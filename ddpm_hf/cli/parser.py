"""From a command line, and optionally a YAML file, to a `Config`; every error is one line and exit status 2."""

import argparse
import difflib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from ..data.transforms import parse_resolution
from ..hub.folder import RECORDED
from ..models.presets import PRESETS
from ..settings.checks import check
from ..settings.config import ARGUMENT_GROUPS, Config

# Flags of diffusers' train_unconditional.py that have no counterpart here -> what to do instead.
RETIRED_FLAGS = {
    "--local_rank": "start the script with `accelerate launch`, which gives every process its rank",
    "--enable_xformers_memory_efficient_attention": "PyTorch's own memory-efficient attention is always on",
    "--preserve_input_precision": "16-bit images are scaled to 8 bits, for which the likelihood is defined",
    "--hub_token": "a token on the command line is no secret, since other users of the machine can read it; "
    "set HF_TOKEN, run `hf auth login`, or name a file with --hub_token_file",
}


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows each flag's default, or, where it has none of its own, those of the presets."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.const is False:  # the --no_ flag that HfArgumentParser adds for a switch that is on
            return f"Turn --{action.dest} off."
        if action.default is not None:
            return super()._get_help_string(action)
        presets_of: dict[str, list[str]] = {}
        for name, preset in PRESETS.items():
            values = {**preset.model, **preset.process, **preset.training}
            if action.dest in values and action.dest != "channels":  # they follow from the images
                value = values[action.dest]
                text = " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
                presets_of.setdefault(text, []).append(name)
        if not presets_of:
            return action.help
        shown = "; ".join(f"{text} in {', '.join(names)}" for text, names in presets_of.items())
        is_off_elsewhere = "True" in presets_of  # a switch that a preset leaves out
        return f"{action.help} (default: {shown if len(presets_of) > 1 or is_off_elsewhere else text})"


class OneLineParser(HfArgumentParser):
    """HfArgumentParser whose errors are one line on stderr and exit status 2, without the usage text before it."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, formatter_class=_Help, **options)

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)

    def refuse_retired(self, arguments: list[str]) -> None:
        """Exit with advice if one of `RETIRED_FLAGS` was given, without repeating its value."""
        for retired, advice in RETIRED_FLAGS.items():
            if any(argument.partition("=")[0] == retired for argument in arguments):
                self.error(f"argument {retired} is not supported: {advice}; leave it out")

    def parse(self, arguments: list[str]) -> tuple[Any, ...]:
        """The filled dataclasses; exits for an unknown flag, suggesting similar ones."""
        try:
            *groups, rest = self.parse_args_into_dataclasses(
                arguments, return_remaining_strings=True, look_for_args_file=False
            )
        except (ValueError, TypeError) as problem:
            self.error(str(problem))
        if rest:
            unknown = rest[0].partition("=")[0]
            known = [option for option in self._option_string_actions if "_" in option or "-" not in option[2:]]
            near = difflib.get_close_matches(unknown, known, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else "; --help lists the arguments"
            self.error(f"unknown argument {unknown}{hint}")
        return tuple(groups)


@contextmanager
def one_line_errors(parser: OneLineParser) -> Iterator[None]:
    """Turn what is wrong with a user's request, data or disk into one line on stderr and exit status 2.

    Errors of the library name arguments in backticks; those that are flags of the parser are shown as flags.
    """

    def as_flag(match: re.Match) -> str:
        name, value = match.groups()
        if f"--{name}" not in parser._option_string_actions:
            return match[0]
        return f"--{name}" if value is None else f"--{name} " + value.strip("'")

    try:
        yield
    except (ValueError, OSError, FloatingPointError) as problem:
        told, got, given = str(problem).strip().removesuffix(".").partition(", got ")
        parser.error(re.sub(r"`(\w+)(?:=([^`]+))?`", as_flag, told) + got + given)


def training_parser() -> OneLineParser:
    """The parser of `scripts/train.py`."""
    parser = OneLineParser(
        ARGUMENT_GROUPS,
        prog="train.py",
        allow_abbrev=False,
        description="Train a DDPM on your own images, or, without arguments, on bundled handwritten digits.",
        epilog="Example: accelerate launch scripts/train.py --train_data_dir photos --resolution 64 --output_dir out",
    )
    parser.add_argument("--config", help="A YAML file of flags and values; the command line wins over it.")
    return parser


def parse_training_arguments(arguments: list[str], parser: OneLineParser | None = None) -> Config:
    """The configuration that a command line describes; exits with status 2 and one line if it is not valid.

    `--config FILE.yaml` supplies flags and values (such as an earlier run's `training_config.yaml`); the command line
    wins over it.
    """
    parser = parser or training_parser()
    parser.refuse_retired(arguments)
    file = _option(arguments, "--config")
    if file is not None:
        arguments = [*_arguments_from_yaml(file, parser), *arguments]
    groups = parser.parse(arguments)[: len(ARGUMENT_GROUPS)]
    config = Config(**dict(zip(("data", "model", "process", "optimization", "run", "hub"), groups, strict=True)))
    with one_line_errors(parser):
        if "," in (config.data.resolution or ""):
            if config.model.system not in ("glide", "imagen"):
                raise ValueError(
                    f"--resolution must be N or HxW for --system {config.model.system}, got {config.data.resolution}; "
                    "two sides are those of the stages of glide or imagen"
                )
            config = config.with_values(_of_stages(config.data.resolution, config.model.upsampling))
        check(config.flags())
    return config


def _of_stages(resolution: str, upsampling: int | None = None) -> dict[str, Any]:
    """`resolution` and `upsampling` of stages whose sides are given as in "64,256".

    Raises:
        ValueError: they are not two sides of which the second is a multiple of the first, or `upsampling` is another.
    """
    try:
        (small, small_width), (large, large_width) = map(parse_resolution, resolution.split(","))
    except ValueError:
        small = small_width = large = large_width = 0
    if not small == small_width or not large == large_width or not small:
        raise ValueError(f"--resolution of stages must be two sides, such as 64,256, got {resolution}")
    if large <= small or large % small:
        raise ValueError(f"--resolution of stages must rise, each a multiple of the one before, got {resolution}")
    if upsampling not in (None, large // small):
        raise ValueError(f"--upsampling {upsampling} contradicts --resolution {resolution}; leave it out")
    return {"resolution": str(small), "upsampling": large // small}


def _option(arguments: list[str], name: str) -> str | None:
    for position, argument in enumerate(arguments):
        if argument == name and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return None


def _arguments_from_yaml(file: str, parser: OneLineParser) -> list[str]:
    """The file's content as command-line arguments, which are then checked like typed ones."""
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        parser.error(f"argument --config: {file} cannot be read as YAML: {problem}")
    if not isinstance(content, dict):
        parser.error(f"argument --config: {file} must hold a mapping of flags to values")
    arguments = []
    for name, value in content.items():
        if name == RECORDED:
            continue
        if f"--{name}" not in parser._option_string_actions or name == "config":
            parser.error(f"argument --config: {file} sets {name!r}, which is not a flag; --help lists them")
        if value is None or value == []:  # as a run records what it does not have
            continue
        values = value if isinstance(value, list) else [value]
        arguments += [f"--{name}", *map(str, values)] if isinstance(value, list) else [f"--{name}={value}"]
    return arguments
