"""Runs of a model told captions: broken, resumed and on two processes, as for one without."""

import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import TINY
from safetensors.torch import load_file

CAPTIONS = ("a red apple", "ein grüner Käse", "🍎 りんご", "")
# All that is random in a step, and no network dropout, which differs by process.
RUN = (
    "--system glide --text_width 64 --text_layers 1 --max_train_steps 24 --learning_rate 1e-4 --dropout 0 "
    "--condition_dropout 0.5 --random_flip --num_train_timesteps 4 --checkpointing_steps 3"
).split()


@pytest.fixture
def captioned(tmp_path) -> Path:
    """Noise with the captions beside it."""
    folder = tmp_path / "captioned"
    folder.mkdir()
    for number in range(12):
        noise = np.random.default_rng(number).integers(0, 256, (10, 12, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(CAPTIONS[number % len(CAPTIONS)], encoding="utf-8")
    return folder


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and their average after the last step."""
    files = [folder / "checkpoint-24" / name for name in ("model.safetensors", "ema.safetensors")]
    return {f"{file.stem} {name}": tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.processes
def test_a_run_told_captions_is_the_same_when_it_is_killed_and_on_two_processes(
    command, on_two_processes, captioned, tmp_path, start
):
    flags = [*TINY, *RUN, "--train_data_dir", captioned]
    unbroken = command("train.py", *flags, "--output_dir", tmp_path / "unbroken")
    assert unbroken.wait() == 0, unbroken.err
    expected = final_state(tmp_path / "unbroken")
    assert sum(name.startswith("ema text_encoder.") for name in expected) > 5

    killed = command("train.py", *flags, "--output_dir", tmp_path / "killed")
    while not (tmp_path / "killed" / "checkpoint-3").exists():
        assert killed.poll() is None, killed.err
        time.sleep(0.01)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL and not (tmp_path / "killed" / "checkpoint-24").exists()
    resumed = command("train.py", *flags, "--output_dir", tmp_path / "killed")
    assert resumed.wait() == 0 and "resuming from" in resumed.out, resumed.err
    found = final_state(tmp_path / "killed")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)

    on_two_processes("train.py", *flags, "--train_batch_size", "2", "--output_dir", tmp_path / "two")
    found = final_state(tmp_path / "two")
    assert found.keys() == expected.keys()
    assert max((found[name] - expected[name]).abs().max().item() for name in expected) <= 1e-5

    (captioned / "0.txt").write_text(CAPTIONS[1], encoding="utf-8")  # as many tokens as before
    with pytest.raises(
        ValueError, match=r"holds a run with other settings \(text_encoder: learned from captions whose"
    ):
        start(*RUN, "--train_data_dir", str(captioned), output_dir=tmp_path / "killed", data=False)
