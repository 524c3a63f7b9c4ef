"""scripts/evaluate.py as a user types it, on a small real run."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(trained_run, tmp_path):
    """A copy of the run to measure."""
    return shutil.copytree(trained_run, tmp_path / "model")


def metrics_in(folder: Path) -> list[dict]:
    return json.loads((folder / "evaluation.json").read_text())["metrics"]


def nearly(metric: dict) -> dict:
    return {
        name: pytest.approx(value, rel=1e-5) if isinstance(value, float) else value for name, value in metric.items()
    }


def test_nll_of_the_held_out_rows(folder, load_script, capsys):
    evaluate = load_script("evaluate.py").main
    evaluate([str(folder), "--metrics", "nll", "--per_image", "--batch_size", "32"])
    (exact,) = metrics_in(folder)
    assert {name: exact[name] for name in ("name", "n", "seed", "split", "sampler", "steps", "terms_per_image")} == {
        **{"name": "bits_per_dim", "n": 10, "seed": 0, "split": "held_out", "sampler": "ddpm", "steps": 40},
        "terms_per_image": 40,
    }
    assert (exact["clip"], exact["cdf"], exact["floor"]) == (True, "erf", None)
    assert exact["rate"] + exact["distortion"] == pytest.approx(exact["value"])
    assert exact["standard_error"] > 0 and exact["prior"] > 0
    last = capsys.readouterr().out.splitlines()
    assert last[-1] == f"report: {folder / 'evaluation.json'}" and last[-2].startswith("bits_per_dim")
    with (folder / "evaluation" / "nll_per_image.csv").open() as lines:
        images = list(csv.DictReader(lines))
    assert len({row["row"] for row in images}) == 10
    assert sum(float(row["bits_per_dim"]) for row in images) / 10 == pytest.approx(exact["value"])
    assert len((folder / "evaluation" / "nll_terms.csv").read_text().splitlines()) == 41
    for picture in ("nll_terms.png", "nll_rate_distortion.png"):
        assert Image.open(folder / "evaluation" / picture).size[0] > 300

    # An estimate joins the report, and the same measurement replaces itself.
    evaluate([str(folder), "--nll_timesteps", "20", "--seed", "1"])
    evaluate([str(folder), "--batch_size", "7"])
    estimate, again = metrics_in(folder)
    assert estimate["terms_per_image"] == 20
    assert abs(estimate["value"] - exact["value"]) < 4 * estimate["standard_error"]
    assert again == nearly(exact)


def test_the_choices_of_the_bound_are_recorded(folder, load_script):
    evaluate = load_script("evaluate.py").main
    arguments = ["--max_images", "3", "--no_nll_clip", "--nll_cdf", "tanh", "--split", "train"]
    evaluate([str(folder), *arguments])
    (metric,) = metrics_in(folder)
    assert (metric["clip"], metric["cdf"], metric["n"], metric["split"]) == (False, "tanh", 3, "train")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nowhere"], ["/nowhere"]),
        (["FOLDER", "--nll_timesteps", "41"], ["--nll_timesteps", "41", "40 terms"]),
        (["FOLDER", "--nll_timesteps", "0"], ["--nll_timesteps", "0"]),
        (["FOLDER", "--batch_size", "0"], ["--batch_size", "0"]),
        (["FOLDER", "--max_images", "-1"], ["--max_images", "-1"]),
        (["FOLDER", "--metrics", "fid3"], ["--metrics", "fid3", "nll"]),
        (["FOLDER", "--split", "dev"], ["dev", "train"]),
        (["FOLDER", "--train_data_dir", "/nowhere"], ["/nowhere"]),
        (["FOLDER", "--nll_cdf", "probit"], ["probit", "erf"]),
        (["FOLDER", "--train_data_dir", "UNLABELLED"], ["label"]),
        (["STRANGE_CLASSES"], ["'cat'", "wolf"]),
        (["WITHOUT_RUN"], ["--dataset_name"]),
        (["OLD_REPORT"], ["schema 0", "--output_dir"]),
        (["NO_VARIANCE"], ["variance_type", "3 output channels", "6"]),
    ],
)
def test_bad_input_is_one_line_and_status_two(folder, tmp_path, load_script, capsys, arguments, words):
    (tmp_path / "unlabelled").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "unlabelled" / "a.png")
    places = {"FOLDER": folder, "UNLABELLED": tmp_path / "unlabelled"}
    for name in ("STRANGE_CLASSES", "WITHOUT_RUN", "OLD_REPORT", "NO_VARIANCE"):
        if name in arguments:
            places[name] = shutil.copytree(folder, tmp_path / name)
    if "STRANGE_CLASSES" in places:
        file = places["STRANGE_CLASSES"] / "model_index.json"
        file.write_text(file.read_text().replace('"cat"', '"wolf"'))
    if "WITHOUT_RUN" in places:
        (places["WITHOUT_RUN"] / "training_config.yaml").unlink()
    if "OLD_REPORT" in places:
        (places["OLD_REPORT"] / "evaluation.json").write_text('{"schema": 0}')
    if "NO_VARIANCE" in places:
        file = places["NO_VARIANCE"] / "scheduler" / "scheduler_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"variance_type": "learned_range"}))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        load_script("evaluate.py").main([str(places.get(argument, argument)) for argument in arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1 and error.startswith("evaluate.py: error: "), error
    assert all(word in error for word in words), error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.processes
def test_two_processes_measure_what_one_does(folder, load_script, tmp_path):
    load_script("evaluate.py").main([str(folder), "--per_image", "--batch_size", "64"])
    (one,) = metrics_in(folder)
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]
    launcher += "--num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no".split()
    command = [*launcher, "--main_process_port", "0", str(ROOT / "scripts" / "evaluate.py"), str(folder)]
    command += ["--per_image", "--batch_size", "16", "--output_dir", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("report:") == 1
    (two,) = metrics_in(tmp_path / "two")
    assert two == nearly(one)
    first, second = (
        (place / "evaluation" / "nll_per_image.csv").read_text().split() for place in (folder, tmp_path / "two")
    )
    for a, b in zip(first[1:], second[1:], strict=True):
        assert a.split(",")[0] == b.split(",")[0]
        assert float(a.split(",")[1]) == pytest.approx(float(b.split(",")[1]), rel=1e-5)
