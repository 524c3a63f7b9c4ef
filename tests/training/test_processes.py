"""One process against two on the same global batch: an unbroken run, and runs that change their number halfway."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import TINY
from safetensors.torch import load_file
from test_loop import rows_of

from ddpm_hf.hub.folder import ModelFolder

PUBLISH_LAST = Path(__file__).with_name("train_and_publish_last.py")
# All that is drawn for the global batch: order, crops (of 10x12 pixels), flips, noise, hidden classes, timesteps by a
# sampler that has learnt from the losses of all processes. No network dropout, which differs by process.
RUN = (
    "--max_train_steps 16 --learning_rate 1e-4 --dropout 0 --random_flip --class_conditional --condition_dropout 0.5 "
    "--timestep_sampling importance --num_train_timesteps 4 --beta_schedule squaredcos_cap_v2 "
    "--checkpointing_steps 8 --checkpoints_total_limit 9 --preview_steps 8 --holdout 4"
).split()
ONE = "--train_batch_size 8".split()
TWO = "--train_batch_size 2 --gradient_accumulation_steps 2 --dataloader_num_workers 1".split()

pytestmark = pytest.mark.processes


@pytest.fixture
def train_on_two(image_folder, on_two_processes):
    """Runs to the end in two processes and returns the output folder."""

    def run(folder: Path, *flags: str, script: str | Path = "train.py") -> Path:
        data = ["--train_data_dir", image_folder, "--output_dir", folder]
        assert "2 process(es) on cpu" in on_two_processes(script, *TINY, *RUN, *TWO, *data, *flags)
        return folder

    return run


def test_the_precision_of_the_machine_is_found_without_losing_a_process(train_on_two, tmp_path):
    train_on_two(tmp_path / "out", "--mixed_precision", "auto", "--dry_run")  # which counts the processes


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and their average after the last step."""
    files = [folder / "checkpoint-16" / name for name in ("model.safetensors", "ema.safetensors")]
    return {f"{file.stem} {name}": tensor for file in files for name, tensor in load_file(file).items()}


def picture(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file)).astype(int)


def distance(first: Path, second: Path) -> float:
    first, second = final_state(first), final_state(second)
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


def test_two_processes_train_as_one_and_either_goes_on_where_the_other_stopped(train, train_on_two, tmp_path):
    one = train(*RUN, *ONE, output_dir=tmp_path / "one").output.path
    two = train_on_two(tmp_path / "two")
    summaries = [json.loads((folder / "training_summary.json").read_text()) for folder in (one, two)]
    assert [summary["global_batch_size"] for summary in summaries] == [8, 8]
    assert distance(one, two) <= 1e-5
    for first, second in zip(rows_of(one), rows_of(two), strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-4), first["step"]
        assert first["learning_rate"] == second["learning_rate"], first["step"]
    for name in ("samples.png", "previews/step-0000008.png"):
        assert np.abs(picture(one / name) - picture(two / name)).max() <= 1

    bits, bits_on_two = (ModelFolder.read(folder).metrics[0] for folder in (one, two))
    assert bits["n"] == bits_on_two["n"] > 1 and bits["value"] == pytest.approx(bits_on_two["value"], rel=1e-3)

    half = ["--resume_from_checkpoint", str(two / "checkpoint-8")]
    two_then_one = train(*RUN, *ONE, *half, output_dir=tmp_path / "two-one", ending=False).output.path
    assert [row["step"] for row in rows_of(two_then_one)] == list(range(9, 17))
    assert distance(two, two_then_one) <= 1e-5

    # Its main process sees to it, too, that nobody waits for what it does alone at the end.
    half = ["--resume_from_checkpoint", str(one / "checkpoint-8")]
    one_then_two = train_on_two(tmp_path / "one-two", *half, script=PUBLISH_LAST)
    assert (one_then_two / "README.md").is_file()
    assert [row["step"] for row in rows_of(one_then_two)] == list(range(9, 17))
    assert distance(one, one_then_two) <= 1e-5

    # What the bound is worth: other draws from step 8 on lead elsewhere.
    other = train(*RUN, *ONE, *half, "--seed", "1", output_dir=tmp_path / "other", ending=False)
    assert distance(one, other.output.path) > 2e-4
