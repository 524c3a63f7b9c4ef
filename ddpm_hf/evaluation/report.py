"""`evaluation.json`: what was measured on a model, in one file that every metric joins."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCHEMA = 1
REPORT_FILE = "evaluation.json"
# Two measurements that agree in these are the same one, made anew.
_IDENTITY = (
    *("name", "dataset", "split", "sampler", "steps", "guidance_scale", "samples"),
    *("terms_per_image", "clip", "cdf", "extractor"),
)


def read_report(file: Path, weights: str | None) -> list[dict[str, Any]]:
    """The metrics that a report holds of these weights; none if there is no file or it is of other weights.

    Raises:
        ValueError: if the file cannot be read or has another schema.
    """
    if not file.is_file():
        return []
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise ValueError(f"{file} cannot be read as JSON: {problem}; remove it to begin a new report") from None
    found = report.get("schema") if isinstance(report, dict) else None
    if found != SCHEMA:
        raise ValueError(f"{file} has schema {found!r}, this version writes {SCHEMA}; name another --output_dir")
    return report["metrics"] if report.get("weights") == weights else []


def update_report(file: Path, weights: str | None, metrics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add metrics to a report; one that is there already under the same conditions is replaced.

    Args:
        file: of the report.
        weights: `fingerprint.weights_fingerprint` of the network, None for samples of unknown origin; figures of other
            weights are dropped.
        metrics: each with at least "name" and a finite number as its "value".

    Returns:
        All metrics that the file now holds.

    Raises:
        ValueError: as `read_report`.
    """
    assert all(math.isfinite(metric["value"]) for metric in metrics)
    new = {_identity(metric) for metric in metrics}
    kept = [metric for metric in read_report(file, weights) if _identity(metric) not in new]
    together = [*kept, *metrics]
    beside = file.with_name(f".{file.name}.partial")
    content = {"schema": SCHEMA, "weights": weights, "metrics": together}
    beside.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(beside, file)
    return together


def _identity(metric: dict[str, Any]) -> tuple:
    return tuple(metric.get(name) for name in _IDENTITY)


def summary_table(metrics: Sequence[dict[str, Any]]) -> str:
    """Metrics as lines for a terminal."""
    rows = [("metric", "value", "floor", "n", "sampler", "data")]
    for metric in metrics:
        error = metric.get("standard_error")
        value = f"{metric['value']:.4g}" if error is None else f"{metric['value']:.4f} ± {error:.4f}"
        floor = metric.get("floor")
        data = f"{metric['dataset']} ({metric['split']})"
        sampler = f"{metric['sampler']} {metric['steps']}" if metric.get("sampler") else metric.get("samples", "")
        floor = "" if floor is None else f"{floor:.4g}"
        rows.append((metric["name"], value, floor, f"{metric['n']:,}", sampler, data))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
