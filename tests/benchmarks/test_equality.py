"""The comparison of two revisions sees one changed weight, loss or pixel, and what was not made. It trains nothing."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import equality  # noqa: E402


def made(place: Path, weight: float = 1, loss: float = 0.5, pixel: int = 7, seconds: float = 2) -> Path:
    checkpoint = place / "out" / f"checkpoint-{equality.STEPS}"
    for folder in (checkpoint, place / "out" / "unet", place / "samples" / "overview"):
        folder.mkdir(parents=True)
    save_file({"a": np.array([1, weight], dtype=np.float32), "b": np.zeros(3)}, checkpoint / "model.safetensors")
    save_file({"a": np.ones(2)}, place / "out" / "unet" / "weights.safetensors")
    (place / "out" / "loss.csv").write_text(f"step,loss,seconds\n1,{loss},{seconds}\n")
    (place / "out" / "scores.csv").write_text("step,bits_per_dim\n1,8.0\n")
    Image.fromarray(np.full((2, 2), pixel, dtype=np.uint8)).save(place / "samples" / "overview" / "grid.png")
    return place


@pytest.mark.parametrize(
    ("changed", "seen"),
    [
        ({}, {}),
        ({"seconds": 3}, {}),
        ({"weight": 1 + 2**-23}, {"weights": "1 of 2 differ"}),
        ({"loss": 0.500001}, {"loss table": "1 of 2 differ"}),
        ({"pixel": 8}, {"samples": "1 of 1 differ"}),
    ],
)
def test_what_differs_is_named(tmp_path, changed, seen):
    found = equality.compare(*map(equality.results, (made(tmp_path / "before"), made(tmp_path / "after", **changed))))
    assert {name: verdict for name, verdict in found.items() if not verdict.startswith("equal")} == seen


def test_what_neither_made_is_not_equal(tmp_path):
    places = [made(tmp_path / side) for side in ("before", "after")]
    for place in places:
        (place / "samples" / "overview" / "grid.png").unlink()
    assert equality.compare(*map(equality.results, places))["samples"] == "missing"
