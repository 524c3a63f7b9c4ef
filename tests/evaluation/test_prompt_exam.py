"""Whether samples follow their captions: a text-to-image model asked for captioned digits, by evaluate.py."""

import json
from argparse import Namespace
from dataclasses import asdict

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from running import TINY, forget_accelerator, load_script

from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.data.captioned_digits import captioned_digits
from ddpm_hf.data.sources import load_images
from ddpm_hf.data.transforms import RESAMPLING
from ddpm_hf.evaluation.evaluator import Evaluator
from ddpm_hf.evaluation.request import Request
from ddpm_hf.evaluation.samples import words_for
from ddpm_hf.pipelines.text_to_image import TextToImagePipeline
from ddpm_hf.systems.plan import make_plan
from ddpm_hf.training.output import OutputFolder

NAMES = [
    f"prompt_{name}_{group}" for group in ("seen", "unseen") for name in ("accuracy", "digit", "colour", "ground")
]
TEXT = "--system glide --resolution 16 --attention_resolutions 8 --text_width 32 --text_layers 1"


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    """What train.py leaves of captioned digits: an untrained model of T = 40 whose output layer is random."""
    forget_accelerator()
    folder = tmp_path_factory.mktemp("run") / "out"
    tiny = TINY[: TINY.index("--holdout")]  # hold out the data set's own test split
    arguments = [*tiny, *TEXT.split(), "--num_train_timesteps", "40", "--output_dir", str(folder)]
    plan = make_plan(parse_training_arguments(arguments), Accelerator())
    OutputFolder(folder).open(plan.config, asdict(plan.facts), overwrite=False)
    torch.nn.init.normal_(plan.system.network.unet.conv_out.weight, std=0.1)
    plan.system.pipeline(plan.system.network).save_pretrained(folder)
    return folder


def request_of(folder, **options):
    settings = yaml.safe_load((folder / "training_config.yaml").read_text())
    return Request(model=str(folder), settings=settings, metrics=["prompt"], **options)


class Copyist(TextToImagePipeline):
    """Draws nothing: gives the real picture of a caption."""

    def __call__(self, *, prompt, **_):
        data = load_images(captioned=True, size=(16, 16), dataset_split="test")
        rows = data.rows.select_columns(["image", "caption"]).cast_column("image", data.features["image"])
        places = {caption: row for row, several in enumerate(data.rows["caption"]) for caption in several}
        pictures = rows.select([places[caption] for caption in prompt]).with_format(None)
        small = [np.asarray(decoded(cell["image"]).resize((16, 16), RESAMPLING)) for cell in pictures]
        return Namespace(images=torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2) / 255)


def decoded(cell):
    import io

    return cell if isinstance(cell, Image.Image) else Image.open(io.BytesIO(cell["bytes"]))


def test_an_untrained_model_is_at_chance(text_run, tmp_path, capsys):
    flags = "--metrics prompt --num_images 200 --num_inference_steps 2 --guidance_scale 3".split()
    load_script("evaluate.py").main([str(text_run), *flags, "--output_dir", str(tmp_path)])
    entries = json.loads((tmp_path / "evaluation.json").read_text())["metrics"]
    assert [entry["name"] for entry in entries] == NAMES
    for entry in entries:
        error = (entry["chance"] * (1 - entry["chance"]) / entry["n"]) ** 0.5
        assert abs(entry["value"] - entry["chance"]) <= 4 * error + 1 / entry["n"]
        assert entry["ceiling"] > 0.95 and entry["ceiling_n"] == 1000
        about = {key: entry[key] for key in ("dataset", "split", "steps", "seed", "sampler", "guidance_scale")}
        assert about == {
            **{"dataset": "captioned digits", "split": "test", "steps": 2, "seed": 0, "sampler": "ddpm"},
            "guidance_scale": 3.0,
        }
    assert entries[0]["n"] + entries[4]["n"] == 200
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["metric", "value", "ceiling", "chance", "n", "sampler", "data"]
    assert first.startswith("prompt_accuracy_seen ") and " to " in first


def test_real_pictures_of_the_captions_asked_for_are_at_the_ceiling(text_run):
    evaluator = Evaluator(request_of(text_run, num_images=600, num_inference_steps=1))
    real = evaluator.pipeline
    evaluator.pipeline = Copyist(**real.components)
    found = {entry["name"]: entry for entry in evaluator._measure()}
    for name in NAMES:
        ceiling, n = found[name]["ceiling"], found[name]["n"]
        assert abs(found[name]["value"] - ceiling) <= 4 * (ceiling * (1 - ceiling) / n) ** 0.5 + 1 / n
    assert found["prompt_accuracy_unseen"]["chance"] < 0.02
    # Each sample has been asked for the first caption of the real image of its number.
    asked = words_for(real.conditions, evaluator.reference, 600)["prompt"]
    rows = np.concatenate([batch["rows"] for batch in evaluator.reference.batches(256)])
    captions = load_images(train_data_dir=captioned_digits(), dataset_split="test").rows["caption"]
    assert asked == [captions[row][0] for row in rows[:600].tolist()]


@pytest.fixture
def other_pictures(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(3):
        Image.new("RGB", (16, 16), (k, k, k)).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(f"photo number {k}")
    return folder


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        ("text", "photos", "prompt needs captions of captioned digits, .* has others: 'photo number"),
        ("text", "digits", "`caption_column` is not given and no column holds text"),
        ("classes", None, "prompt needs a text-to-image model, got one that is told class_labels"),
        ("photos", "digits", "nll or prompt and --compare need a pipeline"),
    ],
)
def test_what_cannot_be_examined(text_run, trained_run, other_pictures, model, data, words):
    from ddpm_hf.data.captioned_digits import DIGITS

    folder = {"text": text_run, "classes": trained_run, "photos": other_pictures}[model]
    known = trained_run if model == "classes" else text_run
    settings = yaml.safe_load((known / "training_config.yaml").read_text())
    places = {"photos": str(other_pictures), "digits": str(DIGITS), None: None}
    with pytest.raises(ValueError, match=words):
        Evaluator(Request(model=str(folder), settings=settings, metrics=["prompt"], train_data_dir=places[data]))
