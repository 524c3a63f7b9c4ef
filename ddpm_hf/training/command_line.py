"""From a command line, and a YAML file if one is named, to a `Config`; every error is one line and exit status 2."""

import argparse
import difflib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from ..models.presets import PRESETS
from .config import ARGUMENT_GROUPS, RECORDED, Config

# Flags of diffusers' train_unconditional.py that have no counterpart here -> what to do instead.
RETIRED_FLAGS = {
    "--local_rank": "start the script with `accelerate launch`, which tells every process its rank",
    "--enable_xformers_memory_efficient_attention": "PyTorch's own memory-efficient attention is always on",
    "--preserve_input_precision": "16-bit images are scaled to 8 bits, the grid on which the likelihood is defined",
    "--hub_token": "other users of the machine can read a command line, so a token given there is no secret any more; "
    "set HF_TOKEN, run `hf auth login`, or name a file with --hub_token_file",
}


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that there are: where a flag has none of its own, those of the presets, as one types them."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.const is False:  # the second flag that HfArgumentParser makes of a switch that is on
            return f"Turn --{action.dest} off."
        if action.default is not None:
            return super()._get_help_string(action)
        presets_of: dict[str, list[str]] = {}
        for name, preset in PRESETS.items():
            values = {**preset.model, **preset.process, **preset.training}
            if action.dest in values and action.dest != "channels":  # which are the images', whatever the preset
                value = values[action.dest]
                text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
                presets_of.setdefault(text, []).append(name)
        if not presets_of:
            return action.help
        shown = "; ".join(f"{text} in {', '.join(names)}" for text, names in presets_of.items())
        return f"{action.help} (default: {shown if len(presets_of) > 1 else text})"


class OneLineParser(HfArgumentParser):
    """HfArgumentParser whose errors are one line on stderr and exit status 2, without the usage text before it."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, formatter_class=_Help, **options)

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        sys.exit(2)

    def refuse_retired(self, arguments: list[str]) -> None:
        """End with a line of advice if one of `RETIRED_FLAGS` was given; its value is not repeated."""
        for retired, advice in RETIRED_FLAGS.items():
            if any(argument.partition("=")[0] == retired for argument in arguments):
                self.error(f"argument {retired} has no counterpart here: {advice}; leave it out")

    def parse(self, arguments: list[str]) -> tuple[Any, ...]:
        """The filled dataclasses; an unknown flag ends with a line that names the nearest known one."""
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
def one_line_errors(prog: str) -> Iterator[None]:
    """Turn what is wrong with a user's request, data or disk into one line on stderr and exit status 2."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as problem:
        print(f"{prog}: error: {' '.join(str(problem).split())}", file=sys.stderr)
        sys.exit(2)


def parse_training_arguments(arguments: list[str], prog: str = "train.py") -> Config:
    """The configuration that a command line asks for; exits with status 2 and one line if it cannot be one.

    `--config FILE.yaml` gives flags and values (`training_config.yaml` of an earlier run is such a file); flags on the
    command line win over it.
    """
    parser = OneLineParser(
        ARGUMENT_GROUPS,
        prog=prog,
        allow_abbrev=False,
        description="Train a DDPM on your own images. Without arguments: on embedded handwritten digits.",
        epilog=f"Example: accelerate launch scripts/{prog} --train_data_dir photos --resolution 64 --output_dir out",
    )
    parser.add_argument("--config", help="A YAML file of flags and values; the command line wins over it.")
    parser.refuse_retired(arguments)
    file = _option(arguments, "--config")
    if file is not None:
        arguments = [*_arguments_from_yaml(file, parser), *arguments]
    groups = parser.parse(arguments)[: len(ARGUMENT_GROUPS)]
    config = Config(**dict(zip(("data", "model", "process", "optimization", "run", "hub"), groups, strict=True)))
    with one_line_errors(prog):
        config.check()
    return config


def _option(arguments: list[str], name: str) -> str | None:
    for position, argument in enumerate(arguments):
        if argument == name and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return None


def _arguments_from_yaml(file: str, parser: OneLineParser) -> list[str]:
    """The file's content as command-line arguments, so that one set of checks serves both."""
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        parser.error(f"argument --config: {file} cannot be read as YAML: {' '.join(str(problem).split())}")
    if not isinstance(content, dict):
        parser.error(f"argument --config: {file} holds no mapping of flags to values")
    arguments = []
    for name, value in content.items():
        if name == RECORDED:
            continue
        if f"--{name}" not in parser._option_string_actions or name == "config":
            parser.error(f"argument --config: {file} sets {name!r}, which is no flag; --help lists them")
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        arguments += [f"--{name}", *map(str, values)] if isinstance(value, list) else [f"--{name}={value}"]
    return arguments
