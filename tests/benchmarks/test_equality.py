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
        ({"pixel": 8}, {"pictures": "1 of 1 differ"}),
    ],
)
def test_what_differs_is_named(tmp_path, changed, seen):
    found = equality.compare(*map(equality.results, (made(tmp_path / "before"), made(tmp_path / "after", **changed))))
    assert {name: verdict for name, verdict in found.items() if not verdict.startswith("equal")} == seen


def test_what_neither_made_is_not_equal(tmp_path):
    places = [made(tmp_path / side) for side in ("before", "after")]
    for place in places:
        (place / "samples" / "overview" / "grid.png").unlink()
    assert equality.compare(*map(equality.results, places))["pictures"] == "missing"


def test_commands_start_as_scripts_or_as_modules_and_a_failure_is_told(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "ddpm_hf"]:
        monkeypatch.delitem(sys.modules, name)  # which the script itself does not import
    trees, places = [tmp_path / "old", tmp_path / "new"], [tmp_path / "b", tmp_path / "a"]
    write = "import sys, mine\nopen('said', 'w').write(f'{sys.argv[1:]} {mine.name}')\nsys.exit('--bad' in sys.argv)\n"
    for tree, file in zip(trees, ("scripts/train.py", "ddpm_hf/cli/train.py"), strict=True):
        (tree / file).parent.mkdir(parents=True)
        (tree / file).write_text(write)
        for package in [folder for folder in (tree / file).parents if "ddpm_hf" in folder.parts[len(tree.parts) :]]:
            (package / "__init__.py").touch()
        (tree / "mine.py").write_text(f"name = {tree.name!r}\n")
    equality.run(trees, places, "train", "--steps 3")
    assert [(place / "said").read_text() for place in places] == [
        f"['--steps', '3'] {name}" for name in ("old", "new")
    ]
    with pytest.raises(RuntimeError, match="train --bad failed"):
        equality.run(trees, places, "train", "--bad")
