"""The autoencoder of latent diffusion: a run that is killed, what it leaves, and what evaluate.py says of it."""

import json
import sys

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from running import TINY, forget_accelerator, load_script
from safetensors.torch import load_file
from torchmetrics.functional.image import peak_signal_noise_ratio

from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.hub.push import page_files
from ddpm_hf.models.autoencoder import latent_statistics
from ddpm_hf.pipelines.loading import load_pipeline
from ddpm_hf.systems.plan import make_plan, stages_of
from ddpm_hf.training.device import make_accelerator
from ddpm_hf.training.loop import Trainer
from ddpm_hf.training.start import train

FLAGS = [
    *("--system", "stable-diffusion", "--stage", "autoencoder", "--holdout", "4", "--center_crop"),
    *("--latent_channels", "2", "--checkpointing_steps", "2", "--preview_images", "4", "--perceptual", "none"),
]
# A discriminator joins after two steps, in which the two networks of a run without it are the same.
JUDGED = "--resolution 24 --adversarial_start 2 --checkpoints_total_limit 9 --adam_weight_decay 0.1".split()


def settings(images, out, *flags: str):
    forget_accelerator()
    arguments = ["--train_data_dir", str(images), "--output_dir", str(out), *TINY, *FLAGS, *flags]
    return parse_training_arguments(arguments)


def stop(*_):
    raise KeyboardInterrupt


def kill(images, out, *flags: str, step: int | None = None):
    """Train until the report of this step, or else until the pipeline is saved."""
    report = Trainer._report
    name, at = "save_pipeline", stop
    if step is not None:
        name, at = "_report", lambda trainer: stop() if trainer.step == step else report(trainer)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, name, at)
        train(settings(images, out, *flags))


@pytest.fixture(scope="module")
def killed(image_folder, tmp_path_factory):
    """8x8 in float32, killed after the third step, and again when the last one is saved."""
    out = tmp_path_factory.mktemp("autoencoder") / "out"
    kill(image_folder, out, step=3)
    kill(image_folder, out)
    train(settings(image_folder, out))
    return out / "autoencoder"


@pytest.fixture(scope="module")
def judged(image_folder, tmp_path_factory):
    """24x24, with a discriminator from step 2 on, not killed."""
    out = tmp_path_factory.mktemp("judged") / "out"
    train(settings(image_folder, out, *JUDGED))
    return out / "autoencoder"


@pytest.fixture(scope="module")
def stock(killed) -> AutoencoderKL:
    assert not any("ddpm_hf" in (killed / name).read_text() for name in ("model_index.json", "vae/config.json"))
    return AutoencoderKL.from_pretrained(killed, subfolder="vae")


def pictures_of(killed, image_folder, tmp_path):
    """Training and held-out pictures, in [-1, 1]."""
    config = settings(image_folder, tmp_path / "plan")
    plan = make_plan(config, make_accelerator(config), stages_of(config)[0])
    (condition,) = plan.system.conditions
    training = plan.system.codec.encode(plan.images.some_batch(20))
    assert len(training) == plan.images.count == 20
    return training, torch.stack(condition.usual())


def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(killed, image_folder, tmp_path, monkeypatch):
    measured = []

    def count(*arguments):
        measured.append(arguments)
        return latent_statistics(*arguments)

    monkeypatch.setattr("ddpm_hf.systems.autoencoder.latent_statistics", count)
    train(settings(image_folder, tmp_path / "apart"))
    assert len(measured) == 1, "of an epoch, only when the pipeline is kept"
    for name in ("vae/diffusion_pytorch_model.safetensors", "samples.png"):
        assert (killed / name).read_bytes() == (tmp_path / "apart" / "autoencoder" / name).read_bytes()


def test_a_discriminator_changes_nothing_before_it_joins_and_is_not_kept(judged, image_folder, tmp_path):
    kill(image_folder, tmp_path / "out", *JUDGED, "--adversarial_start", "6", step=5)
    plain = tmp_path / "out" / "autoencoder"
    steps = {}
    for step in (2, 4):
        steps[step] = load_file(judged / f"checkpoint-{step}" / "model.safetensors")
        alone = load_file(plain / f"checkpoint-{step}" / "model.safetensors")
        assert alone.keys() == {name for name in steps[step] if name.startswith("vae.")}
        equal = [torch.equal(alone[name], steps[step][name]) for name in alone]
        assert all(equal) if step == 2 else not any(equal[:4])
    discriminator = [name for name in steps[2] if name not in alone]
    assert len(discriminator) == 5 + 2 + 3 * 2, "kernels, biases, norms"
    moved = [(steps[2][name] - steps[4][name]).abs().max() for name in discriminator]
    assert min(moved) > 1e-4, "each of its weights is trained"
    for kept in ("checkpoint-6/ema.safetensors", "vae/diffusion_pytorch_model.safetensors"):
        assert not [name for name in load_file(judged / kept) if "discriminator" in name]
    assert not (judged / "discriminator").exists()


def test_a_run_with_a_discriminator_that_is_killed_ends_with_the_same_bits(judged, image_folder, tmp_path):
    for step in (2, 5):  # before it joins, and after two of its steps
        kill(image_folder, tmp_path / "out", *JUDGED, step=step)
    train(settings(image_folder, tmp_path / "out", *JUDGED))
    for name in ("vae/diffusion_pytorch_model.safetensors", "checkpoint-6/model.safetensors"):
        assert (judged / name).read_bytes() == (tmp_path / "out" / "autoencoder" / name).read_bytes()


@pytest.mark.processes
def test_two_processes_train_as_one(judged, image_folder, tmp_path, on_two_processes):
    """Without a discriminator they do in test_latent_runs.py."""
    data = ["--train_data_dir", image_folder, "--output_dir", tmp_path / "out", *TINY, *FLAGS, *JUDGED]
    assert "2 process(es) on cpu" in on_two_processes("train.py", *data, "--train_batch_size", "2")
    for name in ("model", "ema"):
        folders = (judged, tmp_path / "out" / "autoencoder")
        first, second = (load_file(folder / f"checkpoint-6/{name}.safetensors") for folder in folders)
        assert first.keys() == second.keys()
        for weight in first:  # they differ by 6e-3 when each process weighs the discriminator by its own gradients
            torch.testing.assert_close(first[weight], second[weight], atol=1e-4, rtol=0)


def test_stock_diffusers_finds_latents_of_unit_variance(killed, stock, image_folder, tmp_path):
    training, _ = pictures_of(killed, image_folder, tmp_path)
    with torch.no_grad():
        posterior = stock.encode(training).latent_dist
    spread = posterior.mean.var((0, 2, 3), correction=0) + posterior.var.mean((0, 2, 3))
    torch.testing.assert_close(spread, torch.ones(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(posterior.mean.mean((0, 2, 3)), torch.zeros(2), atol=1e-3, rtol=0)
    assert stock.config.scaling_factor == 1 and not stock.config.shift_factor


def test_it_reconstructs_as_stock_diffusers_does(killed, stock, image_folder, tmp_path):
    _, held_out = pictures_of(killed, image_folder, tmp_path)
    with torch.no_grad():
        expected = stock(held_out).sample / 2 + 0.5
    ours = load_pipeline(str(killed))
    assert type(ours).__name__ == "ReconstructionPipeline"
    drawn = ours(list(held_out), output_type="pt").images
    torch.testing.assert_close(drawn, expected.clamp(0, 1), atol=1e-5, rtol=0)
    preview = np.asarray(Image.open(killed / "samples.png"))[2:-2:66, 2:-2:66]  # the corner of each cell
    assert preview.shape == (4, 2, 3), "each picture to the left of its reconstruction"
    np.testing.assert_array_equal(preview[:, 0], ((held_out[:, :, 0, 0] + 1) * 127.5).round())
    for call, words in (
        ({"image": list(held_out[:, :, :4])}, "`image` must be a picture of 8x8 pixels and 3 channels"),
        ({}, "`image` must be given for this model"),
        ({"image": list(held_out), "num_inference_steps": 5}, "`num_inference_steps` must be left out"),
        ({"image": list(held_out), "guidance_scale": 2.0}, "`guidance_scale` must be 1"),
    ):
        with pytest.raises(ValueError, match=words):
            ours(**call)


def test_what_is_measured(killed, stock, image_folder, tmp_path, capsys):
    model = ModelFolder.read(killed)
    measured = {metric["name"]: metric for metric in model.metrics}
    assert measured.keys() == {"psnr", "latent_std", "latent_mean"}, "8x8 pixels are too few for SSIM"
    assert measured["psnr"]["n"] == 4 and len(measured["latent_std"]["channels"]) == 2
    before = json.loads((killed / "evaluation.json").read_text())["metrics"]
    load_script("evaluate.py").main([str(killed)])
    after = json.loads((killed / "evaluation.json").read_text())["metrics"]
    assert [entry["value"] for entry in after] == pytest.approx([entry["value"] for entry in before], rel=1e-4)
    assert "psnr" in capsys.readouterr().out

    _, held_out = pictures_of(killed, image_folder, tmp_path)
    with torch.no_grad():
        found = ((stock(held_out).sample.clamp(-1, 1) + 1) * 127.5).round()
    expected = peak_signal_noise_ratio(found, (held_out + 1) * 127.5, data_range=255.0)
    assert measured["psnr"]["value"] == pytest.approx(float(expected), abs=0.5)  # the latents are drawn
    card = (killed / "README.md").read_text()
    assert "autoencoder of a latent diffusion model" in card and "| psnr |" in card
    assert 'AutoencoderKL.from_pretrained(".", subfolder="vae")' in card
    assert {"model_index.json", "vae/diffusion_pytorch_model.safetensors", "README.md"} <= page_files(model).keys()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            "--resolution 9 --channel_multipliers 1 2 2",
            "--resolution must be a multiple of 4, .* got 9; the nearest is 8",
        ),
        ("--resolution 7x16 --channel_multipliers 1 1 1", "multiple of 4, .* got 7x16; the nearest is 8x16"),
        ("--latent_channels 13", "--latent_channels must be at most 12, .* got 13"),
        ("--eval_metrics nll", "--eval_metrics nll needs a diffusion model, got an autoencoder"),
        ("--adversarial_start 0", "--adversarial_start 0 needs a --resolution of at least 24, got 8; --adv"),
        (
            "--resolution 24 --adversarial_start 0 --gradient_accumulation_steps 2",
            "--gradient_accumulation_steps must be 1 with --adversarial_start 0, .* got 2; --adversarial_weight 0",
        ),
        (
            "--resolution 24 --adversarial_start 0 --mixed_precision fp16",
            "--mixed_precision must be no or bf16 with --adversarial_start 0, got fp16",
        ),
        (
            "--perceptual lpips",
            "--perceptual must be none but for .* pictures of 16 pixels .* got lpips for 3 channels",
        ),
        (
            "--resolution 16 --perceptual lpips",
            r"--perceptual lpips needs pip install lpips torchvision, or --perceptual none to do without \(",
        ),
        ("--eval_metrics prompt", "--eval_metrics prompt needs a text-to-image model, got one that is told image"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(image_folder, tmp_path, monkeypatch, flags, words):
    monkeypatch.setitem(sys.modules, "lpips", None)  # as if it were not installed
    with pytest.raises(ValueError, match=words):
        train(settings(image_folder, tmp_path / "out", *flags.split()))
    assert not (tmp_path / "out").exists()


def test_it_is_no_diffusion_model(killed, image_folder, tmp_path, capsys):
    data = ["--train_data_dir", str(image_folder), "--output_dir", str(tmp_path / "out")]
    for script, arguments, words in (
        ("sample.py", [str(killed)], "is an autoencoder, which draws nothing by itself"),
        (
            "evaluate.py",
            [str(killed), "--metrics", "nll"],
            "--metrics nll needs a diffusion model, got an autoencoder",
        ),
        (
            "evaluate.py",
            [str(killed), "--scheduler", "ddim"],
            "--scheduler must be left out for an autoencoder, got ddim",
        ),
        (
            "train.py",
            [*data, "--init_from", str(killed)],
            "--init_from must be a diffusion model, got an autoencoder: ",
        ),
        ("train.py", [*data, "--kl_weight", "1"], "--kl_weight is for --system stable-diffusion, got --system ddpm"),
        (
            "train.py",
            [*data, "--no_cache_latents"],
            "--no_cache_latents is for --system stable-diffusion or dalle2, got",
        ),
    ):
        forget_accelerator()
        with pytest.raises(SystemExit):
            load_script(script).main(arguments)
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1


def test_a_dry_run_says_what_will_be_trained(image_folder, tmp_path, capsys):
    train(settings(image_folder, tmp_path / "out", "--dry_run"))
    told = capsys.readouterr().out
    assert "loss: L1 of the reconstruction + 1e-06 KL" in told and "predicts" not in told
    assert "vae, model_index.json" in told and "denoising" not in told
