"""The toy of docs/architecture.md trains, is killed and goes on, and draws: a condition that no room knows."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from running import TINY, forget_accelerator, write_pictures

from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.training.loop import Trainer
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


def stop():
    raise KeyboardInterrupt


def test_a_system_of_two_stages_with_a_condition_of_its_own(toy, pictures, tmp_path, capsys, monkeypatch):
    first, second = (
        toy["Stage"](folder=folder, resolve=toy["resolve"], build=toy["build"]) for folder in ("first", ".")
    )
    out, flags = tmp_path / "out", "--holdout 4 --eval_steps 3 --eval_num_images 4 --eval_inference_steps 3"
    config = settings(pictures, out, *flags.split(), "--checkpointing_steps", "2")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        report = Trainer._report
        patch.setattr(Trainer, "_report", lambda trainer: stop() if trainer.step == 3 else report(trainer))
        train(config, [first, second])
    forget_accelerator()
    train(config.with_values({"resume_from_checkpoint": "latest"}), [first, second])  # of the first, not of both
    assert capsys.readouterr().out.count("resuming from") == 1
    for folder in (out / "first", out):
        assert (folder / "samples.png").is_file() and (folder / "scores.csv").is_file()
    forget_accelerator()
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


def test_a_codec_of_its_own(toy, pictures, tmp_path):
    """Folding moves pixels and changes none, so that a picture of noise, and bits/dim, are those of pixels."""

    def build(config, images, start):
        channels, height, width = images.shape
        codec = toy["Folded"]((4 * channels, height // 2, width // 2))
        system = toy["build"](config, SimpleNamespace(shape=codec.shape), start)
        return replace(
            system,
            codec=codec,
            pipeline=lambda network: toy["FoldedPipeline"](network.unet, system.scheduler),
        )

    flags = "--holdout 4 --eval_steps 3 --eval_num_images 4 --eval_inference_steps 3".split()
    train(settings(pictures, tmp_path, *flags), [toy["Stage"](resolve=toy["resolve"], build=build)])
    assert (tmp_path / "samples.png").is_file() and (tmp_path / "scores.csv").is_file()
    pipeline = toy["FoldedPipeline"].from_pretrained(tmp_path)
    noise = torch.randn(2, *pipeline.codec.shape)

    def stay(*_):
        return {"latents": noise}

    call = {"num_inference_steps": 1, "output_type": "pt", "callback_on_step_end": stay}
    drawn = pipeline(brightness=[0.1, 0.9], latents=noise, **call)
    height, width = noise.shape[-2:]
    placed = torch.zeros(2, pipeline.image_shape[0], 2 * height, 2 * width)
    for k in range(4):  # in the order of torch.nn.PixelShuffle
        placed[:, :, k // 2 :: 2, k % 2 :: 2] = noise[:, k::4]
    torch.testing.assert_close(drawn.images, (placed / 2 + 0.5).clamp(0, 1))

    mask = Image.new("L", (2 * width, 2 * height))
    mask.putpixel((3, 2), 255)  # in the block of columns 2, 3 and rows 2, 3
    image = Image.new("RGB", mask.size, (0, 51, 255))
    call = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
    drawn = (255 * pipeline(brightness=0.1, image=image, mask_image=mask, **call).images[0]).round()
    differs = (drawn != np.asarray(image)).any(-1)
    assert differs[2:4, 2:4].all() and differs.sum() == 4


def test_the_condition_is_what_is_told_in_training(toy, pictures, tmp_path):
    trainer = prepare(settings(pictures, tmp_path / "out"), toy["bright"])
    _, batch = next(trainer._micro_steps())
    positions = batch["positions"]
    means = batch["images"].numpy().mean((1, 2, 3)) / 255
    told = np.stack(
        [
            trainer.draws.told(step, range(first, first + len(positions)), batch)["class_labels"].numpy()
            for step, first in enumerate(range(0, 100 * len(positions), len(positions)))
        ]
    )
    hidden = told == -1
    assert 0.05 < hidden.mean() < 0.15  # of 400 images, a tenth is hidden
    np.testing.assert_allclose(told[~hidden], np.broadcast_to(means, told.shape)[~hidden], rtol=1e-6)
