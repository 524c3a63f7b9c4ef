"""The decoder of DALL·E 2, beside a CLIP and a prior that are there: killed and gone on with, what it leaves, and what
cannot be trained."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from diffusers import KandinskyV22CombinedPipeline
from PIL import Image
from priors import make_clip, make_prior
from running import TINY, forget_accelerator, killed_at, load_script
from safetensors.torch import load_file

from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.conditions.condition import tell
from ddpm_hf.hub.card import write_card
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.hub.push import page_files
from ddpm_hf.pipelines.contrastive import ContrastivePipeline
from ddpm_hf.pipelines.loading import load_pipeline
from ddpm_hf.seeds import image_generators
from ddpm_hf.systems.plan import make_plan, stages_of
from ddpm_hf.training.device import make_accelerator
from ddpm_hf.training.start import train

FLAGS = "--system dalle2 --stage decoder --holdout 4 --num_train_timesteps 40 --checkpointing_steps 2".split()
FLAGS += ["--dropout", "0", "--init_caption_from_labels", "a {}"]  # dropout differs between processes
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def settings(images, out, *flags: str):
    forget_accelerator()
    return parse_training_arguments(["--train_data_dir", str(images), "--output_dir", str(out), *TINY, *FLAGS, *flags])


def save_clip(folder, seed: int = 0) -> str:
    """As its own stage leaves it."""
    clip = make_clip(seed)
    ContrastivePipeline(clip.model, clip.tokenizer, clip.processor).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def trained(image_folder, tmp_path_factory):
    """8x8, in float32; killed after the third step."""
    out = tmp_path_factory.mktemp("decoder") / "out"
    save_clip(out / "clip")
    make_prior().save_pretrained(out / "prior")
    flags = ("--preview_steps", "2")
    with killed_at(3):
        train(settings(image_folder, out, *flags))
    train(settings(image_folder, out, *flags))
    return out


def test_a_killed_run_ends_with_the_bits_of_an_unbroken_one(trained, image_folder, tmp_path):
    for name in ("clip", "prior"):
        shutil.copytree(trained / name, tmp_path / "apart" / name)
    train(settings(image_folder, tmp_path / "apart"))
    ours, apart = (load_file(folder / WEIGHTS) for folder in (trained, tmp_path / "apart"))
    assert ours.keys() == apart.keys() and all(torch.equal(weight, apart[key]) for key, weight in ours.items())


@pytest.mark.processes
def test_two_processes_train_as_one(trained, image_folder, tmp_path, on_two_processes):
    for name in ("clip", "prior"):
        shutil.copytree(trained / name, tmp_path / "out" / name)
    data = ["--train_data_dir", image_folder, "--output_dir", tmp_path / "out"]
    on_two_processes("train.py", *data, *TINY, *FLAGS, "--train_batch_size", "2")
    first, second = (load_file(folder / WEIGHTS) for folder in (trained, tmp_path / "out"))
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, atol=1e-4, rtol=0)


def test_it_leaves_one_whole_model(trained):
    model = ModelFolder.read(trained)
    assert model.summary["status"] == "finished" and model.summary["clip"].startswith("one with the hash")
    for part in ("prior", "image_encoder", "text_encoder"):
        folders = (trained / f"prior_{part}", trained / "prior" / part)
        own, there = (load_file(next(folder.glob("*.safetensors"))) for folder in folders)
        assert own.keys() == there.keys() and all(torch.equal(weight, there[key]) for key, weight in own.items())
    assert "ddpm_hf" not in (trained / "model_index.json").read_text()
    ours, stock = load_pipeline(str(trained)), KandinskyV22CombinedPipeline.from_pretrained(trained)
    call = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "np"}
    one, two = (torch.Generator().manual_seed(0) for _ in range(2))
    expected = stock(["a cat", "a dog"], height=8, width=8, generator=one, **call).images
    np.testing.assert_allclose(ours(["a cat", "a dog"], generator=two, **call).images, expected, atol=1e-4)
    cells = np.asarray(Image.open(trained / "previews" / "step-0000002.png"))[2:, 2:, 0]
    left, right = cells.reshape(2, 66, 2, 66)[:, :64, :, :64].astype(int).transpose(2, 0, 1, 3)
    assert all(np.unique(cell).tolist() in ([0], [255]) for cell in left), "a cat and a dog, by their red"
    assert np.abs(right - left).max() > 10, "and what is drawn from their embeddings"
    assert Image.open(trained / "samples.png").size == (68, 134), "drawn for captions, without pictures of the data"
    files = page_files(model).keys()
    assert WEIGHTS in files and "prior_prior/diffusion_pytorch_model.safetensors" in files
    assert "samples.png" in files and not any(name.startswith(("clip/", "prior/", "previews/")) for name in files)
    card = (trained / "README.md").read_text()
    assert 'pipe("a cat", guidance_scale=3.0, height=8, width=8, ' in card


def test_another_prior_below_a_finished_decoder_is_noticed(trained, image_folder, tmp_path):
    """Which has a copy of the one that there was."""
    shutil.copytree(trained, tmp_path / "out")
    train(settings(image_folder, tmp_path / "out", "--preview_steps", "2"))  # finished: there is nothing to do
    prior = make_prior()
    torch.nn.init.ones_(prior.prior.prd_embedding)
    prior.save_pretrained(tmp_path / "out" / "prior")
    with pytest.raises(ValueError, match=r"other settings \(prior: one with the hash \w+ there, one with "):
        train(settings(image_folder, tmp_path / "out", "--preview_steps", "2"))


def test_a_dry_run_needs_no_prior_and_takes_a_clip_whose_tokenizer_has_no_limit(image_folder, tmp_path, capsys):
    clip = make_clip()
    clip.tokenizer.model_max_length = None  # transformers then has 10^30
    for part in (clip.model, clip.tokenizer, clip.processor):
        part.save_pretrained(tmp_path / "clip")
    train(settings(image_folder, tmp_path / "out", "--clip_model", str(tmp_path / "clip"), "--dry_run"))
    assert "image_embeds: of 32 channels, CLIPVisionModelWithProjection, frozen" in capsys.readouterr().out


def test_embeddings_are_computed_once_and_hidden_as_those_of_a_zero_picture(trained, image_folder, tmp_path):
    for name in ("clip", "prior"):
        shutil.copytree(trained / name, tmp_path / "out" / name)
    flags = ("--cache_dir", str(tmp_path / "cache"), "--center_crop", "--random_flip")
    config = settings(image_folder, tmp_path / "out", *flags)
    plan = make_plan(config, make_accelerator(config), *stages_of(config))
    plan.system.conditions[0].prepare(torch.device("cpu"))
    batch = next(plan.images.batches([range(16)])) | {"positions": range(16)}
    looked = {name: value for name, value in batch.items() if name != "embeddings"}
    told, expected = (tell(plan.system.conditions, rows)["image_embeds"] for rows in (batch, looked))
    assert batch["embeddings"].dtype == torch.float16 and expected.std(0).min() > 1e-3
    torch.testing.assert_close(told, expected, atol=2e-3, rtol=2e-3)
    hidden = torch.arange(16) % 2 == 0
    told = tell(plan.system.conditions, batch, [hidden])["image_embeds"]
    prior = load_pipeline(str(trained / "prior"))
    torch.testing.assert_close(told[hidden], prior.get_zero_embed(8))
    assert not torch.equal(told[~hidden], prior.get_zero_embed(8))


def test_what_another_preparation_of_pictures_makes_is_kept_apart(trained, image_folder, tmp_path):
    """Of a model to start from; with its own, it is what the stages before have kept."""
    shutil.copytree(trained, tmp_path / "start", ignore=shutil.ignore_patterns("checkpoint-*"))
    other = tmp_path / "other" / "prior_image_processor" / "preprocessor_config.json"
    shutil.copytree(tmp_path / "start", tmp_path / "other")
    other.write_text(json.dumps(json.loads(other.read_text()) | {"image_mean": [0.4] * 3}))
    shutil.copytree(trained / "clip", tmp_path / "clip")
    data = f"--system dalle2 --train_data_dir {image_folder} --center_crop --mixed_precision no --train_batch_size 4"
    data = [*data.split(), "--output_dir", str(tmp_path / "prior"), "--init_caption_from_labels", "a {}"]
    folders = []
    for flags in (
        "--stage prior --resolution 8 --prior_width 32 --prior_layers 1",
        f"--init_from {tmp_path / 'start'}",
        f"--init_from {tmp_path / 'other'}",
    ):
        forget_accelerator()
        config = parse_training_arguments([*data, *flags.split()])
        plan = make_plan(config, make_accelerator(config), *stages_of(config))
        folders.append(plan.images.kept["embeddings"].folder)
    assert folders[0] == folders[1] != folders[2]


def test_sample_py_asks_the_prior_and_evaluate_py_can_leave_it_out(trained, tmp_path, capsys):
    call = [str(trained), "--prompt", "a cat", "--num_images", "2", "--num_inference_steps", "3"]
    asked = ["--prior_guidance_scale", "2", "--prior_candidates", "2"]
    load_script("sample.py").main([*call, *asked, "--output_dir", str(tmp_path / "drawn")])
    expected = load_pipeline(str(trained))(
        ["a cat"] * 2,
        num_inference_steps=3,
        guidance_scale=3.0,
        prior_guidance_scale=2.0,
        prior_candidates=2,
        output_type="np",
        generator=image_generators(0, [0, 1]),
    ).images
    for number, picture in enumerate(expected):
        drawn = np.asarray(Image.open(tmp_path / "drawn" / f"{number:05d}.png"))
        assert np.abs(drawn - 255 * picture).max() <= 1
    evaluate = ["--metrics", "frechet", "--extractor", "digits", "--resamples", "0", "--num_inference_steps", "2"]
    for stage in ((), ("--stage", "decoder")):
        forget_accelerator()
        load_script("evaluate.py").main([str(trained), *evaluate, *stage])
    metrics = [metric for metric in ModelFolder.read(trained).metrics if metric["name"] == "frechet_distance"]
    assert [metric.get("told") for metric in metrics] == [None, "embeddings of these pictures"]
    assert metrics[0]["value"] != metrics[1]["value"]
    write_card(trained)
    assert "from embeddings of these pictures" in (trained / "README.md").read_text()
    for script, arguments, words in (
        ("sample.py", [*call, "--prior_candidates", "0"], "--prior_candidates must be at least 1, got 0"),
        ("sample.py", [*call, "--prior_guidance_scale", "nan"], "--prior_guidance_scale must be a finite number"),
        ("sample.py", [*call, "--guidance_scale", "inf"], "--guidance_scale must be a finite number, got inf"),
        ("evaluate.py", [str(trained)], "embedding of them; --metrics must name others"),
        (
            "evaluate.py",
            [str(trained), *evaluate, "--stage", "decoder", "--prior_candidates", "2"],
            "--prior_candidates must be left out where no prior turns captions into embeddings, got 2",
        ),
        ("evaluate.py", [str(trained / "prior"), *evaluate, "--stage", "decoder"], "--stage decoder is for a model"),
    ):
        forget_accelerator()
        with pytest.raises(SystemExit):
            load_script(script).main([*arguments, "--output_dir", str(tmp_path / "bad")])
        assert words in capsys.readouterr().err


def test_an_upsampler_is_trained_beside_it_and_both_draw_in_one_call(trained, image_folder, tmp_path, capsys):
    """Killed and gone on with; its bits are those of an unbroken run."""
    flags = ("--stage", "upsampler", "--upsampling", "2")
    outs = tmp_path / "out", tmp_path / "apart"
    for out in outs:
        shutil.copytree(trained, out, ignore=shutil.ignore_patterns("checkpoint-*", "evaluat*"))
    with killed_at(3):
        train(settings(image_folder, outs[0], *flags))
    call = [str(outs[0]), "--prompt", "a cat", "--num_images", "2", "--num_inference_steps", "3"]
    with pytest.raises(SystemExit):
        load_script("sample.py").main([*call, "--output_dir", str(tmp_path / "drawn")])
    assert "lacks its stage upsampler, which is not finished: train it with --system dalle2" in capsys.readouterr().err
    for out in outs:
        train(settings(image_folder, out, *flags))
    for part in ("unet/diffusion_pytorch_model", "text_encoder/model"):
        ours, apart = (load_file(out / "upsampler" / f"{part}.safetensors") for out in outs)
        assert ours.keys() == apart.keys() and all(torch.equal(weight, apart[key]) for key, weight in ours.items())
    model = ModelFolder.read(outs[0])
    assert [metric["name"] for metric in model.upsampler.metrics] == ["bits_per_dim"]
    assert "upsampler/unet/diffusion_pytorch_model.safetensors" in page_files(model)
    assert "An upsampler enlarges the picture to 16x16." in (outs[0] / "README.md").read_text(), "written again"

    forget_accelerator()
    load_script("sample.py").main([*call, "--output_dir", str(tmp_path / "drawn"), "--denoising_strip"])
    expected = load_pipeline(str(outs[0]))(
        ["a cat"] * 2, num_inference_steps=3, guidance_scale=3.0, generator=image_generators(0, [0, 1])
    ).images
    for number, picture in enumerate(expected):
        drawn = np.asarray(Image.open(tmp_path / "drawn" / f"{number:05d}.png")).astype(int)
        assert drawn.shape == (16, 16, 3) and np.abs(drawn - np.asarray(picture)).max() <= 1
    evaluate = ["--metrics", "frechet", "--extractor", "digits", "--resamples", "0", "--num_inference_steps", "2"]
    forget_accelerator()
    load_script("evaluate.py").main([str(outs[0]), *evaluate, "--stage", "decoder"])
    (metric,) = ModelFolder.read(outs[0]).metrics
    assert metric["told"] == "embeddings of these pictures" and "upsampler" in metric


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--output_dir {new}", "--stage decoder needs a finished prior in .*prior; train it with --stage prior"),
        ("--stage upsampler", "--stage upsampler needs a finished model in .*; train it with .* --stage decoder"),
        ("--clip_model {other}", "--stage decoder needs a prior of its own CLIP, but that in .*prior has lear"),
        ("--init_from {trained} --clip_model {other}", "--init_from .* excludes --clip_model .*: give one of them"),
        ("--resolution 8x12", "--resolution must be square for --system dalle2, got 8x12"),
        ("--channels 1", "--channels must be 3 for --stage decoder, to which grey pictures are converted, got 1"),
        ("--preset clip-digits", "--preset clip-digits is for --stage clip alone"),
        ("--eval_metrics nll", "--eval_metrics must not be nll for --system dalle2: what the decoder is"),
        ("--init_from {trained}/prior", "--init_from must be a model of --system dalle2, got a PriorPipeline"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(trained, image_folder, tmp_path, capsys, flags, words):
    out = tmp_path / "out"
    for name in ("clip", "prior"):
        shutil.copytree(trained / name, out / name)
    if "{other}" in flags:
        save_clip(tmp_path / "other", seed=1)
    flags = flags.format(new=tmp_path / "new", other=tmp_path / "other", trained=trained).split()
    with pytest.raises(SystemExit) as end:
        load_script("train.py").main(
            ["--train_data_dir", str(image_folder), "--output_dir", str(out), *TINY, *FLAGS, *flags]
        )
    error = capsys.readouterr().err.splitlines()[-1]  # after the decoding of pictures, if it came so far
    assert end.value.code == 2 and re.match(f"train.py: error: {words}", error), error
    assert not (out / "model_index.json").exists() and not (tmp_path / "new").exists()
