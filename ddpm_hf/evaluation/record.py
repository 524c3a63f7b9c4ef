"""`evaluation.json`: all measurements of a model in one file."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import read_json, replacing

SCHEMA = 1
# What real images get, at best, and what chance gives; they stand beside a figure.
MARKS = ("floor", "ceiling", "chance")
EVALUATION_FILE = "evaluation.json"
# A measurement replaces an earlier one that agrees in all of these.
_IDENTITY = (
    *("name", "dataset", "split", "sampler", "steps", "guidance_scale", "guidance_interval"),
    *("guidance_rescale", "dynamic_thresholding_ratio", "sample_max_value", "noise_level", "samples"),
    *("terms_per_image", "clip", "cdf", "extractor", "prior_guidance_scale", "prior_candidates", "told"),
)


def read_report(file: Path) -> dict[str, Any]:
    """The content of a report; without metrics if there is no file.

    Raises:
        ValueError: the file cannot be read, has another schema, or a metric without a name or a number.
    """
    if not file.is_file():
        return {"schema": SCHEMA, "metrics": []}
    report = read_json(file)
    if report.get("schema") != SCHEMA:
        raise ValueError(f"{file} must have schema {SCHEMA}, got {report.get('schema')!r}")
    if not isinstance(report.get("metrics"), list):
        raise ValueError(f"{file} must have a list of metrics")
    for metric in report["metrics"]:
        number = metric.get("value") if isinstance(metric, dict) else None
        if not isinstance(number, int | float) or isinstance(number, bool) or not metric.get("name"):
            raise ValueError(f"{file}: each metric must have a name and a number as its value, got {metric!r}")
    return report


def metrics_of(file: Path, weights: str | None) -> list[dict[str, Any]]:
    """The metrics of a report to add to; none if it describes other weights. Errors as in `read_report`."""
    try:
        report = read_report(file)
    except ValueError as problem:
        raise ValueError(f"{problem}; delete it to start a new report, or choose another --output_dir") from None
    return report["metrics"] if report.get("weights") == weights else []


def update_report(file: Path, weights: str | None, metrics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add metrics to a report, replacing those measured before under the same conditions.

    Args:
        file: of the report.
        weights: `fingerprint.weights_fingerprint` of the pipeline, None for samples of unknown origin; metrics of
            other weights are dropped.
        metrics: each with at least a "name" and a finite "value".

    Returns:
        All metrics now in the file.

    Raises:
        ValueError: as in `read_report`.
    """
    assert all(math.isfinite(metric["value"]) for metric in metrics)
    new = [_identity(metric) for metric in metrics]
    kept = [metric for metric in metrics_of(file, weights) if _identity(metric) not in new]
    together = [*kept, *metrics]
    content = {"schema": SCHEMA, "weights": weights, "metrics": together}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing(file, shared=True) as partial:
        partial.write_text(text, encoding="utf-8")
    return together


def _identity(metric: dict[str, Any]) -> tuple:
    return "upsampler" in metric, *(metric.get(name) for name in _IDENTITY)


def data_of(metric: dict[str, Any], dataset: str) -> str:
    """Which data a metric is about, and whether samples were enlarged or drawn from embeddings of those data."""
    split = f" ({metric['split']})" if metric.get("split") else ""
    told = f", from {metric['told']}" if metric.get("told") else ""
    return dataset + split + (", upsampled" if "upsampler" in metric else "") + told


def summary_table(metrics: Sequence[dict[str, Any]]) -> str:
    """Metrics as a text table."""
    marks = [mark for mark in MARKS if any(metric.get(mark) is not None for metric in metrics)]
    rows = [("metric", "value", *marks, "n", "sampler", "data")]
    for metric in metrics:
        error, low = metric.get("standard_error"), metric.get("interval_low")
        value = f"{metric['value']:.4g}" if error is None else f"{metric['value']:.4f} ± {error:.4f}"
        if error is None and low is not None:
            value += f" ({low:.4g} to {metric['interval_high']:.4g})"
        beside = ("" if metric.get(mark) is None else f"{metric[mark]:.4g}" for mark in marks)
        data = data_of(metric, metric["dataset"])
        sampler = f"{metric['sampler']} {metric['steps']}" if metric.get("sampler") else metric.get("samples", "")
        rows.append((metric["name"], value, *beside, f"{metric['n']:,}", sampler, data))
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table of cells as text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
