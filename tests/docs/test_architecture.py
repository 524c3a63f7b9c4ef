"""The toy of docs/architecture.md trains, is killed and goes on, and draws: a condition that no room knows."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from running import TINY, forget_accelerator, write_pictures

from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.training.start import prepare, train

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"


@pytest.fixture(scope="module")
def toy():
    namespace = {"__name__": "architecture"}
    for code in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        exec(code, namespace)
    return namespace


@pytest.fixture
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), each=12)


def settings(folder, out, *flags):
    forget_accelerator()
    arguments = ["--train_data_dir", str(folder), "--output_dir", str(out), *TINY, *flags]
    return parse_training_arguments(arguments)


def test_a_system_of_two_stages_with_a_condition_of_its_own(toy, pictures, tmp_path, capsys):
    first, second = (
        toy["Stage"](folder=folder, resolve=toy["resolve"], build=toy["build"]) for folder in ("first", ".")
    )
    out, flags = tmp_path / "out", "--holdout 4 --eval_steps 3 --eval_num_images 4 --eval_inference_steps 3"
    out = tmp_path / "out"
    config = settings(pictures, out, *flags.split())
    train(config, [first, second])
    for folder in (out / "first", out):
        assert (folder / "samples.png").is_file() and (folder / "scores.csv").is_file()
    forget_accelerator()
    capsys.readouterr()
    train(config, [first, second])  # both are finished
    assert capsys.readouterr().out.count("has finished") == 2

    pipeline = toy["BrightPipeline"].from_pretrained(out)
    calls = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 3, "output_type": "np"}
    images = pipeline(brightness=[0.1, 0.9], guidance_scale=3, **calls).images
    assert images.shape[0] == 2 and np.isfinite(images).all()
    with pytest.raises(ValueError, match=r"`brightness` must be given for this model: from 0 \(black\) to 1"):
        pipeline(**calls)
    with pytest.raises(ValueError, match="`class_labels` must be left out for a model told brightness, got 3"):
        pipeline(class_labels=3, **calls)


def test_the_condition_is_what_is_told_in_training(toy, pictures, tmp_path):
    trainer = prepare(settings(pictures, tmp_path / "out"), toy["bright"])
    _, positions, batch = next(trainer._micro_steps())
    told = trainer.draws.told(0, positions, batch)["class_labels"]
    means = batch["images"].numpy().mean((1, 2, 3)) / 255
    hidden = told == -1
    np.testing.assert_allclose(told[~hidden], means[~hidden.numpy()], rtol=1e-6)
