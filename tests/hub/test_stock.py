"""What the card says of stock diffusers is what stock diffusers does; the one-file pipeline draws what ours draws."""

import re

import diffusers
import numpy as np
import pytest
import torch

from ddpm_hf.hub.card import render_card
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.hub.standalone import StandaloneDDPMPipeline
from ddpm_hf.hub.stock import betas_argument, fast_samplers, needs_standalone, obstacles, write_standalone
from ddpm_hf.sampling.samplers import make_sampler

KINDS = {
    "grey": {"channels": 1},
    "colour": {},
    "classes": {"num_classes": 3},
    "odd size": {"resolution": [7, 5]},
    "learned range, grey": {"channels": 1, "learned_variance": True},
    "learned range, colour": {"learned_variance": True},
    "learned range, transparent": {"channels": 4, "learned_variance": True},
    "learned, colour": {"learned_variance": True, "variance_type": "learned"},
    "log of the large variance": {"variance_type": "fixed_large_log"},
}
CAN_DRAW = {"grey", "colour", "learned range, grey", "learned range, colour", "learned range, transparent"}
SAMPLERS = ["DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DDIMScheduler"]


def draws(pipeline) -> bool:
    """Whether a pipeline gives images at all: no exception, nothing but numbers."""
    try:
        images = pipeline(2, torch.Generator().manual_seed(0), 6, "np").images
    except (RuntimeError, ValueError, TypeError):
        return False
    return bool(np.isfinite(images).all())


@pytest.fixture(scope="module")
def stock_pipeline():
    def load(folder) -> diffusers.DDPMPipeline:
        pipeline = diffusers.DDPMPipeline.from_pretrained(folder)
        assert type(pipeline.unet) is diffusers.UNet2DModel and type(pipeline.scheduler) is diffusers.DDPMScheduler
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return load


@pytest.mark.parametrize("kind", KINDS)
def test_obstacles_are_those_of_stock_diffusers(tiny_pipeline, tmp_path, stock_pipeline, kind):
    tiny_pipeline(**KINDS[kind]).save_pretrained(tmp_path)
    model = ModelFolder.read(tmp_path)
    assert draws(stock_pipeline(tmp_path)) == (not obstacles(model)) == (kind in CAN_DRAW)
    write_standalone(model)
    assert (tmp_path / "pipeline.py").is_file() == needs_standalone(model)
    if kind in ("classes", "odd size"):
        return  # no sampler helps there
    for name in SAMPLERS:
        pipeline = stock_pipeline(tmp_path)
        pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
        assert draws(pipeline) == (name in fast_samplers(model)), name


@pytest.mark.parametrize("beta_schedule", ["linear", "sigmoid"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_fewer_steps_in_stock_are_of_the_trained_process(
    tiny_pipeline, tmp_path, stock_pipeline, monkeypatch, beta_schedule, zero_snr
):
    process = {"beta_schedule": beta_schedule, "rescale_betas_zero_snr": zero_snr, "prediction_type": "v_prediction"}
    trained = tiny_pipeline(**process)
    trained.save_pretrained(tmp_path)
    expected, model = trained.scheduler.alphas_cumprod, ModelFolder.read(tmp_path)
    for name in SAMPLERS:
        pipeline = stock_pipeline(tmp_path)
        betas = {"trained_betas": pipeline.scheduler.betas.tolist()} if betas_argument(model) else {}
        pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **betas)
        same = torch.allclose(pipeline.scheduler.alphas_cumprod, expected, rtol=0, atol=1e-6)
        assert (same and draws(pipeline)) == (name in fast_samplers(model)), name

    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", render_card(model).text, flags=re.DOTALL)
    exec(next(code for code in examples if "pipe.scheduler = DPMSolver" in code), names := {})
    torch.testing.assert_close(names["pipe"].scheduler.alphas_cumprod, expected, rtol=0, atol=1e-6)
    assert np.asarray(names["image"]).std() > 10


@pytest.mark.parametrize(
    ("kind", "sampler", "call"),
    [
        ("colour", "ddpm", {}),
        ("odd size", "ddpm", {}),
        ("classes", "ddpm", {"class_labels": [0, "class 2"]}),
        ("classes", "ddpm", {"class_labels": ["class 1", 0], "guidance_scale": 3.0}),
        ("classes", "dpm", {"class_labels": "class 1", "guidance_scale": 0.0}),
        ("learned range, grey", "ddpm", {}),
        ("learned range, grey", "ddim", {}),
        ("learned range, transparent", "dpm", {}),
        ("learned range, colour", "unipc", {}),
        ("learned, colour", "ddpm", {}),
        ("learned, colour", "heun", {}),
        ("log of the large variance", "ddpm", {}),
    ],
)
def test_the_one_file_pipeline_draws_what_ours_draws(tiny_pipeline, tmp_path, kind, sampler, call):
    ours = tiny_pipeline(**KINDS[kind])
    ours.save_pretrained(tmp_path)
    index = ModelFolder.read(tmp_path).index
    alone = StandaloneDDPMPipeline(
        diffusers.UNet2DModel.from_pretrained(tmp_path, subfolder="unet"),
        diffusers.DDPMScheduler.from_pretrained(tmp_path, subfolder="scheduler"),
        index.get("id2label"),
    )
    alone.set_progress_bar_config(disable=True)
    if sampler != "ddpm":
        ours.scheduler = make_sampler(sampler, ours.scheduler)
        # As a reader of diffusers' documentation does it.
        grid = {"timestep_spacing": ours.scheduler.config.timestep_spacing}
        alone.scheduler = type(ours.scheduler).from_config(alone.scheduler.config, **grid)
    images = []
    for pipeline in (ours, alone):
        generator = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        images.append(pipeline(2, generator, 8, "np", **call).images)
    assert images[0].shape == images[1].shape and np.isfinite(images[0]).all() and images[0].std() > 0.1
    assert np.abs(images[0] - images[1]).max() < 1e-4


@pytest.mark.parametrize(
    ("kind", "call", "words"),
    [
        ("colour", {"class_labels": 1}, "unconditional"),
        ("colour", {"guidance_scale": 2.0}, "unconditional"),
        ("classes", {}, "`class_labels` must be .*, got None"),
        ("classes", {"class_labels": 3}, "must be 0 to 2 or one of class 0, class 1, class 2, got 3"),
        ("classes", {"class_labels": ["class 0", "nobody"]}, "`class_labels` must be .*, got 'nobody'"),
        ("classes", {"class_labels": 0, "output_type": "jpeg"}, "`output_type` must be .*, got 'jpeg'"),
    ],
)
def test_the_one_file_pipeline_names_what_does_not_fit(tiny_pipeline, kind, call, words):
    ours = tiny_pipeline(**KINDS[kind])
    alone = StandaloneDDPMPipeline(ours.unet, ours.scheduler, ours.id2label)
    with pytest.raises(ValueError, match=words):
        alone(**call)


def test_guidance_needs_a_class_for_none(tiny_pipeline):
    names = {number: f"class {number}" for number in range(4)}
    ours = tiny_pipeline(num_classes=3, id2label=names)  # four embeddings, and each is a class
    alone = StandaloneDDPMPipeline(ours.unet, ours.scheduler, names)
    with pytest.raises(ValueError, match="`guidance_scale` must be 1, .*, got 2.0"):
        alone(class_labels=0, guidance_scale=2.0)
