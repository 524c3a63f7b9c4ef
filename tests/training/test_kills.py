"""The short form of benchmarks/kills.py: a run that is killed and one that is not leave the same bits."""

import importlib.util
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"


@pytest.mark.processes
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bits(command, tmp_path, monkeypatch):
    # With this seed the last kill comes as soon as the first of the final pictures is there.
    benchmark = command(SCRIPT, *"--kills 3 --seed 4 --output_dir".split(), tmp_path / "kills", "--", "--holdout", "0")
    assert benchmark.wait() == 0, benchmark.out + benchmark.err[-3000:]
    report = json.loads((tmp_path / "kills" / "kills.json").read_text())
    counts = {row["what"]: row["count"] for row in report["rows"]}
    assert counts["kills"] == 3 and counts["tensors, pictures and columns that differ"] == 0
    attempts = report["settings"]["attempts"]
    kinds = [attempt["kind"] for attempt in attempts]
    assert kinds == ["at a random moment", "while it wrote a checkpoint", "after the last step", None]
    assert [attempt["was_killed"] for attempt in attempts] == [True, True, True, False]

    monkeypatch.syspath_prepend(SCRIPT.parent)
    specification = importlib.util.spec_from_file_location("kills", SCRIPT)
    kills = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(kills)
    unbroken, broken = tmp_path / "kills" / "unbroken", tmp_path / "kills" / "broken"
    same = kills.compare(unbroken, broken)
    assert all(same.values()) and len(same) > 500
    assert {
        "samples.png",
        "denoising.png",
        "loss",
        "optimizer 0 exp_avg",
        "ema.safetensors unet.conv_out.bias",
    } <= set(same)

    file = broken / "checkpoint-36" / "ema.safetensors"
    weights = load_file(file)
    weights["unet.conv_out.bias"] = weights["unet.conv_out.bias"].nextafter(weights["unet.conv_out.bias"] + 1)
    save_file(weights, file)
    differing = [name for name, equal in kills.compare(unbroken, broken).items() if not equal]
    assert differing == ["ema.safetensors unet.conv_out.bias"], "one bit is seen"
