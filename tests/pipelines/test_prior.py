"""Embeddings for captions: those of stock diffusers, from the same files."""

import json

import numpy as np
import pytest
import torch
from diffusers import KandinskyV22PriorPipeline, UnCLIPScheduler
from PIL import Image
from priors import make_prior

from ddpm_hf.pipelines.loading import load_pipeline
from ddpm_hf.seeds import image_generators

PROMPTS = ["a red apple", "  Ein GRÜNER Käse ", "красное яблоко, " * 9]
CALLS = {
    "one": {"prompt": PROMPTS[0], "guidance_scale": 1.0},
    "one, guided": {"prompt": PROMPTS[0]},
    "three": {"prompt": PROMPTS, "guidance_scale": 1.0},
    "three, guided": {"prompt": PROMPTS, "guidance_scale": 3.0},
    "two of each": {"prompt": PROMPTS, "guidance_scale": 3.0, "num_images_per_prompt": 2},
    "one, guided away": {"prompt": PROMPTS[0], "negative_prompt": "a cat"},
    "three, guided away": {"prompt": PROMPTS, "negative_prompt": ["a cat", "", "Käse"], "guidance_scale": 2.0},
    "with a negative, unguided": {"prompt": PROMPTS, "negative_prompt": ["a cat", "", "Käse"], "guidance_scale": 1.0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    make_prior().save_pretrained(path := tmp_path_factory.mktemp("prior"))
    return path


@pytest.fixture(scope="module")
def stock(folder):
    pipeline = KandinskyV22PriorPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def ours(folder):
    pipeline = load_pipeline(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("steps", [2, 25])
def test_it_draws_what_stock_draws_from_the_same_files(folder, stock, ours, steps):
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "KandinskyV22PriorPipeline" and "ddpm_hf" not in json.dumps(index)
    assert index["scheduler"] == ["diffusers", "UnCLIPScheduler"]
    drawn = {}
    for name, call in CALLS.items():
        there, here = (
            pipeline(**call, num_inference_steps=steps, generator=torch.Generator().manual_seed(7))
            for pipeline in (stock, ours)
        )
        drawn[name] = here.image_embeds
        for one, other in zip(there.to_tuple(), here.to_tuple(), strict=True):
            torch.testing.assert_close(other, one, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    for one, other in (("three", "three, guided"), ("one, guided", "one, guided away")):
        assert (drawn[one] - drawn[other]).abs().max() > 0.01, "captions matter"


def test_stocks_interpolation_works_on_it(stock, ours):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    asked = {"images_and_prompts": [picture, "a cat"], "weights": [0.3, 0.7], "num_inference_steps": 3}
    there, here = (each.interpolate(**asked, generator=torch.Generator().manual_seed(1)) for each in (stock, ours))
    torch.testing.assert_close(here.image_embeds, there.image_embeds, atol=1e-5, rtol=0)


def test_an_embedding_is_that_of_its_generator_in_any_batch_and_the_nearest_of_its_candidates(ours):
    call = {"num_inference_steps": 3, "guidance_scale": 2.0}
    every, each = image_generators(0, [0, 1, 2]), image_generators(0, [0, 1, 2])
    asked = {"negative_prompt": ["a cat"] * 3, "num_candidates": 2}
    together = ours(PROMPTS, **asked, **call, generator=every).to_tuple()
    for k, generator in enumerate(each):
        alone = ours(PROMPTS[k], negative_prompt="a cat", num_candidates=2, **call, generator=[generator]).to_tuple()
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], other[k], atol=1e-5, rtol=0)

    candidates, chosen = (
        ours(PROMPTS[0], **call, **more, generator=torch.Generator().manual_seed(3)).image_embeds
        for more in ({"num_images_per_prompt": 6}, {"num_candidates": 6})
    )
    tokens = ours.tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    products = candidates @ ours.text_encoder(tokens).text_embeds[0]
    assert torch.equal(chosen[0], candidates[products.argmax()]) and products.argmax() > 0


def test_the_codec_looks_as_stock_does_and_stocks_prior_gives_its_scale_back(stock, ours):
    pixels = np.random.default_rng(1).integers(0, 256, (4, 3, 11, 9), dtype=np.uint8)
    pictures = [Image.fromarray(each.transpose(1, 2, 0)) for each in pixels]
    prepared = stock.image_processor(pictures, return_tensors="pt").pixel_values
    with torch.no_grad():
        embeddings = stock.image_encoder(prepared).image_embeds
    x_0 = ours.codec.encode({"images": torch.from_numpy(pixels)})
    assert x_0.shape == (4, *ours.codec.shape) and ours.codec.decoder is None
    torch.testing.assert_close(stock.prior.post_process_latents(x_0), embeddings)
    torch.testing.assert_close(ours.codec.decode(x_0), embeddings)


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ({"num_inference_steps": 1}, "`num_inference_steps` must be between 2 and 1000 with UnCLIPScheduler, got 1"),
        ({"num_inference_steps": 1001}, "`num_inference_steps` must be between 2 and 1000 .*, got 1001"),
        ({"prompt": None}, "`prompt` must be given for this model: a caption"),
        (
            {"negative_prompt": ["a"] * 2, "guidance_scale": 1.0},
            "`negative_prompt` must be one per image, got 2 for 1",
        ),
        ({"generator": image_generators(0, [0, 1])}, "`generator` must be one per image, got 2 for 1 images"),
        ({"num_candidates": 0}, "`num_candidates` must be at least 1, got 0"),
        ({"output_type": "pil"}, "`output_type` must be 'pt' or 'np', got 'pil'"),
        ({"latents": torch.zeros(1, 31)}, r"`latents` must have shape \(1, 32\), got \(1, 31\)"),
    ],
)
def test_what_it_cannot_do_is_said_in_one_line(ours, call, problem):
    with pytest.raises(ValueError, match=problem) as found:
        ours(**{"prompt": "a cat", **call})
    assert "\n" not in str(found.value)


def _narrow_text(pipeline):
    pipeline.text_encoder.config.hidden_size = 24


def _forget_scale(pipeline):
    torch.nn.init.zeros_(pipeline.prior.clip_std)


def _shorten(pipeline):
    pipeline.tokenizer.model_max_length = 10


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (_narrow_text, "text_encoder must have states of 32 channels, as the prior expects, got 24"),
        (_forget_scale, "prior must have the measured standard deviation .* clip_std, above 0, got 0 in 32 of 32"),
        (_shorten, "tokenizer must cut captions to 12 tokens, as the prior expects, got 10"),
    ],
)
def test_parts_that_do_not_fit_are_named(spoil, problem):
    pipeline = make_prior()
    spoil(pipeline)
    with pytest.raises(ValueError, match=problem):
        pipeline.check_parts()
    if spoil is _forget_scale:
        with pytest.raises(ValueError, match=problem):
            pipeline("a cat")


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm-sde"])
def test_other_samplers_start_at_its_last_timestep(ours, sampler):
    from ddpm_hf.sampling.samplers import make_sampler

    scheduler = make_sampler(sampler, ours.scheduler)
    scheduler.set_timesteps(10)
    assert int(scheduler.timesteps[0]) == 999 and scheduler.config.prediction_type == "sample"
    torch.testing.assert_close(scheduler.alphas_cumprod, UnCLIPScheduler().alphas_cumprod, atol=1e-6, rtol=1e-4)
