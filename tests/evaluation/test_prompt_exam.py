"""Whether samples follow their captions: a text-to-image model asked for captioned digits, by evaluate.py."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from running import load_script
from texts import Copyist, begin_text_run, settings_of

from ddpm_hf.conditions.picture import Picture
from ddpm_hf.data.captioned_digits import DIGITS, captioned_digits
from ddpm_hf.data.sources import load_images
from ddpm_hf.evaluation.evaluator import Evaluator
from ddpm_hf.evaluation.exams import exams_for
from ddpm_hf.evaluation.request import Request
from ddpm_hf.evaluation.samples import Samples, words_for
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.pipelines.loading import load_pipeline

NAMES = [
    f"prompt_{name}_{group}" for group in ("seen", "unseen") for name in ("accuracy", "digit", "colour", "ground")
]


@pytest.fixture
def cascade(text_run, tmp_path):
    """The same with an untrained super-resolution of Imagen to 32x32."""
    folder = shutil.copytree(text_run, tmp_path / "cascade")
    (folder / "training_summary.json").write_text('{"status": "finished"}')
    flags = "--system imagen --stage super-resolution".split()
    system = begin_text_run(folder / "upsampler", *flags)[0].system
    system.pipeline(system.network).save_pretrained(folder / "upsampler")
    return folder


@pytest.fixture
def photos(tmp_path):
    """Pictures with captions of their own."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(3):
        Image.new("RGB", (16, 16), (k, k, k)).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(f"photo number {k}")
    return folder


def test_an_untrained_model_is_at_chance(text_run, tmp_path, capsys):
    flags = "--metrics prompt --num_images 200 --num_inference_steps 2 --guidance_scale 3".split()
    flags += "--guidance_interval 0 0.5 --guidance_rescale 0.5".split()
    load_script("evaluate.py").main([str(text_run), *flags, "--output_dir", str(tmp_path)])
    entries = json.loads((tmp_path / "evaluation.json").read_text())["metrics"]
    assert [entry["name"] for entry in entries] == NAMES
    for entry in entries:
        error = (entry["chance"] * (1 - entry["chance"]) / entry["n"]) ** 0.5
        assert abs(entry["value"] - entry["chance"]) <= 4 * error + 1 / entry["n"]
        assert entry["ceiling"] > 0.95 and entry["ceiling_n"] == 1000
        assert (entry["guidance_interval"], entry["guidance_rescale"], entry["network_calls"]) == ([0, 0.5], 0.5, 3)
        about = {key: entry[key] for key in ("dataset", "split", "steps", "seed", "sampler", "guidance_scale")}
        assert about == {
            **{"dataset": "captioned digits", "split": "test", "steps": 2, "seed": 0, "sampler": "ddpm"},
            "guidance_scale": 3.0,
        }
    assert entries[0]["n"] + entries[4]["n"] == 200
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["metric", "value", "ceiling", "chance", "n", "sampler", "data"]
    assert first.startswith("prompt_accuracy_seen ") and " to " in first


def test_reconstructions_are_judged_by_the_captions_of_their_originals(text_run):
    request = Request(model=str(text_run), settings=settings_of(text_run), metrics=["prompt"], num_images=300)
    reference = Evaluator(request).reference
    asked = words_for([Picture(shape=(3, 16, 16))], reference, 300)
    places = {"cache_dir": None, "clip_model": None, "device": torch.device("cpu")}
    (exam,) = exams_for(["prompt"], "--metrics", asked, reference, **places)
    perfect = ((torch.stack(asked["image"]) + 1) * 127.5).round().to(torch.uint8).numpy()
    entries = exam.measure(Samples(images=perfect))
    assert [entry["name"] for entry in entries] == NAMES
    assert all(entry["value"] > 0.93 and entry["chance"] < 0.3 for entry in entries)


def test_real_pictures_of_the_captions_asked_for_are_at_the_ceiling(text_run):
    request = Request(model=str(text_run), settings=settings_of(text_run), metrics=["prompt"], num_images=600)
    evaluator = Evaluator(request)
    real = evaluator.pipeline
    evaluator.pipeline = Copyist(**real.components)
    found = {entry["name"]: entry for entry in evaluator._measure()}
    for name in NAMES:
        ceiling, n = found[name]["ceiling"], found[name]["n"]
        assert abs(found[name]["value"] - ceiling) <= 4 * (ceiling * (1 - ceiling) / n) ** 0.5 + 1 / n
    assert found["prompt_accuracy_unseen"]["chance"] < 0.02
    # Sample k is asked for the first caption of real image k, and those beyond the last start over.
    asked = words_for(real.conditions, evaluator.reference, 600)["prompt"]
    rows = np.concatenate([batch["rows"] for batch in evaluator.reference.batches(256)])
    captions = load_images(train_data_dir=captioned_digits(), dataset_split="test").rows["caption"]
    assert asked == [captions[row][0] for row in rows[:600].tolist()]
    request.max_images, request.num_images = 30, 90
    again = Evaluator(request)
    again.pipeline = evaluator.pipeline
    accuracy = [entry for entry in again._measure() if "accuracy" in entry["name"]]
    assert sum(entry["n"] for entry in accuracy) == 90 and min(entry["value"] for entry in accuracy) > 0.8


def test_small_and_enlarged_pictures_are_judged_side_by_side(cascade, capsys):
    main = load_script("evaluate.py").main
    flags = [str(cascade), *"--metrics prompt --num_images 60 --num_inference_steps 2 --guidance_scale 3".split()]
    thresholding = ["--thresholding", "--sample_max_value", "2"]
    main([*flags, *thresholding, "--aug_level", "30"])
    both = ModelFolder.read(cascade).metrics
    main([*flags, *thresholding, "--stage", "base"])
    assert ModelFolder.read(cascade).metrics == both, "the base draws the pictures that were enlarged"
    table = capsys.readouterr().out.splitlines()[-17:-1]
    assert [", upsampled" in row for row in table] == [True] * 8 + [False] * 8
    entries = ModelFolder.read(cascade).metrics
    assert [entry["name"] for entry in entries] == [*NAMES, *NAMES]
    assert [entry["network_calls"] for entry in entries[::8]] == [2 * 2 + 2, 2 * 2], "the upsampler is not guided"
    names = ("dynamic_thresholding_ratio", "sample_max_value", "noise_level")
    assert [entries[0][name] for name in names] == [0.995, 2.0, 30] and "noise_level" not in entries[8]
    main([str(cascade / "upsampler"), *flags[1:-2], "--aug_level", "0"])  # alone, on real pictures
    alone = ModelFolder.read(cascade / "upsampler").metrics
    assert [entry["name"] for entry in alone] == NAMES and alone[0]["noise_level"] == 0
    for refused in (["40"], ["3", "--stage", "base"], ["3", "--metrics", "nll", "--thresholding"]):
        with pytest.raises(SystemExit):
            main([*flags, "--aug_level", *refused])
    with pytest.raises(SystemExit):
        main([str(cascade), *thresholding])
    refused = capsys.readouterr().err
    assert "--aug_level must be from 0 to 39, got 40" in refused
    assert refused.count("--aug_level must be left out with --stage base or --metrics nll, which measure") == 2
    assert "--thresholding, --sample_max_value must be left out with --metrics nll, which draws nothing" in refused
    assert entries[0]["judge"] == entries[8]["judge"] and entries[0]["dataset"] == "captioned digits"

    upsampler = load_pipeline(str(cascade / "upsampler"))
    torch.nn.init.zeros_(upsampler.unet.conv_out.weight)
    upsampler.save_pretrained(cascade / "upsampler")
    assert ModelFolder.read(cascade).metrics == entries[8:], "figures of other weights are not shown"
    request = Request(model=str(cascade), settings=settings_of(cascade), metrics=["nll"])
    assert Evaluator(request).reference.size == (16, 16)
    request.metrics = ["nll", "prompt"]
    with pytest.raises(ValueError, match="--metrics nll is of one network: measure it alone, or add --stage base"):
        Evaluator(request)


def test_samples_of_a_text_model_are_compared_with_its_own_data(text_run, tmp_path):
    """And not with the digits that a run without captions trains on when no data set is named."""
    for k in range(2):
        Image.new("RGB", (16, 16), (k, 0, 0)).save(tmp_path / f"{k}.png")
    request = Request(model=str(tmp_path), settings=settings_of(text_run), metrics=["frechet"], extractor="digits")
    request.resamples = 0
    reference = Evaluator(request).reference
    assert (reference.name, reference.split, reference.count) == ("captioned digits", "test", 2000)


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        ("text", "photos", "--metrics prompt needs captions of captioned digits, .*has others: 'photo number .'$"),
        ("text", "digits", "`caption_column` is not given and no column holds text"),
        ("classes", None, "--metrics prompt needs a text-to-image model, got one that is told class_labels"),
        ("photos", "digits", "--metrics nll, prompt, clip, reconstruction or retrieval and --compare need a pipeline"),
    ],
)
def test_what_cannot_be_examined(text_run, trained_run, photos, model, data, words):
    folder = {"text": text_run, "classes": trained_run, "photos": photos}[model]
    settings = settings_of(trained_run if model == "classes" else text_run)
    place = {"photos": str(photos), "digits": str(DIGITS), None: None}[data]
    with pytest.raises(ValueError, match=words):
        Evaluator(Request(model=str(folder), settings=settings, metrics=["prompt"], train_data_dir=place))


def test_contenders_are_told_the_same(text_run, trained_run, tmp_path):
    model = shutil.copytree(trained_run, tmp_path / "model")
    config = model / "unet" / "config.json"
    config.write_text(config.read_text().replace('"sample_size": 8', '"sample_size": 16'))  # as large as the other's
    with pytest.raises(ValueError, match="--compare .* is told captions, but .* is not"):
        Evaluator(Request(model=str(model), metrics=["frechet"], compare=[str(text_run)]))
