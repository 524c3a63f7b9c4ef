"""A folder of images, a small real run on it, and the scripts as modules."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from ddpm_hf import DDPMPipeline
from ddpm_hf.training.command_line import parse_training_arguments
from ddpm_hf.training.start import prepare

ROOT = Path(__file__).parents[2]
TINY = (
    "--resolution 8 --base_channels 8 --channel_multipliers 1 2 --blocks_per_level 1 --attention_resolutions 4 "
    "--train_batch_size 4 --max_train_steps 2 --lr_warmup_steps 1 --mixed_precision no --num_train_timesteps 40 "
    "--preview_images 2 --preview_inference_steps 2 --preview_steps 0 --holdout 10"
).split()


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """40 grey-green 10x12 images in two folders, that is classes."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for k in range(20):
            pixels = generator.integers(0, 256, (12, 10, 3), dtype=np.uint8)
            pixels[..., 0] = 255 * (name == "dog")
            Image.fromarray(pixels).save(folder / name / f"{k}.png")
    return folder


@pytest.fixture(scope="session")
def trained_run(image_folder, tmp_path_factory) -> Path:
    """What train.py leaves: a class-conditional model of T = 40 (untrained), and the record of 10 held-out images."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    folder = tmp_path_factory.mktemp("run") / "out"
    arguments = ["--train_data_dir", str(image_folder), "--output_dir", str(folder), "--class_conditional", *TINY]
    plan = prepare(parse_training_arguments(arguments)).plan
    DDPMPipeline(plan.unet, plan.scheduler, plan.id2label).save_pretrained(folder)
    return folder


@pytest.fixture
def load_script():
    """Makes a script a module, for what need not pay for a process."""

    def load(name: str) -> ModuleType:
        specification = importlib.util.spec_from_file_location(name.removesuffix(".py"), ROOT / "scripts" / name)
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        return module

    return load
