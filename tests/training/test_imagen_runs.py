"""Imagen, trained by one command that is killed in super-resolution, and by a command for each stage."""

import errno
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import TINY, forget_accelerator, killed_at, load_script
from safetensors.torch import load_file
from texts import write_encoder

from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.pipelines.loading import load_pipeline
from ddpm_hf.pipelines.text_to_image import TextToImagePipeline
from ddpm_hf.pipelines.upsampling import UpsamplingPipeline
from ddpm_hf.sampling.sample_folder import SampleFolder
from ddpm_hf.steps.sampler import thresholding_of
from ddpm_hf.systems import text
from ddpm_hf.systems.ddpm import build_scheduler
from ddpm_hf.systems.plan import make_plan, stages_of
from ddpm_hf.training.device import make_accelerator
from ddpm_hf.training.start import train

IMAGEN = [
    *"--system imagen --resolution 8,16 --text_width 64 --text_layers 1 --text_warmup_steps 2".split(),
    *("--init_caption_from_labels", "a {}", "--num_train_timesteps", "40", "--checkpointing_steps", "2"),
    *("--text_encoder", "taught", "--dropout", "0.1", "--holdout", "4"),
]


def run(images: Path, out: Path, *flags: str) -> None:
    forget_accelerator()
    arguments = ["--train_data_dir", str(images), "--output_dir", str(out), *TINY, *IMAGEN]
    train(parse_training_arguments([*arguments, "--cache_dir", str(out.parent / "cache"), *flags]))


@pytest.fixture(scope="module")
def cascade(image_folder, tmp_path_factory):
    """8x8 and 16x16, in float32; killed after the third step of super-resolution."""
    out = tmp_path_factory.mktemp("imagen") / "out"
    with killed_at(3, out / "upsampler"):
        run(image_folder, out)
    run(image_folder, out)
    return out


def test_super_resolution_goes_on_to_the_bits_of_a_run_that_was_not_killed(cascade, image_folder, tmp_path, capsys):
    apart = shutil.copytree(cascade, tmp_path / "apart")
    shutil.rmtree(apart / "upsampler")
    run(image_folder, apart, "--stage", "super-resolution")
    name = "upsampler/unet/diffusion_pytorch_model.safetensors"
    ours, unbroken = load_file(cascade / name), load_file(apart / name)
    assert ours.keys() == unbroken.keys() and all(torch.equal(weight, unbroken[key]) for key, weight in ours.items())
    capsys.readouterr()
    run(image_folder, cascade)
    assert capsys.readouterr().out.count("has finished its 6 steps") == 2, "the encoder is not taught again"
    kept, saved = (load_file(cascade / name / "model.safetensors") for name in ("taught-encoder", "text_encoder"))
    assert kept.keys() == saved.keys() and all(torch.equal(weight, saved[key]) for key, weight in kept.items())
    assert not (cascade / "upsampler" / "taught-encoder").exists(), "it has the base's"


def test_a_killed_base_goes_on_with_the_encoder_it_was_told_by(image_folder, tmp_path, monkeypatch):
    """Of a stream, whose states are in no cache, and where teaching again gives other weights, as more threads do."""
    out, taught = tmp_path / "out", text.teach_wordings
    flags = ["--stage", "base", "--streaming", "--holdout", "0.3"]

    def taught_otherwise(encoder: torch.nn.Module, *arguments) -> None:
        taught(encoder, *arguments)
        encoder.get_input_embeddings().weight.data.mul_(1 + 1e-6)

    with monkeypatch.context() as patch:
        patch.setattr(text, "teach_wordings", None)  # which a dry run does not wait for
        run(image_folder, out, *flags, "--dry_run")
    assert not out.exists()
    with killed_at(3):
        run(image_folder, out, *flags)
    monkeypatch.setattr(text, "teach_wordings", taught_otherwise)
    run(image_folder, out, *flags)
    encoder, summary = (out / "taught-encoder" / "model.safetensors"), ModelFolder.read(out).summary
    saved, kept = load_file(out / "text_encoder" / "model.safetensors"), load_file(encoder)
    assert summary["status"] == "finished" and all(torch.equal(weight, saved[key]) for key, weight in kept.items())
    run(image_folder, out, *flags, "--overwrite_output_dir")
    assert any(not torch.equal(weight, kept[key]) for key, weight in load_file(encoder).items())


def test_each_stage_is_told_states_of_an_encoder_that_no_stage_trains(cascade):
    encoders = [
        load_file(folder / "text_encoder" / "model.safetensors") for folder in (cascade, cascade / "upsampler")
    ]
    assert all(torch.equal(weight, encoders[1][key]) for key, weight in encoders[0].items())
    for folder, side in ((cascade, 8), (cascade / "upsampler", 16)):
        model = ModelFolder.read(folder)
        assert model.summary["image_shape"] == [3, side, side] and model.summary["status"] == "finished"
        assert model.summary["text_encoder"].startswith("frozen, with the hash ")
        assert [metric["name"] for metric in model.metrics] == ["bits_per_dim"]
        assert all(name.startswith("unet.") for name in load_file(folder / "checkpoint-6" / "model.safetensors"))
    assert (model.settings["resolution"], model.settings["upsampling"]) == ("8", 2)
    base = load_pipeline(str(cascade))
    assert thresholding_of(base.scheduler.config) and not thresholding_of(base.upsampler.scheduler.config)
    schedules = [stage.scheduler.config.beta_schedule for stage in base.stages]
    assert schedules == ["squaredcos_cap_v2", "linear"]
    noising = base.upsampler.image_noising_scheduler
    torch.testing.assert_close(noising.alphas_cumprod, base.scheduler.alphas_cumprod, rtol=2e-5, atol=1e-7)
    assert base.upsampler.noise_levels == len(noising.alphas_cumprod) == 40
    assert base.upsampler.unet.config.layers_per_block == [1, 2], "an Efficient U-Net, by its preset"


def test_sample_py_adds_the_noise_asked_for_to_what_the_base_drew(cascade, tmp_path, capsys):
    main, pictures = load_script("sample.py").main, {}
    common = ["--prompt", "a cat", "--num_images", "2", "--num_inference_steps", "4", "--output_dir"]
    flags = {"usual": [], "little": ["--aug_level", "0"], "static": ["--thresholding", "false"]}
    for name, given in flags.items():
        main([str(cascade), *common, str(tmp_path / name), *given])
        pictures[name] = np.stack([np.asarray(Image.open(tmp_path / name / f"{k:05}.png")) for k in range(2)])
    settings = json.loads((tmp_path / "little" / "samples.json").read_text())["settings"]
    assert settings["noise_level"] == 0 and settings["scheduler"]["thresholding"] is True
    assert pictures["usual"].shape == (2, 16, 16, 3)
    assert (pictures["usual"] != pictures["little"]).any() and (pictures["usual"] != pictures["static"]).any()
    base = load_pipeline(str(cascade))
    base.set_progress_bar_config(disable=True)
    drawn = [
        base("a cat", 4, noise_level=level, output_type="pt", generator=torch.Generator().manual_seed(0)).images
        for level in (None, 10)
    ]
    assert torch.equal(*drawn), "T/4 by default"
    with pytest.raises(SystemExit):
        main([str(cascade), *common, str(tmp_path / "none"), "--aug_level", "40"])
    assert "--aug_level must be from 0 to 39, got 40" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_bits_per_dim_are_at_the_level_asked_for(cascade, tmp_path):
    main, found = load_script("evaluate.py").main, []
    for number, given in enumerate(([], ["--aug_level", "10"], ["--aug_level", "0"])):
        out = ["--nll_timesteps", "10", "--output_dir", str(tmp_path / str(number))]
        main([str(cascade / "upsampler"), "--run", str(cascade / "upsampler"), *out, *given])
        (metric,) = json.loads((tmp_path / str(number) / "evaluation.json").read_text())["metrics"]
        found.append((metric["value"], metric.get("noise_level")))
    usual, same, other = found
    assert usual == (same[0], None) and same[1] == 10 and other[0] != same[0] and other[1] == 0


def test_a_cascade_killed_while_it_enlarges_does_not_draw_the_small_pictures_again(cascade, tmp_path, monkeypatch):
    main, common = load_script("sample.py").main, [str(cascade), "--prompt", "a cat", "--num_images", "3"]
    common += ["--num_inference_steps", "4", "--batch_size", "2", "--output_dir"]
    main([*common, str(tmp_path / "whole")])
    draw, drawn = TextToImagePipeline._draw, []

    def die(*_, **__) -> None:
        raise KeyboardInterrupt

    def fill_disk(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def counted(pipeline: TextToImagePipeline, asked: dict, batch_size: int, *arguments, **more) -> object:
        drawn.append(batch_size)
        return draw(pipeline, asked, batch_size, *arguments, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(UpsamplingPipeline, "__call__", die)
        main([*common, str(tmp_path / "killed")])
    kept = tmp_path / "killed" / "base"
    assert sorted(path.name for path in kept.iterdir()) == [
        f"0000{k}.{kind}" for k in range(2) for kind in ("npz", "png")
    ]
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(SampleFolder, "write", fill_disk)
        main([*common, str(tmp_path / "killed")])
    assert len([*kept.glob("*.npz")]) == 2, "what was enlarged is not there yet"
    monkeypatch.setattr(TextToImagePipeline, "_draw", counted)
    main([*common, str(tmp_path / "killed")])
    assert drawn == [1], "a batch of the third alone"
    names = [f"{place}{k:05}.png" for place in ("", "base/") for k in range(3)]
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert Image.open(kept / "00000.png").size == (8, 8) and not [*kept.glob("*.npz")]


def test_what_is_missing_is_named_with_the_command_that_trains_it(cascade, image_folder, tmp_path, capsys):
    with pytest.raises(
        ValueError,
        match="--stage super-resolution needs a finished model in .*new; train it with --system imagen --stage base",
    ):
        run(image_folder, tmp_path / "new", "--stage", "super-resolution")
    with pytest.raises(ValueError, match="--text_warmup_steps must be at least 1 for --text_encoder taught, got 0"):
        run(image_folder, tmp_path / "new", "--text_warmup_steps", "0")
    shutil.copytree(cascade / "upsampler", tmp_path / "half" / "upsampler")
    half = shutil.copytree(cascade, tmp_path / "whole", ignore=shutil.ignore_patterns("checkpoint-*"))
    (half / "upsampler" / "model_index.json").unlink()
    flags, advice = (
        [str(half), "--num_images", "2"],
        f"train it with --system imagen --stage super-resolution .*{half}",
    )
    for script, given in (("sample.py", ["--prompt", "a cat"]), ("evaluate.py", ["--metrics", "frechet"])):
        with pytest.raises(SystemExit):
            load_script(script).main([*flags, *given])
        assert re.search(f"{half} lacks its stage super-resolution, .*{advice}", capsys.readouterr().err)
    load_script("sample.py").main(
        [*flags, *"--prompt cat --stage base --num_inference_steps 2 --output_dir".split(), f"{half}/s"]
    )
    with pytest.raises(
        ValueError,
        match="no model_index.json; the base of its upsampler is missing: train it with --system imagen --stage",
    ):
        load_pipeline(str(tmp_path / "half"))


def test_another_encoder_is_read_from_a_folder_and_fine_tuning_keeps_the_one_it_finds(cascade, image_folder, tmp_path):
    flags = "--system imagen --init_caption_from_labels a{} --holdout 0 --train_batch_size 4".split()
    common = [*flags, "--train_data_dir", str(image_folder), "--output_dir", str(tmp_path / "out")]
    tuned = parse_training_arguments([*common, "--init_from", str(cascade)])
    encoder = write_encoder(tmp_path / "t5", "t5")
    given = ["--text_encoder", encoder, "--resolution", "8", "--channel_multipliers", "1", "2", "--base_channels", "8"]
    other = parse_training_arguments([*common, *given])
    for config, width in ((tuned, 64), (other, 32)):
        forget_accelerator()
        stages = stages_of(config)
        assert [stage.name for stage in stages] == ["base", "super-resolution"][: 1 if config is tuned else 2]
        plan = make_plan(config, make_accelerator(config), stages[0])
        assert plan.config.model.text_encoder == ("frozen" if config is tuned else encoder)
        assert plan.system.network.text_encoder is None
        told = plan.system.conditions[0].of_words(["a cat"], torch.device("cpu"))
        assert told["encoder_hidden_states"].shape == (1, 77, width)
        assert thresholding_of(plan.system.scheduler.config)


def test_thresholding_is_of_the_base_and_a_model_to_start_from_keeps_its_own(cascade, tmp_path):
    def process_of(*flags: str, start: TextToImagePipeline | None = None, stage: int = 0) -> dict[str, float]:
        config = parse_training_arguments(["--system", "imagen", *flags, "--output_dir", str(tmp_path)])
        return thresholding_of(build_scheduler(stages_of(config)[stage].resolve(config, start), start).config)

    own = ["--train_data_dir", "x"]  # with the preset imagen-64-256
    for stage, expected in enumerate([{"dynamic_thresholding_ratio": 0.9, "sample_max_value": 100.0}, {}]):
        assert process_of(*own, "--dynamic_thresholding_ratio", "0.9", stage=stage) == expected
    assert process_of(*own, "--thresholding", "--sample_max_value", "2", stage=1)["sample_max_value"] == 2
    for flags in ([], [*own, "--thresholding", "false"], ["--system", "ddpm"]):
        with pytest.raises(ValueError, match="`sample_max_value` needs `thresholding`: add it, or leave out"):
            process_of(*flags, "--sample_max_value", "2")
    settings = {"dynamic_thresholding_ratio": 0.8, "sample_max_value": 3.0}
    start, flags = load_pipeline(str(cascade)).alone(), [*own, "--init_from", str(cascade)]
    for asked, expected in (({"thresholding": False}, {}), ({"thresholding": True, **settings}, settings)):
        start.threshold(asked)
        assert process_of(*flags, start=start) == expected
    assert process_of(*flags, "--sample_max_value", "2", start=start) == settings | {"sample_max_value": 2.0}
