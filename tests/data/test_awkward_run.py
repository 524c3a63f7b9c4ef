"""A folder of awkward files through the training command: each is used or named, to the end and on the card."""

import json
import os
import re
from pathlib import Path

import pytest
from running import TINY, forget_accelerator, load_script
from test_awkward import write_bad, write_good

from ddpm_hf.training.loop import Trainer

FLAGS = [*TINY, *"--channels 3 --train_batch_size 16".split()]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


@pytest.fixture(scope="module")
def awkward(tmp_path_factory) -> tuple[Path, dict, dict]:
    folder = tmp_path_factory.mktemp("awkward") / "my images"
    return folder, write_good(folder), write_bad(folder)


def train(*arguments: object) -> None:
    """The script, in this process."""
    forget_accelerator()
    load_script("train.py").main([*FLAGS, *map(str, arguments)])


def kill_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    after_step = Trainer._after_step

    def killed(self: Trainer) -> None:
        if self.step == step:
            raise KeyboardInterrupt
        after_step(self)

    monkeypatch.setattr(Trainer, "_after_step", killed)


@pytest.mark.parametrize(
    "stream",
    [[], ["--streaming"], ["--streaming", "--dataloader_num_workers", "2"]],
    ids=["stored", "stream", "workers"],
)
def test_without_leave_to_skip_the_run_stops_and_names_row_and_file(awkward, tmp_path, capsys, stream):
    folder, _, bad = awkward
    with pytest.raises(SystemExit) as stop:
        train("--train_data_dir", folder, "--output_dir", tmp_path / "out", "--max_train_steps", "9", *stream)
    error = capsys.readouterr().err
    line = error[error.index("train.py: error: ") :]  # a stream comes to it amid training, after a progress bar
    assert stop.value.code == 2 and line.count("\n") == 1
    row, file = re.search(rf"row (\d+) \({re.escape(str(folder))}/(.*?)\): ", line).groups()
    assert file in bad and "skip_unreadable" in line and "Traceback" not in line
    if not stream:
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stream", [False, True], ids=["stored", "streamed, and killed halfway"])
def test_with_leave_to_skip_every_file_is_used_or_named(awkward, tmp_path, capsys, monkeypatch, stream):
    folder, good, bad = awkward
    assert 96 >= len(good) + len(bad) >= 60, "six steps of 16 images show each file, and few of them twice"
    flags = ["--train_data_dir", folder, "--output_dir", tmp_path / "out", "--skip_unreadable", "--max_train_steps", 6]
    if stream:
        flags += ["--checkpointing_steps", 3, "--streaming", "--dataloader_num_workers", 1]
        kill_after(3, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            train(*flags)
        monkeypatch.undo()
        capsys.readouterr()
    train(*flags)
    told = capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "training_summary.json").read_text())
    named = {
        re.match(rf"row \d+ \({re.escape(str(folder))}/(.*?)\): ", line, re.DOTALL)[1]
        for line in summary["unreadable"]
    }
    assert named == set(bad)
    assert f"{len(bad)} images could not be read and were left out:\n" in told
    assert all(line in told for line in summary["unreadable"])
    if not stream:
        assert summary["training_images"] == len(good)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{len(bad)} images could not be read and were left out of training: row " in card
    assert all(f"`{os.path.basename(name)}`" in card for name in bad) and str(folder) not in card
