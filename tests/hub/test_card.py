"""The card says what the folder's files say, and is silent where they are."""

import ast
import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from ddpm_hf.hub.card import MARKER, duration, public_name, public_settings, render_card, template, write_card
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.hub.push import page_files
from ddpm_hf.hub.tasks import TASKS
from ddpm_hf.pipelines.fingerprint import weights_fingerprint
from ddpm_hf.pipelines.loading import PIPELINES, load_pipeline

METRICS = [
    {
        **{"name": "bits_per_dim", "value": 3.70125, "n": 500, "seed": 0, "dataset": "/home/alice/photos"},
        **{"split": "test", "sampler": None, "steps": None, "floor": None, "standard_error": 0.0125},
    },
    {
        **{"name": "frechet_distance", "value": 41.5, "n": 1000, "seed": 0, "dataset": "/home/alice/photos"},
        **{"split": "train", "sampler": "dpm", "steps": 20, "floor": 12.25, "features": "a | b"},
        **{"interval_low": 30.5, "interval_high": 52.5, "network_calls": 20, "standard_error": None},
    },
]
SUMMARY = {
    **{"status": "finished", "steps": 300, "step": 300, "global_batch_size": 16, "parameters": 1234567},
    **{
        "dataset": "/home/alice/photos",
        "training_images": 4500,
        "unreadable": ["row 3 (/home/alice/photos/a cut\nfile.png): broken: (oh): well", "row 17: broken"],
    },
    **{"training_seconds": 3725.0, "images_per_second": 1288.6, "final_loss": 0.03125, "precision": "bf16"},
    **{"hardware": ["1 x Some GPU"], "peak_memory_bytes": 2_340_000_000, "software": {"torch": "9.9"}},
    "samples": {"count": 16, "step": 300, "seed": 5, "num_inference_steps": 50, "ema": True, "classes": None},
}
SUMMARY["chain"] = {**SUMMARY["samples"], "count": 4, "shown_steps": [1, 25, 50]}
SETTINGS = {
    **{"train_data_dir": "/home/alice/photos", "dataset_name": None, "init_from": None, "learning_rate": 0.000321},
    **{"output_dir": "/home/alice/out", "cache_dir": "/scratch/cache", "seed": 5},
    "recorded": {"dataset": "/home/alice/photos", "holdout": {"seed": 5}},
}
PICTURES = ("samples.png", "denoising.png", "denoising.gif", "loss.png")


@pytest.fixture
def run_folder(tiny_pipeline, tmp_path):
    """A folder as a run leaves it."""

    def make(summary=SUMMARY, settings=SETTINGS, metrics=METRICS, **kind) -> Path:
        folder = tmp_path / "photos-ddpm"
        tiny_pipeline(**kind).save_pretrained(folder)
        for name in PICTURES:
            Image.new("L", (4, 4)).save(folder / name)
        (folder / "training_summary.json").write_text(json.dumps(summary))
        (folder / "training_config.yaml").write_text(yaml.safe_dump(settings))
        if metrics is not None:
            (folder / "evaluation.json").write_text(json.dumps({"schema": 1, "metrics": metrics}))
        return folder

    return make


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_metadata_tells_what_the_model_is_and_every_metric(run_folder):
    card = ModelCard.load(write_card(run_folder(), "alice/photos-ddpm", "apache-2.0"))
    assert card.data.license == "apache-2.0" and card.data.library_name == "diffusers"
    assert card.data.pipeline_tag == "unconditional-image-generation" and "ddpm" in card.data.tags
    assert card.data.datasets is None  # a folder is no data set of the Hub
    results = card.data.eval_results
    assert [(r.metric_type, r.metric_value) for r in results] == [(m["name"], m["value"]) for m in METRICS]
    assert [(r.dataset_name, r.dataset_split) for r in results] == [("photos", "test"), ("photos", "train")]
    assert results[0].metric_args == {"n": 500, "seed": 0, "standard_error": 0.0125}
    assert results[1].metric_args["floor"] == 12.25 and results[1].metric_args["steps"] == 20


def test_data_sets_and_starting_points_of_the_hub_are_linked(run_folder):
    folder = run_folder(settings={"dataset_name": "user/photos", "init_from": "google/ddpm-cat-256"})
    card = ModelCard.load(write_card(folder))
    assert card.data.datasets == ["user/photos"] and card.data.base_model == "google/ddpm-cat-256"
    assert card.data.license is None and "license" not in yaml.safe_load(card.content.split("---")[1])


def test_every_figure_of_the_run_stands_in_the_text(run_folder):
    text = render_card(ModelFolder.read(run_folder()), "alice/photos-ddpm").text
    for words in (
        *(
            "4,500 images of `photos`",
            "300 optimizer steps with a batch size of 16",
            "1,234,567 parameters",
            "torch 9.9",
        ),
        *("learning_rate: 0.000321", "1 h 02 min", "1 x Some GPU", "bf16", "1,288.6", "2.34 GB"),
        *("| bits_per_dim | 3.70125 | photos (test) | 0.0125 |  | 500 | 0 |", "| dpm | 20 | 30.5 … 52.5 |"),
        *(
            "| 12.25 | 1000 | 0 |",
            "- frechet_distance: features a \\| b, network calls 20.",
            "The floor is the score of the same number of real training images",
        ),
        *("seed 5, in 50 of 1000 denoising steps", "moving average", "4 images after 1, 25, 50 steps"),
        *(
            "It ends at 0.0312",
            "2 images could not be read and were left out of training: row 3 `a cut file.png`, row 17.",
        ),
    ):
        assert words in text, words
    assert "{{" not in text and "{%" not in text and "None" not in text
    assert "/home" not in text and "/scratch" not in text


def test_pictures_are_there_and_have_words_for_those_who_do_not_see_them(run_folder):
    folder = run_folder()
    pictures = re.findall(r"!\[(.*?)\]\((.*?)\)", ModelCard.load(write_card(folder)).text)
    assert {name for _, name in pictures} == set(PICTURES)
    for words, name in pictures:
        assert len(words.split()) > 5 and (folder / name).stat().st_size > 0


def test_pictures_of_an_evaluation_go_along_with_their_figures_and_training_images_stay(run_folder):
    folder = run_folder()
    (folder / "evaluation").mkdir()
    for name in ("comparison", "nll_terms", "closest_pixels", "closest_pixels_distances"):
        Image.new("L", (4, 4)).save(folder / "evaluation" / f"{name}.png")
    text = ModelCard.load(write_card(folder)).text
    # There is a figure of samples, but none of the bound's terms or of distances.
    expected = {"evaluation/comparison.png"}
    assert {name for name in re.findall(r"\]\((.*?)\)", text) if name.startswith("evaluation")} == expected
    assert {name for name in page_files(ModelFolder.read(folder)) if name.startswith("evaluation/")} == expected
    metrics = [*METRICS, {**METRICS[1], "name": "copied_share_pixels", "median_distance": 4.0}]
    text = ModelCard.load(write_card(run_folder(metrics=metrics))).text
    assert "![Distance of samples" in text and "closest_pixels.png" not in text


def test_ceiling_and_chance_stand_beside_what_a_program_judges(run_folder):
    judged = {"name": "prompt_accuracy_unseen", "value": 0.75, "ceiling": 0.97, "chance": 0.004, "ceiling_n": 1000}
    judged |= {"n": 250, "dataset": "captioned digits", "split": "test", "interval_low": 0.69, "interval_high": 0.8}
    text = ModelCard.load(write_card(run_folder(metrics=[judged]))).text
    assert "| prompt_accuracy_unseen | 0.75 | captioned digits (test) | 0.97 | 0.004 | 250 | 0.69 … 0.8 |" in text
    assert "The ceiling is what the program that judges the samples says of real pictures" in text
    assert "The floor" not in text


def test_nothing_is_said_of_a_run_that_left_nothing(tiny_pipeline, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    text = ModelCard.load(write_card(tmp_path)).text
    headings = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert headings == ["How to use it", "What was measured", "Limits", "Citation"]
    assert "The quality of the images was not measured." in text and "![" not in text and "trained on" not in text


def test_how_well_prompts_are_followed_stands_beside_its_ceiling_and_chance(tiny_text_pipeline, tmp_path):
    tiny_text_pipeline().save_pretrained(tmp_path)
    followed = {"name": "prompt_accuracy_unseen", "value": 0.951, "ceiling": 0.987, "chance": 0.0041, "n": 1000}
    report = {
        "schema": 1,
        "metrics": [followed | {"interval_low": 0.936, "interval_high": 0.963, "dataset": "digits"}],
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(report))
    card = ModelCard.load(write_card(tmp_path))
    for words in ("prompt_accuracy_unseen", "0.951", "ceiling", "0.987", "chance", "0.0041", "0.936 … 0.963"):
        assert words in card.text, words
    (result,) = card.data.eval_results
    assert result.task_type == "text-to-image" and result.metric_args["ceiling"] == 0.987


def test_a_checkpoint_says_that_the_run_goes_on(run_folder):
    summary = {**SUMMARY, "status": "running", "step": 120, "steps": 1300}
    text = render_card(ModelFolder.read(run_folder(summary)), "alice/x").text
    assert "step 120 of 1,300" in text and "120 optimizer steps" in text
    assert "step 300 of" not in render_card(ModelFolder.read(run_folder()), "alice/x").text


@pytest.mark.parametrize(
    ("kind", "stock_call", "fewer"),
    [
        ({}, "pipe()", True),
        ({"num_train_timesteps": 300}, "pipe(num_inference_steps=300)", True),
        ({"num_classes": 2}, "unet(x, t, labels)", True),
        ({"resolution": 9, "num_train_timesteps": 300}, "scheduler.set_timesteps(300)", True),
        ({"learned_variance": True}, "pipe()", True),
        ({"learned_variance": True, "channels": 1}, "pipe()", False),
    ],
)
def test_the_examples_suit_the_model(run_folder, kind, stock_call, fewer):
    text = ModelCard.load(write_card(run_folder(**kind), "alice/photos-ddpm")).text
    blocks = python_blocks(text)
    assert len(blocks) == 2 + fewer and all(ast.parse(block) for block in blocks)
    assert stock_call in blocks[0] and '"alice/photos-ddpm"' in blocks[0] and "trust_remote_code" not in text
    if "learned_variance" in kind:
        working = re.search(r"own pipeline these work: (.*?)\.", text)[1]
        solvers = ", DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler"
        assert working == "DDPMScheduler" + solvers * fewer


def test_an_authors_own_card_stays_and_a_licence_once_given_too(run_folder):
    folder = run_folder()
    file = write_card(folder, "alice/photos-ddpm", "mit")
    assert ModelCard.load(write_card(folder, "alice/photos-ddpm")).data.license == "mit"
    file.write_text(file.read_text().replace(MARKER, "mine"))
    mine = file.read_text()
    write_card(folder, "alice/other")
    assert file.read_text() == mine


def test_figures_of_other_weights_are_left_out(run_folder):
    folder = run_folder()
    network = load_pipeline(str(folder)).unet
    for weights, shown in ((weights_fingerprint(network), True), ("0" * 32, False)):
        report = {"schema": 1, "weights": weights, "metrics": METRICS}
        (folder / "evaluation.json").write_text(json.dumps(report))
        card = ModelCard.load(write_card(folder))
        assert ("3.70125" in card.text) == shown == (card.data.eval_results is not None)
        assert ("evaluation.json" in page_files(ModelFolder.read(folder))) == shown


def test_paths_of_this_machine_do_not_leave_it(tmp_path):
    assert public_settings(SETTINGS) == {
        **{"train_data_dir": "photos", "dataset_name": None, "init_from": None, "learning_rate": 0.000321, "seed": 5},
        "recorded": {"dataset": "photos", "holdout": {"seed": 5}},
    }
    networks = {"eval_clip_model": "/home/ann/clip", "text_encoder": "/home/ann/t5", "eval_extractor": "digits"}
    assert public_settings(networks) == {"eval_clip_model": "clip", "text_encoder": "t5", "eval_extractor": "digits"}
    for kind in ("inception", "transformers"):
        shown = public_settings({"eval_extractor": f"{kind}:/home/ann/net"})
        assert shown == {"eval_extractor": f"{kind}:net"}
    assert public_name("user/photos") == "user/photos" and public_name("digits") == "digits"
    assert public_name("../data/photos") == "photos" and public_name(str(tmp_path)) == tmp_path.name


def test_durations_are_said_as_people_say_them():
    said = [duration(seconds) for seconds in (0.71, 59.9, 245.4, 3600, 7380, 360000)]
    assert said == ["0.7 s", "59.9 s", "4 min 05 s", "1 h 00 min", "2 h 03 min", "100 h 00 min"]


def test_every_pipeline_that_can_be_loaded_has_a_card():
    assert TASKS.keys() == PIPELINES.keys()


def test_the_template_is_the_file_at_the_top_level():
    assert template() == (Path(__file__).parents[2] / "model_card.md").read_text(encoding="utf-8")
