"""Every finding is provoked by a run made for it, and by no preset with the data that it is made for."""

import dataclasses
import io
import json
import math
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.utils import DistributedType
from PIL import Image
from running import TINY

from ddpm_hf import DDPMUNet2D
from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.systems.forecast import forecast
from ddpm_hf.systems.plan import make_plan
from ddpm_hf.training import doctor
from ddpm_hf.training.device import make_accelerator
from ddpm_hf.training.doctor import Finding, examine, merged, sample_stretches

ROOMY = (10**12, 10**12)
SMALL = [*TINY, "--max_train_steps", "60"]


@pytest.fixture
def examined(monkeypatch, tmp_path):
    """Findings by name for a command line, on a machine with as much memory as is said."""

    def run(*flags: str, memory: tuple[int, int] = ROOMY, tiny: bool = True) -> dict[str, Finding]:
        monkeypatch.setattr(doctor, "available_memory", lambda device: memory)
        config = parse_training_arguments(
            ["--output_dir", str(tmp_path / "out"), *(SMALL if tiny else []), *map(str, flags)]
        )
        accelerator = make_accelerator(config)
        plan = make_plan(config, accelerator)
        return {entry.name: entry for entry in examine(plan, accelerator, forecast(plan, accelerator))}

    return run


def pictures(folder, images: list[np.ndarray]):
    folder.mkdir()
    for number, pixels in enumerate(images):
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03d}.png")
    return folder


def table(file, count: int, side: int):
    """Many rows of few different small colour images."""
    generator = np.random.default_rng(0)
    images = []
    for _ in range(100):
        coarse = Image.fromarray(generator.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((side, side), Image.Resampling.NEAREST).save(buffer, "png")
        images.append({"bytes": buffer.getvalue(), "path": None})
    pq.write_table(pa.table({"image": [images[k % 100] for k in range(count)]}), file)
    return file


def test_an_ordinary_small_run_has_no_finding(examined, image_folder):
    assert examined("--train_data_dir", image_folder) == {}


@pytest.mark.parametrize(
    ("name", "severity", "words", "flags"),
    [
        # Betas of T = 1000 at T = 100, as diffusers' script takes them: alpha_bar_T is 0.364 (peers' issue 12341).
        (
            "terminal-signal",
            "error",
            ["100 timesteps", "0.364", "--beta_end"],
            "--num_train_timesteps 100 --beta_schedule linear --beta_start 1e-4 --beta_end 0.02",
        ),
        ("terminal-signal", "warning", ["1000"], "--beta_schedule linear --beta_start 1e-4 --beta_end 0.01"),
        ("no-noise", "warning", ["bfloat16"], "--beta_schedule linear --beta_start 1e-6 --mixed_precision bf16"),
        ("no-noise", "warning", ["float32", "first 1 "], "--beta_schedule linear --beta_start 1e-16"),
        ("small-images", "warning", ["24 of 24", "32x32", "3.2 times"], "--resolution 32"),
        ("long-warm-up", "warning", ["600 of 60", "10%"], "--lr_warmup_steps 600"),
        ("short-cycles", "warning", ["20 cycles"], "--lr_scheduler cosine_with_restarts --lr_num_cycles 20"),
        ("slow-average", "warning", ["94%"], "--ema_decay 0.999 --ema_warmup false"),
        ("few-images", "warning", ["24 images", "167 times"], "--max_train_steps 1000"),
    ],
)
def test_settings_that_spoil_a_run(examined, image_folder, name, severity, words, flags):
    found = examined("--train_data_dir", image_folder, *flags.split())
    assert list(found) == [name]
    assert found[name].severity == severity
    assert all(word in found[name].what + found[name].change for word in words), found[name]


@pytest.mark.parametrize(("beta", "found"), [("1e-8", True), ("1e-6", False)])
def test_noise_that_half_precision_loses(image_folder, beta, found):
    """Its steps below 1 are 2^-11, so noise under half of one is lost: 2.4e-4, against 1e-4 and 1e-3."""
    flags = ["--train_data_dir", str(image_folder), "--beta_schedule", "linear", "--beta_start", beta]
    config = parse_training_arguments([*SMALL, *flags])
    accelerator = make_accelerator(config)
    plan = make_plan(config, accelerator)
    plan = dataclasses.replace(plan, config=plan.config.with_values({"mixed_precision": "fp16"}))  # no CPU starts it
    names = {finding.name for finding in examine(plan, accelerator, forecast(plan, accelerator))}
    assert ("no-noise" in names) == found


def test_noise_that_float32_keeps_is_no_finding(examined, image_folder):
    flags = "--beta_schedule linear --beta_start 1e-6 --mixed_precision no"
    assert examined("--train_data_dir", image_folder, *flags.split()) == {}


def test_a_constant_rate_has_no_warm_up_that_could_be_long(examined, image_folder):
    flags = "--lr_scheduler constant --lr_warmup_steps 600"
    assert examined("--train_data_dir", image_folder, *flags.split()) == {}


NOISE = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3))


@pytest.mark.parametrize(
    ("name", "severity", "images", "words", "stream"),
    [
        ("blank-images", "error", NOISE * 0 + 7, ["value 7"], []),
        ("pixel-range", "warning", NOISE // 8, ["from 0 to 31"], []),
        ("constant-channel", "warning", NOISE * [1, 1, 0], ["blue"], []),
        ("constant-channel", "warning", NOISE * [1, 1, 0], ["blue"], ["--streaming"]),
        ("grey-as-colour", "warning", NOISE[..., :1].repeat(3, -1), ["--channels 1"], []),
    ],
)
def test_pixels_that_spoil_a_run(examined, tmp_path, name, severity, images, words, stream):
    folder = pictures(tmp_path / "images", list(images))
    found = examined("--train_data_dir", folder, *stream)
    assert list(found) == [name] and found[name].severity == severity
    assert all(word in found[name].what + found[name].change for word in words), found[name]


def test_alpha_that_is_the_same_everywhere_is_named(examined, tmp_path):
    folder = pictures(tmp_path / "images", list(NOISE))
    found = examined("--train_data_dir", folder, "--channels", "4")
    assert list(found) == ["constant-channel"] and "alpha" in found["constant-channel"].what


def test_grey_images_as_grey_are_no_finding(examined, tmp_path):
    folder = pictures(tmp_path / "images", list(NOISE[..., 0]))
    assert examined("--train_data_dir", folder) == {}


def test_a_lying_camera_is_measured_as_people_see_it(tmp_path):
    """30x10 pixels with an EXIF tag that turns them, for images 20 high and 10 wide: enlarged by nothing."""
    (tmp_path / "images").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((10, 30, 3), np.uint8)).save(tmp_path / "images" / "a.jpg", exif=exif)
    flags = [*SMALL, "--train_batch_size", "1", "--train_data_dir", str(tmp_path / "images"), "--resolution", "20x10"]
    config = parse_training_arguments(flags)
    assert sample_stretches(make_plan(config, make_accelerator(config)).images).tolist() == [1.0]


def test_too_little_memory(examined, image_folder):
    """About 0.9 MB of activations and 0.1 MB of weights and their kin: free memory warns, the machine's own stops."""
    free = examined("--train_data_dir", image_folder, memory=(10**5, 10**12))
    assert free["memory"].severity == "warning" and "--gradient_accumulation_steps" in free["memory"].change
    assert examined("--train_data_dir", image_folder, memory=(10**5, 10**5))["memory"].severity == "error"


def test_sharding_needs_a_whole_copy_and_is_not_forecast(monkeypatch, image_folder, tmp_path):
    monkeypatch.setattr(doctor, "available_memory", lambda device: (1, 1))
    config = parse_training_arguments([*SMALL, "--train_data_dir", str(image_folder), "--use_ema", "false"])
    accelerator = make_accelerator(config)
    plan = make_plan(config, accelerator)
    accelerator.state.distributed_type = DistributedType.FSDP  # which no CPU starts
    (finding,) = examine(plan, accelerator, forecast(plan, accelerator))
    assert finding.name == "sharded-weights" and finding.severity == "error"
    judged = dataclasses.replace(plan, system=dataclasses.replace(plan.system, trained=plan.system.network))
    (finding, _) = examine(judged, accelerator, forecast(judged, accelerator))
    assert finding.name == "sharded-discriminator" and finding.severity == "error"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--train_batch_size 25", ["--train_batch_size 25", "24"]),
        ("--variance_type learned_range --loss simple", ["simple", "learned_range"]),
    ],
)
def test_what_the_plan_refuses_comes_before_the_doctor(examined, image_folder, flags, words):
    with pytest.raises(ValueError) as problem:
        examined("--train_data_dir", image_folder, *flags.split())
    assert all(word in str(problem.value) for word in words), problem.value


@pytest.mark.parametrize(
    ("preset", "precision", "count", "side", "flags"),
    [
        ("digits", "no", None, None, []),
        ("digits", "bf16", None, None, []),
        ("small-32", "bf16", 3000, 32, []),
        # Streams, so that nothing but the images looked at is decoded.
        ("small-64", "no", 3000, 64, ["--streaming"]),
        ("ddpm-cifar10", "no", 50_000, 32, ["--streaming"]),
        ("ddpm-256", "bf16", 2000, 256, ["--streaming"]),
    ],
)
def test_presets_have_no_finding_with_their_data(
    examined, monkeypatch, tmp_path, preset, precision, count, side, flags
):
    monkeypatch.setattr(DDPMUNet2D, "init_paper_weights", lambda unet, generator: None)  # 150 million, not looked at
    data = [] if count is None else ["--train_data_dir", table(tmp_path / "train.parquet", count, side)]
    assert examined("--preset", preset, "--mixed_precision", precision, *data, *flags, tiny=False) == {}


def test_the_demo_and_a_run_without_a_preset_have_no_finding(examined, tmp_path):
    assert examined(tiny=False) == {}
    data = table(tmp_path / "train.parquet", 2000, 40)
    assert examined("--train_data_dir", data, "--resolution", "40", tiny=False) == {}


def test_an_error_stops_the_run_before_anything_is_written(start, tmp_path):
    flags = "--num_train_timesteps 100 --beta_schedule linear --beta_start 1e-4 --beta_end 0.02"
    for dry in ([], ["--dry_run"]):
        with pytest.raises(ValueError, match="alpha_bar_T is 0.364"):
            start(*flags.split(), *dry)
    assert not (tmp_path / "out").exists()


def test_warnings_are_printed_and_kept(train, capsys):
    trainer = train("--lr_warmup_steps", "5", ending=False)
    assert capsys.readouterr().out.count("warning (long-warm-up): ") == 1
    kept = json.loads((trainer.output / "training_summary.json").read_text())["doctor"]
    assert [entry["name"] for entry in kept] == ["long-warm-up", "slow-average"]
    assert set(kept[0]) == {field.name for field in dataclasses.fields(Finding)}


def test_a_report_keeps_what_earlier_sessions_found_and_the_newest_of_each():
    old = [{"name": "a", "what": "old"}, {"name": "b", "what": "old"}]
    new = Finding(name="b", severity="warning", what="new", why="", change="")
    assert [(entry["name"], entry["what"]) for entry in merged([new], old)] == [("a", "old"), ("b", "new")]


def test_learning_rate_course_of_a_plan_is_that_of_the_closed_form(examined, image_folder):
    config = parse_training_arguments([*SMALL, "--train_data_dir", str(image_folder), "--lr_scheduler", "polynomial"])
    plan = make_plan(config, make_accelerator(config))
    rates = torch.tensor([plan.clock.learning_rate_at(step) for step in range(60)])
    # Up in 2 steps, then down to 1e-7 in 58.
    expected = [0, 5e-4, *(1e-7 + (1e-3 - 1e-7) * (1 - n / 58) for n in range(58))]
    torch.testing.assert_close(rates, torch.tensor(expected))


def test_dry_run_names_all_parts_of_a_model_with_a_text_encoder(start, capsys):
    flags = "--system glide --text_width 64 --text_layers 1 --text_warmup_steps 2 --resolution 16 --dry_run "
    flags += "--attention_resolutions 8"
    start(*flags.split(), data=False)
    assert re.search(r"files: tokenizer, text_encoder, unet, scheduler, model_index.json, ", capsys.readouterr().out)


def test_dry_run_tells_the_cost_and_names_the_files_that_the_run_then_writes(start, train, capsys):
    flags = ["--max_train_steps", "20", "--preview_steps", "8", "--report_to", "tensorboard"]
    assert start(*flags, "--dry_run") is None
    told = dict(line.strip().split(": ", 1) for line in capsys.readouterr().out.splitlines() if ": " in line)
    trainer = train(*flags)
    names = {name.split()[0].rstrip("/") for name in re.sub(r" \(.*?\)", "", told["files"]).split(", ")}
    written = {re.sub(r"checkpoint-\d+", "checkpoint-<N>", path.name) for path in trainer.output.path.iterdir()}
    assert names == {name for name in written if not name.startswith(".")}
    assert told["model"].startswith(f"{trainer.plan.facts.parameters:,} parameters")
    assert told["images"].startswith("80 ") and told["training"].startswith("20 steps of 4 images (3.3 epochs)")
    # Up in 2 steps, then half a cosine over 18.
    assert told["learning"] == (
        f"0 at step 0, 0.001 at step 2, {5e-4 * (1 + math.cos(math.pi * 7 / 18)):.3g} at step 9, "
        f"{5e-4 * (1 + math.cos(math.pi * 17 / 18)):.3g} at step 19"
    )
    cost = forecast(trainer.plan, trainer.accelerator)
    assert f"{cost.flops / 1e9:,.4g} GFLOP a step" in told["work"] and f"{cost.total / 1e6:.1f} MB" in told["memory"]


def test_captions_that_are_missing_or_too_long_are_named(examined, tmp_path):
    pictures = tmp_path / "captioned"
    pictures.mkdir()
    for number in range(6):
        noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(noise).save(pictures / f"{number}.png")
        words = " ".join(f"{number}word{place}" for place in range(90)) if number == 5 else "a picture"
        (pictures / f"{number}.txt").write_text(words if number else "", encoding="utf-8")
    flags = "--system glide --text_width 64 --text_layers 1 --text_warmup_steps 2 --train_batch_size 2".split()
    found = examined("--train_data_dir", pictures, *flags)
    assert "1 training images have no caption, such as row 0" in found["no-caption"].what
    assert found["long-caption"].what.startswith("1 different captions are too long")
    assert "--text_length, or for glide and imagen 77 tokens" in found["long-caption"].why
