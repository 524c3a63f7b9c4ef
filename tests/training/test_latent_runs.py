"""Latent diffusion: both stages by one command that is killed, what they leave, and what cannot be trained."""

import json
import re
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline
from diffusers.training_utils import compute_snr
from PIL import Image
from running import TINY, forget_accelerator, killed_at, load_script
from safetensors.torch import load_file, save_file
from texts import settings_of, write_encoder

from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.conditions.condition import tell
from ddpm_hf.diffusion.losses import DiffusionLoss
from ddpm_hf.evaluation.evaluator import Evaluator
from ddpm_hf.evaluation.request import Request
from ddpm_hf.hub.card import write_card
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.hub.push import page_files
from ddpm_hf.pipelines.loading import load_pipeline
from ddpm_hf.seeds import image_generators
from ddpm_hf.systems import text
from ddpm_hf.systems.plan import Plan, make_plan, stages_of
from ddpm_hf.systems.stable_diffusion import resolve_inpainting
from ddpm_hf.training.device import make_accelerator
from ddpm_hf.training.start import train

FLAGS = [
    *("--system", "stable-diffusion", "--holdout", "4"),
    *("--num_train_timesteps", "40", "--checkpointing_steps", "2", "--latent_channels", "4"),
    *("--perceptual", "none", "--adversarial_weight", "0"),
]
NAMED = ("--init_caption_from_labels", "a {}")
TAUGHT = ("--text_width", "64", "--text_layers", "1", "--text_warmup_steps", "2")
WEIGHTS = ("unet/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model")


def settings(images, out, *flags: str, captions: tuple[str, ...] = NAMED):
    forget_accelerator()
    if "--text_encoder" not in flags:
        flags = (*flags, *TAUGHT)
    arguments = ["--train_data_dir", str(images), "--output_dir", str(out), *TINY, *FLAGS, *captions, *flags]
    return parse_training_arguments(arguments)


def plan_of(images, out, *flags: str, **more: tuple[str, ...]) -> Plan:
    config = settings(images, out, *flags, **more)
    return make_plan(config, make_accelerator(config), stages_of(config)[-1])


@pytest.fixture(scope="module")
def trained(image_folder, tmp_path_factory):
    """8x8 in latents of 4x4, in float32; killed in the second stage, which then knows its words."""
    out = tmp_path_factory.mktemp("latent") / "out"
    with killed_at(3, out):
        train(settings(image_folder, out))
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(text, "teach_wordings")
        train(settings(image_folder, out))
    return out


def test_a_killed_run_ends_with_the_bits_of_the_two_that_its_records_repeat(trained, image_folder, tmp_path):
    for folder in (trained / "autoencoder", trained):
        forget_accelerator()
        record = ["--config", str(folder / "training_config.yaml"), "--output_dir", str(tmp_path / "apart")]
        train(parse_training_arguments(record))
    for name in WEIGHTS:
        ours, apart = (load_file(folder / f"{name}.safetensors") for folder in (trained, tmp_path / "apart"))
        assert ours.keys() == apart.keys() and all(torch.equal(weight, apart[key]) for key, weight in ours.items())
    vae, kept = (load_file(folder / f"{WEIGHTS[2]}.safetensors") for folder in (trained / "autoencoder", trained))
    assert all(torch.equal(weight, kept[key]) for key, weight in vae.items()), "as its own stage left it"


@pytest.mark.processes
def test_two_processes_train_as_one(trained, image_folder, tmp_path, on_two_processes):
    """Both stages by one command."""
    data = ["--train_data_dir", image_folder, "--output_dir", tmp_path / "out", *TINY, *FLAGS, *NAMED, *TAUGHT]
    assert on_two_processes("train.py", *data, "--train_batch_size", "2").count("2 process(es) on cpu") == 2
    for place in ("autoencoder/checkpoint-6", "checkpoint-6"):
        for name in ("model", "ema"):
            first, second = (load_file(run / place / f"{name}.safetensors") for run in (trained, tmp_path / "out"))
            assert first.keys() == second.keys()
            for key, weight in first.items():
                torch.testing.assert_close(second[key], weight, atol=1e-4, rtol=0)


def test_what_it_leaves(trained, capsys):
    model = ModelFolder.read(trained)
    assert model.summary["status"] == "finished" and model.summary["autoencoder"].startswith("one with the hash")
    pipe = StableDiffusionPipeline.from_pretrained(trained)
    assert not any("ddpm_hf" in (trained / name).read_text() for name in ("model_index.json", "unet/config.json"))
    assert pipe.tokenizer("A CAT").input_ids == pipe.tokenizer("a cat").input_ids
    card = (trained / "README.md").read_text()
    assert "works on latents of 4x4" in card and 'StableDiffusionPipeline.from_pretrained(".")' in card
    assert "### Its autoencoder" in card and "| psnr |" in card and "cut to 77 tokens" in card
    assert 'pipe("a cat", guidance_scale=3.0, ' in card and "by the template `a {}`: cat, dog." in card
    files = page_files(model).keys()
    assert {f"{name}.safetensors" for name in WEIGHTS} <= files
    assert not any(name.startswith("autoencoder") for name in files), "it is in vae/"


def test_a_step_is_that_of_the_example_of_stock(trained, image_folder, tmp_path):
    """examples/text_to_image/train_text_to_image.py of diffusers, with its `--snr_gamma` and without."""
    plan = plan_of(
        image_folder, tmp_path / "new", "--vae", str(trained), "--prediction_type", "epsilon", "--snr_gamma", "2"
    )
    batch = next(plan.images.batches([range(4)])) | {"positions": range(4)}
    system, noise = plan.system, torch.randn((4, 4, 4, 4), generator=torch.Generator().manual_seed(1))
    torch.nn.init.normal_(system.network.unet.conv_out.weight, std=0.1)
    timesteps, x_0 = torch.tensor([0, 7, 20, 39]), system.codec.encode(batch)
    told = tell(system.conditions, batch)
    stock = DDPMScheduler.from_config(system.scheduler.config)
    noisy = stock.add_noise(x_0, noise, timesteps)
    states = system.network.text_encoder(told["input_ids"], told["attention_mask"])[0]
    predicted = system.network.unet(noisy, timesteps, states).sample
    each = (predicted - noise).square().mean((1, 2, 3))
    snr = compute_snr(stock, timesteps)
    unweighted = DiffusionLoss(system.scheduler)
    for loss, weights in ((unweighted, torch.ones(4)), (system.loss, snr.clamp(max=2.0) / snr)):
        losses = loss(system.network, x_0, noise, timesteps, **told)
        torch.testing.assert_close(losses, each * weights, rtol=1e-5, atol=1e-6)


def test_frozen_parts_are_kept_as_they_are_and_a_model_can_be_trained_on(trained, image_folder, tmp_path):
    encoder, out = write_encoder(tmp_path / "clip", "clip"), tmp_path / "out"
    flags = ("--vae", str(trained / "autoencoder"), "--text_encoder", encoder, "--cache_dir", str(tmp_path / "cache"))
    train(settings(image_folder, out, *flags))
    assert not (out / "autoencoder").exists()
    for given, saved in ((trained / "vae", out / "vae"), (tmp_path / "clip", out / "text_encoder")):
        before, after = (load_file(next(folder.glob("*.safetensors"))) for folder in (given, saved))
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert "(`clip`)" in (out / "README.md").read_text()

    forget_accelerator()
    arguments = ["--train_data_dir", str(image_folder), "--init_caption_from_labels", "a {}", "--holdout", "4"]
    arguments += ["--system", "stable-diffusion", "--init_from", str(out), "--text_encoder", "frozen"]
    config = parse_training_arguments([*arguments, "--train_batch_size", "4"])
    plan = make_plan(config, make_accelerator(config), *stages_of(config))
    weights = load_file(out / f"{WEIGHTS[0]}.safetensors")
    assert all(torch.equal(weights[key], value) for key, value in plan.system.network.unet.state_dict().items())
    assert plan.config.data.resolution == "8" and plan.config.process.prediction_type == "v_prediction"


def test_classes_are_told_by_name_and_without_them_there_are_no_captions(trained, image_folder, tmp_path, capsys):
    vae = ("--vae", str(trained))
    plan = plan_of(image_folder, tmp_path / "named", *vae, captions=())
    batch = next(plan.images.batches([range(8)]))
    are_dogs = (batch["images"][:, 0] == 255).flatten(1).all(1)  # full of red
    assert list(batch["captions"]) == ["dog" if is_dog else "cat" for is_dog in are_dogs] and 0 < are_dogs.sum() < 8
    recorded = plan.config.data.init_caption_from_labels, plan.facts.class_names
    assert recorded == ("{}", ["cat", "dog"]), "as evaluate.py and a card need it"

    flat, out = tmp_path / "flat", tmp_path / "out"
    flat.mkdir()
    for number, file in enumerate(sorted(image_folder.rglob("*.png"))):
        shutil.copy(file, flat / f"{number}.png")
    with pytest.raises(ValueError, match="--text_encoder needs captions, and .*flat has none; give --caption_column"):
        plan_of(flat, out, *vae, "--text_encoder", write_encoder(tmp_path / "clip", "clip"), captions=())
    with pytest.raises(ValueError, match="--validation_prompts must be left out: .*flat has no captions"):
        plan_of(flat, out, *vae, "--validation_prompts", "a cat", captions=())
    capsys.readouterr()
    train(settings(flat, out, *vae, captions=()))
    assert ", no captions: pictures are learned as they are; " in capsys.readouterr().out
    card = (out / "README.md").read_text()
    assert settings_of(out)["preview_guidance_scale"] == 1, "which would be two calls for one picture"
    assert "learned without captions" in card and 'pipe("", guidance_scale=1.0, ' in card
    assert "pipeline_tag: unconditional-image-generation" in card and "understands" not in card
    forget_accelerator()
    sample, call = load_script("sample.py").main, [str(out), "--num_images", "1", "--num_inference_steps", "3"]
    sample([*call, "--output_dir", str(tmp_path / "drawn")])
    stock = StableDiffusionPipeline.from_pretrained(out)
    (generator,) = image_generators(0, [0])
    expected = stock("", 8, 8, 3, guidance_scale=1, generator=generator, output_type="np").images[0]
    drawn = np.asarray(Image.open(tmp_path / "drawn" / "00000.png"))
    assert np.abs(drawn - 255 * expected).max() <= 1
    for more, words in (
        (["--prompt", "a cat"], "--prompt must be left out for a model that is not told captions"),
        (["--negative_prompt", "a cat"], "--negative_prompt must be left out for a model that is not told captions"),
        (["--guidance_scale", "3"], "--guidance_scale must be 1 for a model that is not told captions, got 3"),
    ):
        with pytest.raises(SystemExit):
            sample([*call, *more, "--output_dir", str(tmp_path / "bad")])
        assert words in capsys.readouterr().err
    with pytest.raises(ValueError, match="--metrics clip needs a text-to-image model, got one that is told nothing"):
        Evaluator(Request(model=str(out), settings=settings_of(out), metrics=["clip"]))

    # What has learned no words is not told any when it is trained on.
    refused = "was trained without captions, and .* has captions '{}' of their names; give --init_caption_from_labels"
    again = ["--train_data_dir", str(image_folder), "--system", "stable-diffusion", "--init_from", str(out)]
    for none in ([], ["--init_caption_from_labels", ""]):
        forget_accelerator()
        config = parse_training_arguments([*again, "--train_batch_size", "4", *none])
        with nullcontext() if none else pytest.raises(ValueError, match=f"--init_from {refused}"):
            make_plan(config, make_accelerator(config), *stages_of(config))
    with pytest.raises(ValueError, match=f"the model in --output_dir {refused}"):
        train(settings(image_folder, out, "--stage", "inpainting", captions=()))
    flags = ("--stage", "inpainting", "--max_train_steps", "1")
    train(settings(image_folder, out, *flags, captions=("--init_caption_from_labels", "")))
    assert load_pipeline(str(out / "inpainting")).image_shape == (3, 8, 8)


def test_sample_py_draws_from_words_and_pictures(trained, tmp_path, capsys):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    Image.fromarray(np.tril(np.full((8, 8), 255, np.uint8))).save(tmp_path / "mask.png")
    call = ["--prompt", "a cat", "--num_images", "2", "--num_inference_steps", "4", "--seed", "3"]
    photo = ["--image", str(tmp_path / "photo.png")]
    drawn = {}
    for name, more in (
        ("words", []),
        ("anew", [*photo, "--strength", "0.5"]),
        ("usual", photo),
        ("part", [*photo, "--mask", str(tmp_path / "mask.png"), "--denoising_strip"]),
    ):
        forget_accelerator()
        load_script("sample.py").main([str(trained), *call, *more, "--output_dir", str(tmp_path / name)])
        drawn[name] = np.stack([np.asarray(Image.open(file)) for file in sorted((tmp_path / name).glob("*.png"))])
    assert drawn["words"].shape == (2, 8, 8, 3)
    assert len({images.tobytes() for images in drawn.values()}) == 4
    for more, words in (
        (["--strength", "0.5"], "--strength needs --image"),
        ([*photo, "--strength", "0.1"], "--strength must be at most 1 and leave one of 4 steps, got 0.1"),
        ([*photo, "--scheduler", "pndm"], "error: "),
        ([*photo, "--strength", "2"], "--strength must be above 0 and at most 1, got 2"),
    ):
        capsys.readouterr()
        forget_accelerator()
        with pytest.raises(SystemExit):
            load_script("sample.py").main([str(trained), *call, *more, "--output_dir", str(tmp_path / "bad")])
        assert words in capsys.readouterr().err


def test_inpainting_is_fine_tuned_from_the_finished_model_and_draws_its_parts(trained, image_folder, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    for more, words in (
        (("--base_channels", "16"), "--base_channels must be that of the model in --output_dir, 8, got 16; leave it"),
        (("--vae", str(trained)), "--vae must be that of the model in --output_dir, None, got .*; leave it out"),
        (("--resolution", "16"), "--resolution 16 contradicts the model in --output_dir, which has 8; leave it out"),
    ):
        with pytest.raises(ValueError, match=words):
            train(settings(image_folder, out, "--stage", "inpainting", *more))
    with pytest.raises(ValueError, match="--train_data_dir or --dataset_name must be given: the base learned"):
        forget_accelerator()
        train(parse_training_arguments([*FLAGS, "--stage", "inpainting", "--output_dir", str(out)]))
    flags = ("--stage", "inpainting", "--holdout", "4")
    train(settings(image_folder, out, *flags))
    before, after = (load_file(folder / f"{WEIGHTS[0]}.safetensors") for folder in (out, out / "inpainting"))
    assert before.keys() == after.keys() and after["conv_in.weight"].shape[1] == 9
    assert after["conv_in.weight"][:, 4:].abs().min(0).values.max() > 0, "the new channels are trained"
    assert not torch.equal(before["conv_out.weight"], after["conv_out.weight"])
    page = (out / "inpainting" / "README.md").read_text()
    assert "pipeline_tag: image-to-image" in page and "- inpainting" in page and "[folder above](..)" in page
    assert "```python" not in page
    card = write_card(out).read_text()
    assert 'StableDiffusionInpaintPipeline.from_pretrained("./inpainting")' in card and "clean_caption" not in card
    assert f"inpainting/{WEIGHTS[0]}.safetensors" in page_files(ModelFolder.read(out))

    Image.new("RGB", (8, 8), "red").save(tmp_path / "photo.png")
    Image.fromarray(np.tril(np.full((8, 8), 255, np.uint8))).save(tmp_path / "mask.png")
    call = [str(out), "--prompt", "a cat", "--num_images", "1", "--num_inference_steps", "3", "--guidance_scale", "2"]
    call += ["--image", str(tmp_path / "photo.png"), "--mask", str(tmp_path / "mask.png")]
    forget_accelerator()
    load_script("sample.py").main([*call, "--output_dir", str(tmp_path / "drawn")])
    forget_accelerator()
    alone = [str(out / "inpainting"), *call[1 : call.index("--mask")], "--output_dir", str(tmp_path / "bad")]
    with pytest.raises(SystemExit):
        load_script("sample.py").main(alone)
    assert "error: --image needs --mask_image for a model that was" in capsys.readouterr().err
    tuned = load_pipeline(str(out / "inpainting"))
    pictures = {
        name: Image.open(tmp_path / f"{file}.png") for name, file in (("image", "photo"), ("mask_image", "mask"))
    }
    more = {
        "num_inference_steps": 3,
        "guidance_scale": 2.0,
        "output_type": "np",
        "generator": image_generators(0, [0]),
    }
    expected = 255 * tuned("a cat", **pictures, **more).images[0]
    assert np.abs(np.asarray(Image.open(tmp_path / "drawn" / "00000.png")) - expected).max() <= 1
    arguments = ["--system", "stable-diffusion", *NAMED, "--train_data_dir", str(image_folder)]
    config = parse_training_arguments([*arguments, "--init_from", str(out / "inpainting")])
    with pytest.raises(ValueError, match="--init_from was fine-tuned for inpainting; give the model before it"):
        make_plan(config, make_accelerator(config), *stages_of(config))


def test_inpainting_leaves_out_no_more_layers_of_a_text_encoder_than_its_base(trained, image_folder, tmp_path):
    out, base = tmp_path / "out", load_pipeline(str(trained))
    shutil.copytree(trained, out)
    recorded = settings_of(trained) | {"text_encoder": "clip", "clip_skip": 1}
    (out / "training_config.yaml").write_text(yaml.safe_dump(recorded))

    def resolved(count: str):
        flags = ("--stage", "inpainting", "--text_encoder", "clip", "--clip_skip", count)
        return resolve_inpainting(settings(image_folder, out / "inpainting", *flags), base)

    config = resolved("1")
    assert (config.model.text_encoder, config.model.clip_skip) == ("frozen", None)
    with pytest.raises(ValueError, match="--clip_skip must be that of the model in --output_dir, 1, got 2; leave it"):
        resolved("2")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            "--stage inpainting",
            "--stage inpainting needs a finished model in .*; train it with --system stable-diffusion --stage unet",
        ),
        (
            "--stage autoencoder unet inpainting --latent_channels 8",
            "--stage inpainting needs latents with 4 channels, .*, got 8; leave it out, or choose --latent_channels",
        ),
        ("--stage unet inpainting --vae {eight}", "--stage inpainting needs latents with 4 channels, .*, got 8"),
        (
            "--stage unet inpainting --init_from {trained}",
            "--init_from is for --stage unet or --stage inpainting alone",
        ),
        ("--stage inpainting --init_from {trained} --rank 2", "--lora_rank 2 is not for --stage inpainting"),
        (
            "--stage unet",
            "--stage unet needs a finished autoencoder in .*autoencoder; train it with --stage a.*--vae",
        ),
        ("--vae {images}", "--vae must be a folder or Hub name with an AutoencoderKL, or with one in its vae/, got "),
        ("--vae {trained}/unet", "--vae must be a folder or Hub name with an AutoencoderKL"),
        ("--stage autoencoder --vae {trained}", "--vae .* takes the place of --stage autoencoder; leave one out"),
        ("--init_from {trained} --vae {trained}", "--init_from .* excludes --vae"),
        ("--vae {trained} --resolution 9", "--resolution must be a multiple of 2, .* got 9; the nearest is 8"),
        (
            "--vae {trained} --channels 1",
            "--channels must be 3 for this autoencoder, got 1",
        ),
        (
            "--variance_type learned_range",
            "--variance_type must be fixed_small or fixed_large for --system stable-",
        ),
        ("--preset vae-digits --vae {trained}", "--preset vae-digits is for --stage autoencoder alone"),
        ("--condition_dropout 0", "--condition_dropout must be above 0 for --system stable-diffusion"),
        ("--eval_steps 2 --vae {trained}", "--eval_steps needs --eval_metrics, such as clip"),
        ("--vae {trained} --eval_metrics nll", "--eval_metrics must not be nll for --system stable-diffusion"),
        ("--stage base", "--stage must be among autoencoder, unet, inpainting for .* stable-diffusion, got base"),
        ("--text_length 1", "--text_length must be at least 2"),
        ("--snr_gamma 5 --loss_weighting p2", "--snr_gamma is for --loss_weighting min_snr, got p2; leave one out"),
        ("--clip_skip 1", "--clip_skip needs a CLIP that is kept as it is: name it with --text_encoder"),
        ("--lora_rank 2", "--lora_rank needs --init_from, the model to adapt"),
        ("--init_from {trained} --rank 2 --text_encoder train", "--text_encoder must be frozen with --lora_rank"),
        ("--noise_offset -1", "--noise_offset must be at least 0.*, got -1"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(trained, image_folder, tmp_path, capsys, flags, words):
    if "{eight}" in flags:  # nothing but its configuration is read
        config = AutoencoderKL.load_config(trained / "vae")
        (tmp_path / "eight").mkdir()
        (tmp_path / "eight" / "config.json").write_text(json.dumps({**config, "latent_channels": 8}))
    flags = flags.format(trained=trained, images=image_folder, eight=tmp_path / "eight").split()
    shape = [*NAMED] if "--preset" in flags else [*NAMED, *TINY]
    arguments = ["--train_data_dir", str(image_folder), "--output_dir", str(tmp_path / "out"), *shape, *FLAGS, *flags]
    forget_accelerator()
    with pytest.raises(SystemExit) as end:
        load_script("train.py").main(arguments)
    said = capsys.readouterr().err
    assert end.value.code == 2 and re.search(words, said) and said.count("\n") == 1, said
    assert not (tmp_path / "out").exists()


def test_a_run_does_not_go_on_with_another_autoencoder(trained, image_folder, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    summary = json.loads((out / "training_summary.json").read_text())
    (out / "training_summary.json").write_text(json.dumps(summary | {"status": "running"}))
    vae = AutoencoderKL.from_pretrained(out / "autoencoder" / "vae")
    torch.nn.init.zeros_(vae.encoder.conv_out.bias)
    vae.save_pretrained(out / "autoencoder" / "vae")
    with pytest.raises(ValueError, match=r"holds a run with other settings \(autoencoder: one with the hash"):
        train(settings(image_folder, out, "--stage", "unet"))
    assert load_pipeline(str(out)).image_shape == (3, 8, 8)


def test_an_autoencoder_without_all_of_its_weights_is_refused(trained, image_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(trained, broken)
    file = broken / f"{WEIGHTS[2]}.safetensors"
    weights = load_file(file)
    del weights["decoder.conv_in.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="--vae must have all of its weights, got .*broken without decoder.conv_in.w"):
        train(settings(image_folder, tmp_path / "out", "--vae", str(broken)))
    with pytest.raises(ValueError, match="do not fit each other: vae lacks 1 of its weights, such as decoder.conv_in"):
        load_pipeline(str(broken))


def test_both_stages_can_be_forecast_in_half_precision_and_with_checkpointing(
    trained, image_folder, tmp_path, capsys, monkeypatch
):
    """A dry run before there is an autoencoder, and one with the discriminator that judges it. No words are taught."""
    monkeypatch.delattr(text, "teach_wordings")
    for more in (
        ("--gradient_checkpointing", "--mixed_precision", "bf16"),
        ("--stage", "autoencoder", "--resolution", "32", "--adversarial_weight", "0.5", "--adversarial_start", "1")
        + ("--mixed_precision", "bf16", "--gradient_checkpointing"),
    ):
        train(settings(image_folder, tmp_path / "out", *more, "--dry_run"))
        assert "GFLOP a step" in capsys.readouterr().out
    train(settings(image_folder, trained))
    assert "this run has finished its 6 steps" in capsys.readouterr().out
    with pytest.raises(NameError, match="teach_wordings"):  # a new run is the only one that needs it
        train(settings(image_folder, tmp_path / "out", "--vae", str(trained)))


def test_a_dry_run_of_both_stages_is_told_the_latents_of_the_preset(image_folder, tmp_path, capsys):
    forget_accelerator()
    flags = "--system stable-diffusion --preset stable-diffusion-digits --train_batch_size 4 --dry_run".split()
    flags += ["--init_caption_from_labels", "a {}", "--train_data_dir", str(image_folder), "--holdout", "4"]
    train(parse_training_arguments([*flags, "--output_dir", str(tmp_path / "out")]))
    told = capsys.readouterr().out
    assert told.count("954,567 parameters") == 2, "of the first stage, and of the autoencoder beneath the second"
    assert "latents: 4x8x8, AutoencoderKL, frozen, " in told


def test_a_new_run_over_a_finished_one_does_not_ask_its_autoencoder(trained, image_folder, tmp_path):
    shutil.copytree(trained, tmp_path / "out")
    out, flags = tmp_path / "out", ("--overwrite_output_dir", "--channels", "1", "--max_train_steps", "1")
    for more in ("--dry_run",), ():
        train(settings(image_folder, out, *flags, *more))
    assert load_pipeline(str(out)).image_shape == (1, 8, 8)
    shutil.copytree(out, out / "inpainting")
    assert "load_image" not in write_card(out).read_text(), "which gives stock three channels"
