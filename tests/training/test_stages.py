"""The stages of GLIDE, trained by one command that is killed in the second and the third, and by a command each."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from PIL import Image
from running import TINY, forget_accelerator, load_script
from safetensors.torch import load_file

from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.hub.push import page_files
from ddpm_hf.pipelines.fingerprint import weights_fingerprint
from ddpm_hf.pipelines.loading import load_pipeline
from ddpm_hf.sampling.generation import generate
from ddpm_hf.systems.glide import resolve_inpainting, resolve_upsampler
from ddpm_hf.systems.plan import make_plan, stages_of
from ddpm_hf.training.device import make_accelerator
from ddpm_hf.training.loop import Trainer
from ddpm_hf.training.start import train

GLIDE = [
    *"--system glide --text_width 64 --text_layers 1 --text_warmup_steps 2".split(),
    *("--init_caption_from_labels", "a {}"),
    *("--num_train_timesteps", "40", "--checkpointing_steps", "2", "--dropout", "0.1", "--ema_decay", "0.9"),
]
WEIGHTS = [
    f"{place}{part}.safetensors"
    for place in ("", "upsampler/", "inpainting/")
    for part in ("unet/diffusion_pytorch_model", "text_encoder/model")
]


def run(images, out, *flags: str) -> None:
    forget_accelerator()
    arguments = ["--train_data_dir", str(images), "--output_dir", str(out), *TINY, *GLIDE, *flags]
    train(parse_training_arguments([*arguments, "--holdout", "4", "--upsampling", "2"]))


def stop():
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def cascade(image_folder, tmp_path_factory):
    """8x8, 16x16 and a hole, in float32; killed after the third step of the second stage and of the third."""
    out = tmp_path_factory.mktemp("cascade") / "out"
    flags = ("--preview_steps", "2", "--stage", "base", "upsampler", "inpainting")
    report = Trainer._report
    for there in (out / "upsampler", out / "inpainting"):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(
                Trainer,
                "_report",
                lambda trainer, at=there: (
                    stop() if (trainer.output.path, trainer.step) == (at, 3) else report(trainer)
                ),
            )
            run(image_folder, out, *flags)
    run(image_folder, out, "--preview_steps", "2", "--stage", "inpainting")
    return out


def test_it_goes_on_in_a_later_stage_to_the_bits_of_three_commands(cascade, image_folder, tmp_path, capsys):
    for stage in ("base", "upsampler", "inpainting"):
        run(image_folder, tmp_path / "apart", "--stage", stage)
    for name in WEIGHTS:
        ours, apart = load_file(cascade / name), load_file(tmp_path / "apart" / name)
        assert ours.keys() == apart.keys() and all(torch.equal(weight, apart[key]) for key, weight in ours.items())
    base, own, tuned = (load_file(cascade / name) for name in WEIGHTS[1::2])
    assert all(torch.equal(weight, own[key]) for key, weight in base.items()), "the base's encoder stays as it is"
    assert not all(torch.equal(weight, tuned[key]) for key, weight in base.items()), "and is fine-tuned for inpainting"
    capsys.readouterr()
    run(image_folder, cascade)
    assert capsys.readouterr().out.count("has finished its 6 steps") == 2


def test_each_stage_has_results_of_its_own(cascade):
    for folder, side in ((cascade, 8), (cascade / "upsampler", 16), (cascade / "inpainting", 8)):
        model = ModelFolder.read(folder)
        assert model.summary["image_shape"] == [3, side, side] and model.summary["status"] == "finished"
        stage = "base" if folder == cascade else folder.name
        assert (model.settings["resolution"], model.settings["stage"]) == ("8", [stage])
        assert [metric["name"] for metric in model.metrics] == ["bits_per_dim"]
        for name in ("samples.png", "loss.png", "previews/step-0000002.png", "checkpoint-6"):
            assert (folder / name).exists()
    config = parse_training_arguments(["--system", "glide", "--output_dir", str(folder), "--train_data_dir", "."])
    resolved = resolve_upsampler(config, load_pipeline(str(cascade)))
    assert (resolved.data.resolution, resolved.process.num_train_timesteps) == ("8", 40), "the base's"
    card = (cascade / "README.md").read_text()
    assert "with an upsampler that enlarges them to 16x16" in card, "written again after the second stage"
    files = page_files(ModelFolder.read(cascade))
    expected = ("model_index.json", "README.md", "evaluation.json", "tokenizer/tokenizer.json")
    assert {f"upsampler/{name}" for name in expected} | set(WEIGHTS) <= files.keys()
    pictures, later = ("samples.png", "denoising.png", "denoising.gif"), ("upsampler", "inpainting")
    assert "samples.png" in files
    assert not {f"{stage}/{name}" for stage in later for name in pictures} & files.keys(), "they show training images"


def test_what_was_trained_is_what_stock_and_sample_py_draw(cascade, tmp_path, capsys):
    ours = load_pipeline(str(cascade))
    prompts, call = ["a cat", "a dog", "a cat"], {"num_inference_steps": 4, "guidance_scale": 2.0}
    drawn = [
        np.concatenate([pictures for _, pictures in generate(ours, range(3), 0, size, {"prompt": prompts}, **call)])
        for size in (1, 3)
    ]
    assert np.abs(drawn[0].astype(int) - drawn[1]).max() <= 1 and drawn[0].shape == (3, 16, 16, 3)
    stock = DiffusionPipeline.from_pretrained(cascade / "upsampler")
    assert type(stock).__name__ == "IFSuperResolutionPipeline" and type(stock.image_noising_scheduler) is DDPMScheduler
    small = [Image.fromarray(picture[::2, ::2]) for picture in drawn[0]]
    for scale in (1.0, 3.0):
        images = []
        for pipeline, more in ((stock, {"clean_caption": False}), (ours.upsampler, {})):
            more |= {"num_inference_steps": 4, "output_type": "np", "guidance_scale": scale}
            images.append(pipeline(prompts, image=small, generator=torch.Generator().manual_seed(0), **more).images)
        np.testing.assert_allclose(images[1], images[0], atol=1e-4)

    main, common = load_script("sample.py").main, ["--prompt", "a cat", "--num_images", "1", "--guidance_scale", "2"]
    common += ["--num_inference_steps", "4", "--output_dir"]
    main([str(cascade), *common, str(tmp_path / "large"), "--denoising_strip"])
    main([str(cascade), *common, str(tmp_path / "small"), "--stage", "base"])
    large, small = (np.asarray(Image.open(tmp_path / name / "00000.png")).astype(int) for name in ("large", "small"))
    assert np.abs(large - drawn[0][0]).max() <= 1 and small.shape == (8, 8, 3)
    assert json.loads((tmp_path / "large" / "samples.json").read_text())["settings"]["upsampler"]
    with pytest.raises(SystemExit):
        main([str(cascade / "upsampler"), *common, str(tmp_path / "alone")])
    assert "upsampler only enlarges pictures; give the folder above it" in capsys.readouterr().err


def test_sample_py_draws_a_part_with_what_was_fine_tuned_for_it(cascade, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    hole = np.zeros((16, 16), dtype=bool)
    hole[4:12, 8:] = True
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    Image.fromarray(hole).save(tmp_path / "mask.png")
    arguments = f"--num_images 1 --num_inference_steps 4 --image {tmp_path}/photo.png --mask_image {tmp_path}/mask.png"
    arguments += f" --output_dir {tmp_path}/part --prompt"
    load_script("sample.py").main([str(cascade), *arguments.split(), "a cat"])
    drawn = np.asarray(Image.open(tmp_path / "part" / "00000.png"))
    assert (drawn[~hole] == pixels[~hole]).all() and (drawn[hole] != pixels[hole]).any()
    settings = json.loads((tmp_path / "part" / "samples.json").read_text())["settings"]
    tuned = load_pipeline(str(cascade / "inpainting"))
    assert settings["weights"] == weights_fingerprint(tuned) and "upsampler" in settings


def test_inpainting_is_fine_tuned_from_a_base_as_it_is_or_from_a_model_that_is_named(cascade, image_folder, tmp_path):
    with pytest.raises(ValueError, match="--text_width must be that of the model in .*, 64, got 96; leave it out"):
        run(image_folder, cascade, "--stage", "inpainting", "--text_width", "96")
    other = parse_training_arguments(
        ["--system", "glide", "--text_encoder", "t5", "--output_dir", f"{cascade}/inpainting", "--stage", "inpainting"]
    )
    with pytest.raises(ValueError, match="--text_encoder must be that of the model in .*, train, got t5; leave it"):
        resolve_inpainting(other, load_pipeline(str(cascade)))
    shutil.copytree(cascade, tmp_path / "frozen")
    settings = tmp_path / "frozen" / "training_config.yaml"
    settings.write_text(settings.read_text().replace("text_encoder: train", "text_encoder: t5"))
    told_nothing = other.with_values({"text_encoder": None, "output_dir": str(tmp_path / "frozen" / "inpainting")})
    assert resolve_inpainting(told_nothing, load_pipeline(str(cascade))).model.text_encoder == "frozen"
    with pytest.raises(ValueError, match="--text_rate is for --text_encoder train, got --text_encoder frozen"):
        resolve_inpainting(told_nothing.with_values({"text_rate": 0.1}), load_pipeline(str(cascade)))
    flags = "--system glide --stage inpainting --init_caption_from_labels a{} --text_encoder frozen".split()
    flags += ["--train_data_dir", str(image_folder), "--holdout", "0", "--train_batch_size", "4"]
    flags += ["--validation_prompts", "a fox"]
    assert parse_training_arguments(flags).model.init_from is None
    config = parse_training_arguments([*flags, "--init_from", str(cascade), "--output_dir", str(tmp_path)])
    forget_accelerator()
    (stage,) = stages_of(config)
    system = make_plan(config, make_accelerator(config), stage).system
    start, network = load_pipeline(str(cascade)), system.network
    pipeline = system.pipeline(network)
    assert list(system.conditions[0].examples) == ["a fox"]
    assert type(pipeline).__name__ == "InpaintingPipeline" and network.text_encoder is None
    assert [condition.name for condition in pipeline.conditions] == ["prompt"], "scores are of whole pictures"
    assert torch.equal(network.unet.conv_in.weight, start.unet.conv_in.weight)


def test_a_base_that_is_missing_unfinished_or_other_is_named(cascade, image_folder, tmp_path):
    with pytest.raises(
        ValueError, match="--stage upsampler needs a finished model in --output_dir .*new; train it with"
    ):
        run(image_folder, tmp_path / "new", "--stage", "upsampler")
    unfinished = tmp_path / "unfinished"
    load_pipeline(str(cascade)).alone().save_pretrained(unfinished)
    shutil.copy(cascade / "training_config.yaml", unfinished)
    (unfinished / "training_summary.json").write_text('{"status": "running"}')
    with pytest.raises(ValueError, match="needs a finished model"):
        run(image_folder, unfinished, "--stage", "upsampler")
    (unfinished / "training_summary.json").write_text('{"status": "finished", "dataset": "photos"}')
    with pytest.raises(ValueError, match="--train_data_dir or --dataset_name must be given: the base learned photos"):
        forget_accelerator()
        train(parse_training_arguments(["--system", "glide", "--stage", "upsampler", "--output_dir", str(unfinished)]))
    with pytest.raises(
        ValueError, match="must be those of the base in --output_dir, 8 and 3, got 16 and 3; leave them"
    ):
        run(image_folder, unfinished, "--stage", "upsampler", "--resolution", "16")
    with pytest.raises(
        ValueError, match="--num_train_timesteps must be that of the base .*, 40, got 50; leave it out"
    ):
        run(image_folder, unfinished, "--stage", "upsampler", "--num_train_timesteps", "50")
    settings = unfinished / "training_config.yaml"
    settings.write_text(settings.read_text().replace("\ntext_encoder: train\n", "\ntext_encoder: t5\n"))
    for name, there, other in (("text_encoder", "t5", "train"), ("text_rate", "0.1", "0.2")):
        with pytest.raises(ValueError, match=f"--{name} must be that of the model .*, {there}, got {other}; leave it"):
            run(image_folder, unfinished, "--stage", "upsampler", f"--{name}", other)
    assert not (unfinished / "upsampler").exists() and not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="--init_from must be a model of --system glide, got a UpsamplingPipeline"):
        flags = "--system glide --init_caption_from_labels a{} --max_train_steps 2 --holdout 0 --train_batch_size 4"
        forget_accelerator()
        arguments = [*flags.split(), "--init_from", str(cascade / "upsampler"), "--output_dir", str(tmp_path / "new")]
        train(parse_training_arguments([*arguments, "--train_data_dir", str(image_folder)]))


def test_settings_of_a_later_stage_are_refused_before_the_first_trains(image_folder, tmp_path):
    with pytest.raises(ValueError, match="--resolution 10 times --upsampling 3 must be a multiple of 4, .* got 30"):
        flags = ("--resolution", "10", "--upsampling", "3", "--channel_multipliers", "1", "1", "1")
        forget_accelerator()
        arguments = ["--train_data_dir", str(image_folder), "--output_dir", str(tmp_path / "out"), *TINY, *GLIDE]
        train(parse_training_arguments([*arguments, *flags]))
    assert not (tmp_path / "out").exists()


def test_a_dry_run_shows_both_stages_before_there_is_a_base(cascade, image_folder, tmp_path, capsys):
    run(image_folder, tmp_path / "out", "--dry_run")
    told = capsys.readouterr().out
    assert "images of 8x8" in told and "images of 16x16" in told
    assert "tokenizer, text_encoder, unet, scheduler, image_noising_scheduler, " in told
    assert not (tmp_path / "out").exists()
    run(image_folder, cascade, "--dry_run", "--overwrite_output_dir", "--resolution", "16")
    assert "images of 32x32" in capsys.readouterr().out, "of a base that would be another"


def test_both_stages_train_on_captioned_digits_that_the_base_can_draw(tmp_path):
    config = parse_training_arguments(["--system", "glide", "--output_dir", str(tmp_path / "upsampler")])
    assert [stage.name for stage in stages_of(config)] == ["base", "upsampler"]
    assert [stage.name for stage in stages_of(config.with_values({"init_from": "somewhere"}))] == ["base"]
    with pytest.raises(ValueError, match="--stage must be among base, upsampler, inpainting for .* glide, got prior"):
        stages_of(config.with_values({"stage": ["base", "prior"]}))
    preset = config.with_values({"preset": "glide-64"})
    recorded = resolve_upsampler(preset, None)
    assert resolve_upsampler(recorded, None) == recorded, "recorded settings agree with their preset"
    with pytest.raises(ValueError, match="--base_channels 128 contradicts --preset glide-64, which has 64"):
        resolve_upsampler(preset.with_values({"base_channels": 128}), None)  # the base's
    resolved = resolve_upsampler(config, None)
    assert resolved.data.dataset_config_name == "coloured" and resolved.model.upsampling == 2
    forget_accelerator()
    config = config.with_values({"dry_run": True})
    plan = make_plan(config, make_accelerator(config), stages_of(config)[1])
    assert plan.images.shape == (3, 32, 32) and plan.system.scheduler.config.beta_schedule == "linear"
    assert not any(" small " in f" {caption} " for caption in plan.images.some_captions(50))
    prompt, picture = plan.system.conditions
    told = picture.of_words(picture.usual(), torch.device("cpu"))["low_resolution"]
    shown = plan.images.some_batch(16)
    assert list(prompt.examples) == list(shown["captions"])
    assert (told - (shown["images"] / 127.5 - 1)).abs().mean() < 0.15, "the pictures of these captions"
