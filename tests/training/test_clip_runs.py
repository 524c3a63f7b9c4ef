"""The CLIP of DALL·E 2: a run that is killed, what it leaves, and what evaluate.py says of it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import TINY, forget_accelerator, killed_at, load_script
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.hub.push import page_files
from ddpm_hf.models.clip import load_clip
from ddpm_hf.pipelines.loading import load_pipeline
from ddpm_hf.systems.clip import find_clip
from ddpm_hf.training.start import train

# Two captions, so that most of a batch mean the same.
FLAGS = (
    "--system dalle2 --stage clip --init_caption_from_labels {} --holdout 4 --center_crop --checkpointing_steps 2 "
    "--clip_width 32 --clip_layers 1 --text_width 64 --text_layers 1 --text_length 6 --embedding_width 16 "
    "--patch_size 4 --eval_steps 3"
).split()


def settings(images, out, *flags: str):
    forget_accelerator()
    arguments = ["--train_data_dir", str(images), "--output_dir", str(out), *TINY, *FLAGS, *flags]
    return parse_training_arguments(arguments)


@pytest.fixture(scope="module")
def killed(image_folder, tmp_path_factory):
    """8x8 in float32, killed after the third step."""
    out = tmp_path_factory.mktemp("clip") / "out"
    with killed_at(3):
        train(settings(image_folder, out))
    train(settings(image_folder, out))
    return out / "clip"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """After the last step: those that are trained, and their average."""
    files = [folder / "checkpoint-6" / f"{name}.safetensors" for name in ("model", "ema")]
    return {f"{file.stem} {name}": weight for file in files for name, weight in load_file(file).items()}


def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(killed, image_folder, tmp_path):
    train(settings(image_folder, tmp_path / "apart"))
    ours, apart = weights(killed), weights(tmp_path / "apart" / "clip")
    assert ours.keys() == apart.keys() and all(torch.equal(weight, apart[name]) for name, weight in ours.items())
    assert (killed / "clip/model.safetensors").read_bytes() == (
        tmp_path / "apart/clip/clip/model.safetensors"
    ).read_bytes()


@pytest.mark.processes
def test_two_processes_train_as_one(killed, image_folder, tmp_path, on_two_processes):
    """With the captions and pictures of both: with its own alone, each would have another loss."""
    data = ["--train_data_dir", image_folder, "--output_dir", tmp_path / "out", *TINY, *FLAGS]
    assert "2 process(es) on cpu" in on_two_processes("train.py", *data, "--train_batch_size", "2")
    one, two = weights(killed), weights(tmp_path / "out" / "clip")
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=1e-5, rtol=0, msg=name)
    first, second = ((folder / "loss.csv").read_text().splitlines() for folder in (killed, tmp_path / "out" / "clip"))
    assert len(first) == len(second) > 3


def test_transformers_loads_what_it_leaves(killed, monkeypatch):
    index = json.loads((killed / "model_index.json").read_text())
    assert index["_class_name"] == "ContrastivePipeline" and index["clip"] == ["transformers", "CLIPModel"]
    assert index["image_processor"] == ["transformers", "CLIPImageProcessor"]
    for kind in (CLIPModel, CLIPVisionModelWithProjection, CLIPTextModelWithProjection):
        _, info = kind.from_pretrained(killed, subfolder="clip", output_loading_info=True)
        assert not info["missing_keys"] and not info["mismatched_keys"]
    assert len(CLIPTokenizer.from_pretrained(killed, subfolder="tokenizer")("cat").input_ids) == 3
    assert not (killed / "samples.png").exists() and not (killed / "previews").exists()
    pipeline = load_pipeline(str(killed))
    pictures = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokens = pipeline.tokenizer(["cat"] * 2, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():  # as training calls it, and as it is used
        images, texts, _ = pipeline.network(pictures / 127.5 - 1, None, tokens)
    torch.testing.assert_close(images, pipeline.parts.look(pictures))
    torch.testing.assert_close(texts, pipeline.parts.read(["cat", "cat"]))

    card = (killed / "README.md").read_text()
    assert "8x8 pixels and captions of up to 6 tokens into 16 numbers" in card and "| retrieval_caption_at_1 |" in card
    (example,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    monkeypatch.chdir(killed)
    Image.fromarray(np.zeros((20, 14, 3), np.uint8)).save("photo.png")
    exec(example, found := {})
    assert found["cosines"].shape == (1, 1) and abs(found["cosines"]) <= 1
    assert {"model_index.json", "clip/model.safetensors", "README.md"} <= page_files(ModelFolder.read(killed)).keys()


def test_the_logit_scale_stays_below_100(killed):
    network = load_pipeline(str(killed)).network.train()
    ids = torch.ones(2, 6, dtype=torch.int64)
    network.clip.logit_scale.data.fill_(5.0)
    *_, scale = network(torch.zeros(2, 3, 8, 8), None, ids)
    assert scale.item() == pytest.approx(100)
    scale.backward()
    assert network.clip.logit_scale.grad > 0, "it can still fall"


def test_what_is_measured_when_it_ends_and_by_evaluate(killed, capsys):
    before = json.loads((killed / "evaluation.json").read_text())["metrics"]
    assert [entry["name"] for entry in before] == ["retrieval_caption_at_1", "retrieval_picture_at_1"]
    assert all(entry["n"] == count for entry, count in zip(before, (4, 2), strict=True))
    assert before[0]["chance"] == 0.5 and (killed / "scores.csv").read_text().startswith("step,retrieval_caption_at_1")
    load_script("evaluate.py").main([str(killed)])
    after = json.loads((killed / "evaluation.json").read_text())["metrics"]
    assert after == before and "retrieval_picture_at_1" in capsys.readouterr().out


def test_a_run_a_stage_and_a_model_are_the_same_clip(killed, image_folder):
    places = (killed.parent, killed, killed / "clip")
    found = [load_clip(place, "--clip_model").fingerprint for place in places[:2]]
    assert found[0] == found[1]
    with pytest.raises(ValueError, match="--clip_model must be .* with its tokenizer and .*, got .*clip:"):
        load_clip(places[2], "--clip_model")
    for out in (killed.parent, killed.parent / "prior"):  # the folder of the run, and that of another stage
        assert find_clip(settings(image_folder, out)).fingerprint == found[0]
    assert find_clip(settings(image_folder, killed.parent, "--overwrite_output_dir")) is None


def test_what_is_measured_by_default_stops_no_run(image_folder, tmp_path, capsys):
    """One picture is held out, so there are not two captions to choose between."""
    few = ("--holdout", "1", "--max_train_steps", "2", "--eval_steps")
    with pytest.raises(ValueError, match="--eval_metrics retrieval needs two different captions"):
        train(settings(image_folder, tmp_path / "out", *few, "2"))
    usual = settings(image_folder, tmp_path / "out", *few, "2").with_values({"eval_steps": None})
    train(usual)
    said = capsys.readouterr().out
    assert "warning: the model will not be measured: --eval_metrics retrieval needs two" in said
    assert "training is done and the pipeline saved\n" in said
    card = (tmp_path / "out" / "clip" / "README.md").read_text()
    assert "Nothing was measured, because too few images were held out." in card


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--patch_size 3", "--resolution must be one side of squares, a multiple of --patch_size 3, .* got 8"),
        ("--resolution 8x16", "--resolution must be one side of squares, .* got 8x16"),
        ("--channels 1", "--channels must be 3 for --stage clip, got 1, which .*; --channels 3 converts them"),
        ("--gradient_accumulation_steps 2", "--gradient_accumulation_steps must be 1 for --stage clip, .* got 2"),
        ("--clip_model somewhere", "--clip_model somewhere takes the place of --stage clip; leave one out"),
        (
            "--eval_metrics frechet",
            "--eval_metrics frechet needs a model that draws pictures, got a CLIP; leave",
        ),
        ("--caption_column words", "`caption_column`"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(image_folder, tmp_path, flags, words):
    with pytest.raises(ValueError, match=words):
        train(settings(image_folder, tmp_path / "out", *flags.split()))
    assert not (tmp_path / "out").exists()


def test_what_it_is_not_for_is_said_in_one_line(killed, image_folder, tmp_path, capsys):
    data = ["--train_data_dir", str(image_folder), "--output_dir", str(tmp_path / "out")]
    for script, arguments, words in (
        ("sample.py", [str(killed)], "is a CLIP, which draws nothing by itself"),
        ("evaluate.py", [str(killed), "--metrics", "nll"], "--metrics nll needs a diffusion model, got a CLIP"),
        ("evaluate.py", [str(killed), "--scheduler", "ddim"], "is a CLIP, which draws no pictures; leave out --sched"),
        ("train.py", [*data, "--init_from", str(killed)], "--init_from must be a diffusion model, got a CLIP: "),
        ("train.py", [*data, "--patch_size", "2"], "--patch_size is for --system dalle2, got --system ddpm"),
        ("train.py", [*data, *FLAGS, "--clip_width", "48"], "--clip_width must be a multiple of 32, got 48"),
        ("train.py", [*data, *FLAGS, "--gradient_checkpointing"], "--gradient_checkpointing is for --stage decoder"),
        ("train.py", [*data, *FLAGS, "--text_encoder", "train"], "--text_encoder is for --system glide or imagen or"),
    ):
        forget_accelerator()
        with pytest.raises(SystemExit):
            load_script(script).main(arguments)
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1


def test_a_dry_run_says_what_will_be_trained(image_folder, tmp_path, capsys):
    train(settings(image_folder, tmp_path / "out", "--dry_run"))
    told = capsys.readouterr().out
    assert "loss: InfoNCE between the pictures and captions of a step" in told and "predicts" not in told
    assert "clip, tokenizer, image_processor, model_index.json" in told
    assert not any(word in told for word in ("samples.png", "previews", "denoising"))
