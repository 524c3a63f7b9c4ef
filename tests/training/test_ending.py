"""After the last step: the pipeline first, then what there is time for, and a word on the rest."""

import json
from functools import partial
from pathlib import Path

import pytest

from ddpm_hf import DDPMPipeline
from ddpm_hf.evaluation.evaluator import Evaluator
from ddpm_hf.evaluation.request import Request
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.training import ending, loop
from ddpm_hf.training.ending import Budget, Ending

HELD_OUT = "--holdout 8 --num_train_timesteps 60".split()


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "training_summary.json").read_text())


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_a_budget_is_spent_by_the_clock():
    now = [100.0]
    budget = Budget(60, clock=lambda: now[0])
    assert budget.fitting(1000, 0.5) == 120 and budget.part(0.25).fitting(1000, 0.5) == 30
    assert budget.fitting(7, 0.5) == 7 and budget.is_left()
    now[0] += 59
    assert budget.fitting(1000, 0.5) == 2 and budget.fitting(1000, 2) == 0 and budget.is_left()
    now[0] += 2
    assert budget.fitting(1000, 0.5) == 0 and not budget.is_left() and not budget.part(0.5).is_left()


@pytest.mark.processes
def test_processes_with_other_clocks_decide_as_the_main_one_does(tmp_path, on_two_processes):
    script = tmp_path / "script.py"
    script.write_text(
        "from accelerate import Accelerator\n"
        "from ddpm_hf.training.ending import Budget\n"
        "rank, now = Accelerator().process_index, [0]\n"
        "budget = Budget(60, clock=lambda: now[0])\n"
        "now[0] = 10 + 1000 * rank\n"
        "print(f'decided {budget.fitting(1000, 1)} {budget.is_left()}\\n', end='', flush=True)\n"
    )
    assert on_two_processes(str(script)).count("decided 50 True\n") == 2


def test_bits_per_dim_of_held_out_images_are_those_of_evaluate(train, tmp_path, capsys):
    """Of images of 10x12 pixels, of which training keeps what random crops may show."""
    folder = train(*HELD_OUT).output.path
    said = capsys.readouterr()
    assert "\r" not in said.err, "plain lines where there is no terminal"
    assert "the pipeline saved; still to come, in at most 60 s: bits/dim of held-out images, samples.png" in said.out
    (figure,) = ModelFolder.read(folder).metrics
    settings = ModelFolder.read(folder).settings
    request = Request(model=str(folder), settings=settings, nll_timesteps=10, output_dir=str(tmp_path / "report"))
    (expected,) = Evaluator(request).evaluate()
    assert figure.keys() == expected.keys() and (figure["n"], figure["terms_per_image"]) == (8, 10)
    for name, value in expected.items():
        assert figure[name] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), name
    assert f"| bits_per_dim | {figure['value']:.6g} |" in card_of(folder)
    assert summary_of(folder)["left_out"] == {}


def test_what_was_scored_after_the_last_step_is_not_measured_again(train):
    folder = train(*HELD_OUT, *"--eval_steps 6 --eval_num_images 5 --eval_inference_steps 3".split()).output.path
    (figure,) = ModelFolder.read(folder).metrics
    assert (figure["n"], figure["terms_per_image"]) == (5, 3)


def test_a_stream_is_measured_too(train):
    folder = train("--streaming", "--holdout", "0.3", "--num_train_timesteps", "60").output.path
    (figure,) = ModelFolder.read(folder).metrics
    assert figure["n"] >= 2 and figure["split"] == "held_out"


def test_without_held_out_images_the_card_says_so(train):
    text = card_of(train().output.path)
    assert "Nothing was measured, because no images were held out of training." in text and "Bits/dim" not in text


@pytest.mark.parametrize(
    ("seconds_of_a_call", "images", "steps"),
    # For 2 images, as the preview has, and for 4, as the chain and a batch have. The clock stands still at 60 s to go:
    # half of them are for bits/dim at 10 / 4 calls an image, 3/4 for the preview, 9/10 for the chain.
    [({2: 1.0, 4: 1.0}, 8, 45), ({2: 10.0, 4: 10.0}, None, None), ({2: 4.0, 4: 5.5}, 2, 11)],
    ids=["fewer steps", "nothing", "fewer images, and no time for the chain"],
)
def test_what_takes_too_long_is_cut_down_or_left_out_and_the_card_says_so(
    train, monkeypatch, capsys, seconds_of_a_call, images, steps
):
    monkeypatch.setattr(ending, "Budget", partial(Budget, clock=lambda: 0.0))
    monkeypatch.setattr(Ending, "_seconds_per_call", lambda ending, pipeline, count: seconds_of_a_call[count])
    trainer = train(*HELD_OUT, "--preview_inference_steps", "50")
    folder, summary = trainer.output.path, summary_of(trainer.output.path)
    assert summary["status"] == "finished"
    assert [figure["n"] for figure in ModelFolder.read(folder).metrics] == ([] if images is None else [images])
    assert (folder / "samples.png").is_file() == (steps is not None)
    if steps is not None:
        assert summary["samples"]["num_inference_steps"] == steps
    has_chain = steps == 45
    assert (folder / "denoising.gif").is_file() == has_chain == ("chain" in summary)
    missing = ["bits_per_dim"] * (images is None) + ["samples.png"] * (steps is None)
    assert list(summary["left_out"]) == missing + ["denoising.png"] * (not has_chain)
    said = capsys.readouterr().out
    for sentence in summary["left_out"].values():
        assert sentence in said and sentence in card_of(folder)


def test_a_slow_network_is_timed_on_one_image(start, monkeypatch):
    """So that finding out what fits takes no time that is not there."""
    trainer, calls = start(*HELD_OUT), []

    def measured(ending: Ending, pipeline: DDPMPipeline, images: int) -> float:
        calls.append(images)
        return 0.001 * images if len(calls) < 3 else 2.0

    monkeypatch.setattr(Ending, "_measured", measured)
    after = Ending(trainer.plan, trainer.accelerator, trainer.scorer, seconds=0)
    assert after._seconds_per_call(None, 16) == 0.016 and after._seconds_per_call(None, 16) == 32
    assert calls == [1, 16, 1]


def test_an_image_that_cannot_be_measured_costs_the_figure_and_not_the_run(train, monkeypatch):
    def fail(*arguments, **options):
        raise ValueError("row 3 (a.png): broken")

    monkeypatch.setattr("ddpm_hf.training.scoring.measure_nll", fail)
    folder = train(*HELD_OUT).output.path
    assert "Bits/dim was not measured: row 3 (a.png): broken." in card_of(folder)
    assert summary_of(folder)["status"] == "finished"


def test_a_run_killed_after_its_last_step_has_its_pipeline_and_gets_the_rest(train, start, monkeypatch, tmp_path):
    def die(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "draw_chain", die)
        with pytest.raises(KeyboardInterrupt):
            train(*HELD_OUT)
    folder = tmp_path / "out"
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    assert DDPMPipeline.from_pretrained(folder)(num_inference_steps=2).images
    assert summary_of(folder)["status"] == "running" and not (folder / "README.md").exists()
    train(*HELD_OUT)
    assert summary_of(folder)["status"] == "finished" and weights.read_bytes() == before
    assert "| bits_per_dim |" in card_of(folder) and "denoising.gif" in card_of(folder)
    assert start(*HELD_OUT) is None
