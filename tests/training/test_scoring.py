"""Scores on the way: the same as evaluate.py finds, without a trace in the training, and the best pipeline is kept."""

import csv
import json
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from running import TINY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_loop import assert_equal_weights, stop_after, weights_of
from texts import Copyist, begin_text_run, save_clip

from ddpm_hf import DDPMPipeline
from ddpm_hf.evaluation.evaluator import Evaluator
from ddpm_hf.evaluation.request import Request
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.training.scoring import Scorer

NLL = "--holdout 8 --eval_steps 2 --eval_num_images 6 --eval_inference_steps 3 --num_train_timesteps 30".split()
DISTANCES = [*NLL, "--eval_metrics", "nll", "frechet", "kid", "is", "--eval_extractor", "digits"]


def scores_in(folder) -> list[dict[str, float]]:
    with (folder / "scores.csv").open() as lines:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(lines)]


def best_of(folder) -> dict:
    return json.loads((folder / "best" / "best.json").read_text())


@pytest.mark.parametrize("flags", [[], ["--no_use_ema", "--dropout", "0.3", "--random_flip"]], ids=["EMA", "no EMA"])
def test_scoring_leaves_no_trace_in_the_training(train, tmp_path, flags):
    process = ["--holdout", "8", "--num_train_timesteps", "30", *flags]
    plain = train(*process, output_dir=tmp_path / "plain", ending=False)
    folder = tmp_path / "scored"
    scored = train(*DISTANCES, *flags, "--report_to", "tensorboard", output_dir=folder, ending=False)
    if flags:
        assert scored.ema is None
        for name, value in plain.plan.system.network.unet.state_dict().items():
            assert torch.equal(value, scored.plan.system.network.unet.state_dict()[name])
    else:
        assert_equal_weights(plain, scored)
    rows = scores_in(folder)
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert list(rows[0]) == [
        *("step", "bits_per_dim", "frechet_distance", "kernel_distance", "class_score"),
        *("frechet_distance_floor", "kernel_distance_floor", "class_score_floor"),
    ]
    assert len({row["frechet_distance"] for row in rows}) == 3
    assert len({row["frechet_distance_floor"] for row in rows}) == 1  # the real images stay what they are
    assert (folder / "scores.png").is_file() and not (folder / "best").exists()
    scored.accelerator.end_training()
    events = EventAccumulator(str(folder / "logs" / "ddpm_hf"))
    events.Reload()
    for name in ("bits_per_dim", "frechet_distance", "frechet_distance_floor"):
        told = [(event.step, event.value) for event in events.Scalars(f"eval/{name}")]
        assert told == [(row["step"], pytest.approx(row[name], rel=1e-5)) for row in rows]


def test_the_best_pipeline_is_kept_and_evaluate_agrees_with_its_score(train, capsys):
    flags = "--save_best_by bits_per_dim --learning_rate 0.05 --lr_scheduler constant --ema_decay 0.5"
    folder = train(*DISTANCES, *flags.split(), ending=False).output.path
    rows = scores_in(folder)
    best = min(rows, key=lambda row: row["bits_per_dim"])
    record = best_of(folder)
    assert record["step"] == best["step"]
    assert record["value"] == pytest.approx(best["bits_per_dim"], rel=1e-5)
    assert (record["name"], record["n"], record["split"]) == ("bits_per_dim", 6, "held_out")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(said) == 3 and said[0].endswith("kept in best/")
    # The folder is a whole pipeline, of which evaluate.py finds the same.
    settings = ModelFolder.read(folder / "best").settings
    common = {"max_images": 6, "num_images": 6, "num_inference_steps": 3, "nll_timesteps": 3, "resamples": 0}
    request = Request(model=str(folder / "best"), settings=settings, metrics=["nll", "frechet"], **common)
    request.extractor, request.batch_size = "digits", 4
    nll, distance = Evaluator(request).evaluate()
    assert nll["value"] == pytest.approx(best["bits_per_dim"], rel=1e-5)
    assert distance["value"] == pytest.approx(best["frechet_distance"], rel=1e-4)
    assert distance["floor"] == pytest.approx(best["frechet_distance_floor"], rel=1e-4)


def test_what_is_better_depends_on_the_figure(train, tmp_path):
    for metric, name, choose in (("is", "class_score", max), ("kid", "kernel_distance", min)):
        flags = ["--eval_metrics", metric, "--save_best_by", name]
        folder = train(*DISTANCES, *flags, output_dir=tmp_path / name, ending=False).output.path
        rows = scores_in(folder)
        assert best_of(folder)["step"] == choose(rows, key=lambda row: row[name])["step"]


def test_following_captions_is_scored_and_more_is_better(tmp_path, capsys):
    clip = save_clip(tmp_path.with_name("clip"))
    flags = "--max_train_steps 3 --eval_steps 1 --eval_metrics prompt clip --eval_num_images 200"
    flags += f" --eval_inference_steps 1 --eval_clip_model {clip} --save_best_by prompt_accuracy_unseen"
    plan, output = begin_text_run(tmp_path, *flags.split())
    scorer = Scorer(plan, Accelerator())
    scorer.resume(output, 0)
    untrained = plan.system.pipeline(plan.system.network)
    for step, pipeline in enumerate((untrained, Copyist(**untrained.components), untrained), 1):
        scorer.score(pipeline, step)
    rows = scores_in(tmp_path)
    # The second one gives real pictures of what was asked for.
    values = [row["prompt_accuracy_unseen"] for row in rows]
    assert values[0] == values[2] < 0.05 and values[1] > 0.9 and best_of(tmp_path)["step"] == 2
    assert all(row["prompt_digit_seen_ceiling"] > 0.95 and row["prompt_digit_seen_chance"] < 0.3 for row in rows)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert lines[1].count("prompt_") == 2 and "ceiling 0.9" in lines[1] and "chance 0.0" in lines[1]
    assert all(f" {name} " in lines[1] for name in ("clip_score", "clip_recall_at_1", "clip_median_rank"))
    assert rows[0]["clip_score"] == rows[2]["clip_score"] != rows[1]["clip_score"]
    # What the second one gives are real pictures of the same captions, if not always the same pictures.
    assert rows[1]["clip_score"] == pytest.approx(rows[1]["clip_score_ceiling"], rel=0.1)
    assert len({(row["clip_score_ceiling"], row["clip_recall_at_1_chance"]) for row in rows}) == 1
    assert (tmp_path / "scores.png").is_file()
    # The last one's are those of the run, in evaluate.py's report.
    report = json.loads((tmp_path / "evaluation.json").read_text())["metrics"]
    assert {entry["name"]: pytest.approx(entry["value"], rel=1e-5) for entry in report}.items() <= rows[2].items()
    for name, values in (("clip_score", (20, 22, 21)), ("clip_median_rank", (5, 3, 4))):
        scorer.plan, scorer.best = replace(plan, config=plan.config.with_values({"save_best_by": name})), None
        for step, value in enumerate(values, 1):
            scorer._keep_if_best(untrained, [{"name": name, "value": value}], step)
        assert best_of(tmp_path)["step"] == 2


def test_scoring_leaves_a_text_encoder_in_training(tmp_path):
    flags = "--no_use_ema --eval_steps 1 --eval_num_images 2 --eval_inference_steps 1"
    plan, output = begin_text_run(tmp_path, *flags.split())
    scorer, network = Scorer(plan, Accelerator()), plan.system.network.train()
    scorer.resume(output, 0)
    scorer.score(plan.system.pipeline(network), 1)
    assert network.text_encoder.training and network.unet.training


def test_a_killed_run_knows_its_best(train, start, tmp_path):
    flags = [*NLL, "--save_best_by", "bits_per_dim", "--checkpointing_steps", "2", "--checkpoints_total_limit", "1"]
    unbroken = train(*flags, output_dir=tmp_path / "unbroken", ending=False)
    folder = tmp_path / "broken"
    # Killed after the scores of step 4 are written and before its checkpoint is.
    broken = start(*flags, output_dir=folder)
    checkpoint = broken._checkpoint
    broken._checkpoint = lambda: checkpoint() if broken.step < 4 else stop()
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    assert [row["step"] for row in scores_in(folder)] == [2, 4] and (folder / "checkpoint-2").is_dir()
    resumed = train(*flags, output_dir=folder, ending=False)
    assert_equal_weights(unbroken, resumed)
    assert scores_in(folder) == scores_in(tmp_path / "unbroken")
    assert best_of(folder) == best_of(tmp_path / "unbroken")
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-6"]
    kept, expected = (DDPMPipeline.from_pretrained(place / "best").unet for place in (folder, tmp_path / "unbroken"))
    torch.testing.assert_close(kept.state_dict(), expected.state_dict(), rtol=0, atol=0)


def stop():
    raise KeyboardInterrupt


def test_a_better_value_of_before_the_kill_stays_the_best(train, start, tmp_path):
    flags = [*NLL, "--save_best_by", "bits_per_dim", "--checkpointing_steps", "2"]
    first = start(*flags)
    stop_after(first, 3)
    folder = first.output.path
    record = best_of(folder)
    assert record["step"] == 2
    (folder / "best" / "best.json").write_text(json.dumps({**record, "value": -1.0}))
    before = (folder / "best" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    # A kill while the old one is removed leaves the new pipeline beside what is left of it.
    (folder / "best").rename(folder / ".best.partial")
    (folder / "best" / "unet").mkdir(parents=True)
    train(*flags, ending=False)
    assert best_of(folder)["value"] == -1.0 and best_of(folder)["step"] == 2
    assert (folder / "best" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == before
    assert not (folder / ".best.partial").exists()


def test_a_best_value_that_was_measured_otherwise_is_no_rival(train, start):
    flags = [*NLL, "--save_best_by", "bits_per_dim", "--checkpointing_steps", "2"]
    first = start(*flags)
    stop_after(first, 3)
    folder = first.output.path
    (folder / "best" / "best.json").write_text(json.dumps({**best_of(folder), "value": -1.0}))
    other = "--eval_num_images 5 --eval_metrics nll is --eval_extractor digits"
    train(*flags, *other.split(), ending=False)
    assert best_of(folder)["n"] == 5 and best_of(folder)["value"] > 0 and best_of(folder)["step"] > 2
    # The table goes on with more columns, and the line of before has nothing in them.
    rows = scores_in(folder)
    assert [("class_score" in row, row["step"]) for row in rows] == [(False, 2), (True, 4), (True, 6)]


def test_the_best_pipeline_of_a_run_with_ema_is_the_average(train):
    flags = "--eval_steps 6 --save_best_by bits_per_dim --ema_decay 0.5"
    trainer = train(*NLL, *flags.split(), ending=False)
    kept = DDPMPipeline.from_pretrained(trainer.output / "best").unet.state_dict()
    for name, value in trainer.ema.model.unet.state_dict().items():
        assert torch.equal(kept[name], value)
    assert any(not torch.equal(kept[name], value) for name, value in weights_of(trainer).items())


@pytest.mark.processes
def test_two_processes_score_as_one_does(train, image_folder, tmp_path, on_two_processes):
    flags = [*DISTANCES, *"--save_best_by frechet_distance --dropout 0 --learning_rate 1e-4 --eval_steps 3".split()]
    # Features of the classifier, which both must have from the same weights.
    alone = train(*flags, output_dir=tmp_path / "one", ending=False).output.path
    data = ["--train_data_dir", str(image_folder), "--output_dir", str(tmp_path / "two")]
    on_two_processes("train.py", *TINY, *flags, *data, "--train_batch_size", "2")
    for one, two in zip(scores_in(alone), scores_in(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-2, abs=1e-3)  # samples may differ by 1 of 255
    best = min(row["frechet_distance"] for row in scores_in(tmp_path / "two"))
    assert best_of(tmp_path / "two")["value"] == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--eval_steps 2 --holdout 0", "--holdout 0"),
        ("--holdout 8 --eval_steps 2 --eval_metrics frechet", "--eval_extractor must be given"),
        ("--holdout 8 --eval_steps 2 --eval_metrics frechet --eval_extractor vgg", "must be one of digits, inception"),
        (
            "--holdout 8 --eval_steps 2 --save_best_by fid",
            "--save_best_by must be one of bits_per_dim with --eval_metrics nll, got 'fid'",
        ),
        (
            "--holdout 5 --eval_steps 2 --eval_metrics prdc --eval_extractor digits",
            "prdc need at least 6 images, got",
        ),
        (
            "--holdout 8 --eval_steps 2 --eval_metrics prompt --class_conditional",
            "--eval_metrics prompt needs a text-to-image model, got one that is told class_labels",
        ),
    ],
)
def test_what_cannot_be_scored_is_found_before_the_first_step(start, tmp_path, flags, words):
    with pytest.raises(ValueError, match=words):
        start(*flags.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--save_best_by bits_per_dim", "--save_best_by bits_per_dim needs --eval_steps"),
        (
            "--eval_metrics fid",
            "must be among nll, frechet, kid, prdc, is, prompt, clip, reconstruction, retrieval, prior, got fid",
        ),
        ("--eval_num_images 1", "--eval_num_images must be at least 2, got 1"),
    ],
)
def test_contradictions_are_one_line(start, capsys, flags, words):
    with pytest.raises(SystemExit):
        start(*flags.split())
    assert words in capsys.readouterr().err
