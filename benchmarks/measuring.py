"""Shared by all benchmarks: paired timing, facts about the machine, a table and a JSON file.

Ours and stock take turns in one process (A B A B …), so that a temporary slowdown of the machine affects both. A ratio
is the median over the pairs, with its minimum and maximum.
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
    """Median seconds per call of both sides, and how many times faster ours is: median and range over the pairs."""

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
    """Time several functions in turns, after one warm-up call of each.

    Args:
        sides: name -> function without arguments.
        repetitions: turns per function.
        calls: calls per turn.

    Returns:
        name -> seconds per call in each turn.
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
    """Compare the seconds of both sides turn by turn."""
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
    """Time both sides in turns; by default a turn has as many calls as stock makes in 0.2 seconds."""
    if calls is None:
        stock()
        start = time.perf_counter()
        stock()
        calls = max(1, round(0.2 / (time.perf_counter() - start)))
    seconds = interleaved({"stock": stock, "ours": ours}, repetitions, calls)
    return compare(name, seconds["stock"], seconds["ours"], goal)


def readable_seconds(seconds: float) -> str:
    """Seconds with three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def machine() -> dict[str, Any]:
    """What results depend on besides the code: processor, threads, current load, versions, date."""
    return {
        "processor": processor_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
    } | {name: version(name) for name in _VERSIONS}


def describe_machine(facts: Mapping[str, Any]) -> str:
    """The same in one line, for printing below a table."""
    versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "diffusers"))
    return (
        f"{facts['date']}, {facts['processor']}, {facts['threads']} of {facts['cpus']} threads, "
        f"load {facts['load']} at the start, {versions}"
    )


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a Markdown table; its columns are the keys of the first row."""
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
    """Write rows (dicts or dataclasses), settings and the machine's facts to JSON."""
    report = {
        "machine": facts or machine(),
        "settings": {name: _without_folder(value) for name, value in settings.items()},
        "rows": [asdict(row) if is_dataclass(row) else dict(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _without_folder(value: Any) -> Any:
    """Remove local paths."""
    is_path = isinstance(value, Path) or (isinstance(value, str) and os.path.isabs(value))
    return Path(value).name if is_path else value


def slug(name: str) -> str:
    """A string that is valid as a folder name."""
    return "-".join(re.findall(r"[\w+]+", name))


def make_parser(description: str, name: str) -> argparse.ArgumentParser:
    """A parser with the flags common to all benchmarks; `name` is the stem of the JSON file in benchmarks/out."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="normal", help="How much to measure; normal by default.")
    parser.add_argument("--output", type=Path, help=f"JSON file; benchmarks/out/SIZE/{name}.json by default.")
    parser.set_defaults(benchmark=name)
    return parser


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Print the benchmark and the machine, fill in --output, and return the machine's facts."""
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
