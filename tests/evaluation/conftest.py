"""Small real runs: on a folder of images, and on captioned digits."""

from pathlib import Path

import pytest
from running import TINY, forget_accelerator, write_pictures
from texts import begin_text_run

from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.training.start import prepare


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """40 images."""
    return write_pictures(tmp_path_factory.mktemp("images"), each=20)


@pytest.fixture(scope="session")
def trained_run(image_folder, tmp_path_factory) -> Path:
    """What train.py leaves: a class-conditional model of T = 40 (untrained), and the record of 10 held-out images."""
    forget_accelerator()
    folder = tmp_path_factory.mktemp("run") / "out"
    arguments = [*TINY, "--train_data_dir", str(image_folder), "--output_dir", str(folder), "--class_conditional"]
    arguments += "--num_train_timesteps 40 --holdout 10 --center_crop".split()  # decoded as evaluate.py does
    plan = prepare(parse_training_arguments(arguments)).plan
    plan.system.pipeline(plan.system.network).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_run(tmp_path_factory):
    """What train.py leaves of captioned digits: an untrained model of T = 40."""
    folder = tmp_path_factory.mktemp("run") / "out"
    system = begin_text_run(folder)[0].system
    system.pipeline(system.network).save_pretrained(folder)
    return folder
