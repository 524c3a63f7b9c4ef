"""What all benchmarks share: paired timing, the record of the machine, one table and one JSON file.

Ours and its stock counterpart take turns in one process (A B A B …), so that a machine which slows down for a while
slows both. A ratio is the median over the pairs, with the lowest and the highest of them.
"""

import argparse
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ddpm_hf.training.device import processor_name

SIZES = ("quick", "normal", "full")
_VERSIONS = ("torch", "diffusers", "accelerate", "datasets", "numpy", "pillow")


@dataclass(frozen=True)
class Comparison:
    """Seconds of one call on either side (medians), and how many times faster ours is: median and range of pairs."""

    name: str
    stock_seconds: float
    ours_seconds: float
    ratio: float
    low: float
    high: float
    pairs: int
    goal: float | None = None

    def row(self) -> dict[str, str]:
        """As a line of the table."""
        row = {
            "what": self.name,
            "stock": readable_seconds(self.stock_seconds),
            "ours": readable_seconds(self.ours_seconds),
            "times faster": f"{self.ratio:.2f} [{self.low:.2f}..{self.high:.2f}]",
            "n": str(self.pairs),
        }
        verdict = "" if self.goal is None else f"{self.goal:g}: {'met' if self.ratio >= self.goal else 'missed'}"
        return row | {"goal": verdict}


def interleaved(sides: Mapping[str, Callable[[], Any]], repetitions: int, calls: int = 1) -> dict[str, list[float]]:
    """Time several ways of doing one thing in turns, after one call of each that does not count.

    Args:
        sides: name -> function without arguments.
        repetitions: turns of each side.
        calls: calls in a turn; the seconds of a turn are divided by it.

    Returns:
        name -> seconds of one call in each turn.
    """
    for function in sides.values():
        function()
    seconds = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, function in sides.items():
            start = time.perf_counter()
            for _ in range(calls):
                function()
            seconds[name].append((time.perf_counter() - start) / calls)
    return seconds


def compare(name: str, stock: Sequence[float], ours: Sequence[float], goal: float | None = None) -> Comparison:
    """What the seconds of turn k on either side say of each other."""
    ratios = [a / b for a, b in zip(stock, ours, strict=True)]
    return Comparison(
        name=name,
        stock_seconds=statistics.median(stock),
        ours_seconds=statistics.median(ours),
        ratio=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
        pairs=len(ratios),
        goal=goal,
    )


def paired(
    name: str,
    stock: Callable[[], Any],
    ours: Callable[[], Any],
    repetitions: int,
    calls: int | None = None,
    goal: float | None = None,
) -> Comparison:
    """Time both sides in turns. Without `calls`, a turn has as many calls as stock does in a fifth of a second."""
    if calls is None:
        stock()
        start = time.perf_counter()
        stock()
        calls = max(1, round(0.2 / (time.perf_counter() - start)))
    seconds = interleaved({"stock": stock, "ours": ours}, repetitions, calls)
    return compare(name, seconds["stock"], seconds["ours"], goal)


def readable_seconds(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def machine() -> dict[str, Any]:
    """What a figure depends on beside the code: processor, threads, load at this moment, versions, day."""
    return {
        "processor": processor_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
    } | {name: version(name) for name in _VERSIONS}


def describe_machine(facts: Mapping[str, Any]) -> str:
    """The same in a line, as it stands under a table."""
    versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "diffusers"))
    return (
        f"{facts['date']}, {facts['processor']}, {facts['threads']} of {facts['cpus']} threads, "
        f"load {facts['load']} at the start, {versions}"
    )


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """A Markdown table with aligned columns, which are the keys of the first row."""
    names = list(rows[0])
    cells = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(names))]
    cells.insert(1, ["-" * width for width in widths])
    for line in cells:
        print("| " + " | ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)) + " |")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_report(
    path: Path, rows: Sequence[Any], settings: Mapping[str, Any], facts: Mapping[str, Any] | None = None
) -> None:
    """Write rows (dicts or dataclasses), settings and machine as JSON; `facts` are the machine's from the start."""
    report = {
        "machine": facts or machine(),
        "settings": {name: _without_folder(value) for name, value in settings.items()},
        "rows": [asdict(row) if is_dataclass(row) else dict(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _without_folder(value: Any) -> Any:
    """The folders of one machine say nothing on another."""
    is_path = isinstance(value, Path) or (isinstance(value, str) and os.path.isabs(value))
    return Path(value).name if is_path else value


def slug(name: str) -> str:
    """As the name of a folder."""
    return "-".join(re.findall(r"[\w+]+", name))


def make_parser(description: str, name: str) -> argparse.ArgumentParser:
    """The flags that every benchmark has; `name` is that of its JSON file in benchmarks/out."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="normal", help="How much is measured. normal.")
    parser.add_argument("--output", type=Path, help=f"JSON file. benchmarks/out/SIZE/{name}.json")
    parser.set_defaults(benchmark=name)
    return parser


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Print what is going to be measured on what, fill in --output, and return the machine's facts."""
    if options.output is None:
        options.output = Path(__file__).parent / "out" / options.size / f"{options.benchmark}.json"
    facts = machine()
    note = {"quick": " (few repetitions: a first look, no result)"}.get(options.size, "")
    print(f"\n{options.benchmark}, size {options.size}{note}\n{describe_machine(facts)}\n")
    return facts


def finish(options: argparse.Namespace, rows: Sequence[Any], facts: Mapping[str, Any]) -> None:
    """Print the table of these rows (dicts, or objects with `row`) and write the JSON."""
    print_table([row.row() if hasattr(row, "row") else row for row in rows])
    write_report(options.output, rows, vars(options), facts)
    print(f"\nwritten to {options.output}")
