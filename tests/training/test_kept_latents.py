"""Latents of posteriors that are computed once, against those of stock's autoencoder in each step."""

import signal

import pytest
import torch
from diffusers import AutoencoderKL
from running import TINY

from ddpm_hf.data.order import PositionSampler
from ddpm_hf.pixels import normalize
from ddpm_hf.seeds import noise_at

FLAGS = (
    "--system stable-diffusion --stage unet --init_caption_from_labels {} --text_width 64 --text_layers 1 --seed 3 "
    "--num_train_timesteps 10"
).split()
KEPT = ("--center_crop", "--random_flip")
# Eight pictures in a file, so that the 24 and their mirror images are in six.
SCRIPT = """
import os
import signal
import sys

import torch
from diffusers import AutoencoderKL

from ddpm_hf import kept
from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.training.start import prepare

results, dies_after, *flags = sys.argv[1:]
encode, calls = AutoencoderKL.encode, []


def counted(vae, pictures):
    if len(calls) == int(dies_after):
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(len(pictures))
    return encode(vae, pictures)


kept.ROWS, AutoencoderKL.encode = 8, counted
trainer = prepare(parse_training_arguments(flags))
x_0 = [trainer.plan.system.codec.encode(batch) for _, batch in trainer._micro_steps()]
torch.save({"calls": calls, "x_0": torch.stack(x_0)}, f"{results}-{trainer.accelerator.process_index}.pt")
"""


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """Makes the folder of an autoencoder with random weights, whose posteriors have deviations of about 1."""

    def make(seed: int = 0) -> str:
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            norm_num_groups=4,
            scaling_factor=0.5,
        )
        vae.save_pretrained(folder := tmp_path_factory.mktemp("autoencoder"))
        return str(folder)

    return make


def batches_of(trainer) -> list[dict]:
    return [batch for _, batch in trainer._micro_steps()]


@torch.no_grad()
def assert_drawn_from_posteriors(x_0: torch.Tensor, batch: dict, folder: str, rounding: float) -> None:
    """x_0 is what stock's autoencoder, the pictures and the noise of their positions give, but for the rounding."""
    posterior = AutoencoderKL.from_pretrained(folder).encode(normalize(batch["images"])).latent_dist
    noise = noise_at((3, "latent"), batch["positions"], posterior.std)
    mean, deviation = posterior.mean.double(), posterior.std.double() * noise
    # Of float32, for sums in another order.
    bound = rounding * (mean.abs() + deviation.abs()) + 1e-6
    assert ((x_0.double() / 0.5 - (mean + deviation)).abs() <= bound).all()


def test_kept_and_computed_in_the_step_they_are_the_same_within_half_precision(start, autoencoder, tmp_path):
    flags = (*FLAGS, *KEPT, "--vae", folder := autoencoder(), "--max_train_steps", "12")
    trainers = [start(*flags, *more, output_dir=tmp_path / str(len(more))) for more in ((), ("--no_cache_latents",))]
    kept, computed = (batches_of(trainer) for trainer in trainers)
    assert len(kept) == len(computed) == 12
    for one, other in zip(kept, computed, strict=True):
        assert torch.equal(one["images"], other["images"]) and one["rows"].tolist() == other["rows"].tolist()
        assert one["latents"].dtype == torch.float16 and "latents" not in other
        x_0, exact = trainers[0].plan.system.codec.encode(one), trainers[1].plan.system.codec.encode(other)
        assert_drawn_from_posteriors(x_0, one, folder, 2**-11)
        assert_drawn_from_posteriors(exact, other, folder, 0.0)
        assert not torch.equal(x_0, exact)

    images = trainers[0].plan.images
    with_workers = images.loader(PositionSampler(4, num_steps=12), num_workers=2)
    for one, other in zip(with_workers, kept, strict=True):
        assert torch.equal(one["latents"], other["latents"])
    seen = torch.cat([batch["latents"] for batch in kept]).unique(dim=0)
    assert images.count == 24 < len(seen) <= 48, "mirror images have latents of their own"


@pytest.mark.processes
def test_two_processes_encode_what_a_killed_one_has_left_and_train_on_the_same(
    command, on_two_processes, image_folder, autoencoder, tmp_path
):
    (script := tmp_path / "encode.py").write_text(SCRIPT)
    flags = [*TINY, *FLAGS, *KEPT, "--train_data_dir", image_folder, "--cache_dir", tmp_path / "cache"]
    flags += ["--vae", autoencoder()]

    killed = command(script, tmp_path / "killed", 3, *flags, "--output_dir", tmp_path / "a")
    assert killed.wait() == -signal.SIGKILL, killed.err[-3000:]
    more = ("--train_batch_size", "2", "--output_dir", tmp_path / "b")
    on_two_processes(script, tmp_path / "two", 99, *flags, *more)
    one = command(script, tmp_path / "one", 99, *flags, "--output_dir", tmp_path / "c")
    assert one.wait() == 0, one.err[-3000:]

    first, second, alone = (torch.load(tmp_path / f"{name}.pt") for name in ("two-0", "two-1", "one-0"))
    assert first["calls"] + second["calls"] == [8, 8, 8], "the three files that were not there"
    assert alone["calls"] == []
    assert torch.equal(torch.cat([first["x_0"], second["x_0"]], dim=1), alone["x_0"])
    assert "Encoding pictures once" in killed.err and "Encoding" not in one.err


def test_the_plan_says_what_is_kept_and_each_autoencoder_has_a_folder_of_its_own(
    start, image_folder, autoencoder, tmp_path, capsys
):
    flags = (*FLAGS, "--dry_run", "--cache_dir", str(tmp_path), "--vae")

    def told(*more: str) -> str:
        start(*flags, *more)
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  latents: "))

    folder = autoencoder()
    weights = sum(weight.numel() for weight in AutoencoderKL.from_pretrained(folder).parameters())
    size = 2 * 24 * 2 * 4 * 4 * 4 * 2
    assert told(folder, *KEPT) == (
        f"  latents: 4x4x4, AutoencoderKL, frozen, {weights:,} parameters; its posteriors are computed once for each "
        f"picture and its mirror image, and kept in {tmp_path}/ddpm_hf, {size / 1e9:.3g} GB"
    )
    assert told(folder, "--center_crop", "--random_flip", "false").endswith(
        f"computed once for each picture and kept in {tmp_path}/ddpm_hf, {size / 2e9:.3g} GB"
    )
    for more, why in (
        (("--center_crop", "--no_cache_latents"), "as --no_cache_latents asks"),
        (("--center_crop", "--streaming", "--max_train_steps", "6"), "since the data set is streamed"),
        ((), "since crops are random, which --center_crop changes"),
    ):
        assert told(folder, *more).endswith(f"its posteriors are computed in each step, {why}")
    assert not list(tmp_path.glob("ddpm_hf/latents-*")), "a dry run computes nothing"

    vaes = [autoencoder(seed) for seed in (0, 1)]
    trainers = [start(*FLAGS, *KEPT, "--vae", vae, output_dir=tmp_path / str(seed)) for seed, vae in enumerate(vaes)]
    folders = [trainer.plan.images.kept["latents"].folder for trainer in trainers]
    assert folders[0] != folders[1] and all(list(folder.glob("*.f16")) for folder in folders)
