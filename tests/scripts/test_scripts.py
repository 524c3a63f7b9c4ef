"""The commands as a user types them: each in a process of its own, on real small data."""

import csv
import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
TINY = (
    "--resolution 8 --base_channels 8 --channel_multipliers 1 2 --blocks_per_level 1 --train_batch_size 4 "
    "--max_train_steps 2 --lr_warmup_steps 1 --mixed_precision no --preview_images 2 --preview_inference_steps 2 "
    "--eval_num_images 8"
).split()

# `--cpu --num_processes 2` would start one process without a word.
TWO_PROCESSES = (
    *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2"),
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
)

pytestmark = pytest.mark.processes


def run(script: str, *arguments: str, launcher: tuple[str, ...] = (sys.executable,), **environment: str):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [*launcher, str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def load_script(name: str):
    """A script as a module, for what need not pay for a process."""
    specification = importlib.util.spec_from_file_location(name.removesuffix(".py"), SCRIPTS / name)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def images_in(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)).astype(int) for path in sorted(folder.glob("*.png"))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A class-conditional pipeline on the embedded digits, made by the training script."""
    folder = tmp_path_factory.mktemp("run") / "out"
    result = run("train.py", "--output_dir", folder, "--class_conditional", *TINY)
    assert result.returncode == 0 and "\r" not in result.stderr, result.stderr
    return folder


def test_sampling_writes_numbered_images_and_a_grid(trained, tmp_path):
    common = ["--num_inference_steps", "5", "--class_labels", "3,7", "--num_images", "5"]
    first = run("sample.py", trained, "--output_dir", tmp_path / "a", "--batch_size", "5", *common)
    assert first.returncode == 0, first.stderr
    assert "\r" not in first.stderr and first.stderr.splitlines()[-1].startswith("sampling: 5 of 5, ")
    assert first.stdout.splitlines()[-1] == f"picture: {tmp_path / 'a' / 'overview' / 'grid.png'}"
    names = sorted(path.name for path in (tmp_path / "a").iterdir() if not path.name.startswith("."))
    assert names == [*(f"0000{k}.png" for k in range(5)), "metadata.csv", "overview", "samples.json"]
    # The same images in batches of two, and other images for the next seed.
    run("sample.py", trained, "--output_dir", tmp_path / "b", "--batch_size", "2", *common)
    run("sample.py", trained, "--output_dir", tmp_path / "c", "--seed", "1", *common)
    a, b, c = (images_in(tmp_path / name) for name in "abc")
    assert max(np.abs(x - y).max() for x, y in zip(a, b, strict=True)) <= 1
    assert min(np.abs(x - y).mean() for x in a for y in c) > 10


def test_learning_rate_of_two_processes_with_accumulation_follows_the_closed_form(tmp_path):
    flags = [
        *TINY,
        "--max_train_steps",
        "6",
        "--lr_warmup_steps",
        "2",
        "--lr_scheduler",
        "cosine",
        "--logging_steps",
        "1",
    ]
    flags += ["--learning_rate", "1e-3", "--gradient_accumulation_steps", "4", "--output_dir", tmp_path / "out"]
    result = run("train.py", *flags, launcher=TWO_PROCESSES, ACCELERATE_USE_CPU="true")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "2 process(es) on cpu" in result.stdout
    with (tmp_path / "out" / "loss.csv").open() as lines:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(lines)]
    factors = [0, 1 / 2, *((1 + math.cos(math.pi * n / 4)) / 2 for n in range(4))]
    assert rates == pytest.approx([1e-3 * factor for factor in factors], rel=1e-5)


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("train.py", ["--preset", "digit"], ["digit", "ddpm-cifar10"]),
        ("train.py", ["--train_data_dir", "/nowhere"], ["train_data_dir", "/nowhere"]),
        ("train.py", ["--train_data_dir", "EMPTY"], ["train_data_dir", "no images"]),
        ("train.py", ["--resolution", "tiny"], ["resolution", "tiny"]),
        ("train.py", ["--output_dir", "OCCUPIED"], ["--output_dir", "thesis.tex", "--overwrite_output_dir"]),
        ("sample.py", ["/nowhere"], ["/nowhere"]),
        ("sample.py", ["EMPTY"], ["model_index.json"]),
        ("sample.py", ["PIPELINE", "--class_labels", "eleven"], ["eleven", "0 to 9"]),
        ("sample.py", ["PIPELINE", "--class_labels", "10"], ["10", "0 to 9"]),
        ("sample.py", ["PIPELINE", "--class_labels", "3,,7"], ["class_labels", "0 to 9"]),
        ("sample.py", ["PIPELINE", "--scheduler", "dpmm"], ["dpmm", "ddim"]),
        ("sample.py", ["PIPELINE", "--num_inference_steps", "1001", "--class_labels", "1"], ["1001", "1000"]),
        ("sample.py", ["PIPELINE", "--num_images", "0"], ["--num_images", "0"]),
    ],
)
def test_bad_input_is_one_line_and_status_two(trained, tmp_path, capsys, script, arguments, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "thesis.tex").write_text("all of it")
    places = {"EMPTY": tmp_path / "empty", "OCCUPIED": tmp_path / "occupied", "PIPELINE": trained}
    given = [str(places.get(argument, argument)) for argument in arguments]
    if "--output_dir" not in given:
        given += ["--output_dir", str(tmp_path / "out")]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        load_script(script).main(given)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1 and error.startswith(f"{script}: error: ")
    assert all(word in error for word in words), error
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "occupied" / "thesis.tex").read_text() == "all of it"


@pytest.mark.parametrize("script", ["train.py", "sample.py"])
def test_bad_input_in_a_process_of_its_own(script, tmp_path):
    result = run(
        script, "/nowhere" if script == "sample.py" else "--train_data_dir=/nowhere", "--output_dir", tmp_path
    )
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and "/nowhere" in result.stderr
