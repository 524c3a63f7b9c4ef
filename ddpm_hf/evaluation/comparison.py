"""Compare pipelines, samplers or numbers of steps in one table and one plot."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .plots import panels
from .record import aligned

_COLUMNS = ("contender", "sampler", "steps", "network_calls", "name", "value", "standard_error", "floor", "n", "seed")


def write_comparison(rows: Sequence[dict[str, Any]], folder: Path) -> str:
    """Write `comparison.csv` and `comparison.png` to a folder, and return the table as text.

    Args:
        rows: report entries, each with a `contender`.
        folder: created if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "comparison.csv").open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, _COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    names = list(dict.fromkeys(row["name"] for row in rows))
    contenders = list(dict.fromkeys(row["contender"] for row in rows))
    _plot(rows, names, folder / "comparison.png")
    cells = {(row["contender"], row["name"]): row for row in rows}
    table = [["contender", "network calls", *names]]
    for contender in contenders:
        calls = str(cells[contender, names[0]]["network_calls"])
        table.append([contender, calls, *(_number(cells[contender, name]) for name in names)])
    table.append(["floor", "", *(_cell(cells[contenders[0], name]["floor"]) for name in names)])
    return aligned(table)


def _number(row: dict[str, Any]) -> str:
    error = row["standard_error"]
    return _cell(row["value"]) + ("" if error is None else f" ± {error:.2g}")


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _plot(rows: Sequence[dict[str, Any]], names: Sequence[str], file: Path) -> None:
    """One panel per metric: value against network calls, with the floor as a line."""
    with panels(file, names, xlabel="network calls per image", xscale="log") as drawn:
        for axes, name in zip(drawn, names, strict=True):
            for row in (row for row in rows if row["name"] == name):
                calls, value, error = row["network_calls"], row["value"], row["standard_error"]
                axes.errorbar(calls, value, yerr=error, fmt="o", label=row["contender"], capsize=3)
            for floor in {row["floor"] for row in rows if row["name"] == name} - {None}:
                axes.axhline(floor, color="grey", linewidth=0.8, linestyle="--")
            axes.legend(fontsize="small")
