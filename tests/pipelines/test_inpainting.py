"""Given pixels stay, and the hole is drawn as stock diffusers draws it."""

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, IFInpaintingPipeline
from PIL import Image

from ddpm_hf.pipelines.inpainting import shrunk
from ddpm_hf.pipelines.steps import rebuild

PROMPTS = ["a red apple", "красное яблоко", "🍎"]


@pytest.fixture(scope="module")
def pictures():
    """A photo of 8x8 and a mask of its right half."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:, 4:] = 255
    return {"image": Image.fromarray(pixels), "mask_image": Image.fromarray(mask)}


@pytest.mark.parametrize("prompt", [PROMPTS[0], PROMPTS], ids=["one", "three"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_what_is_given_clean_is_drawn_around_as_stock_does(tiny_text_pipeline, pictures, prompt, scale):
    pipeline = tiny_text_pipeline(prediction_type="v_prediction", variance_type="fixed_small")
    pipeline.keeps_given_clean = True
    stock = IFInpaintingPipeline(**pipeline.components, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)
    call = {"guidance_scale": scale, "num_inference_steps": 6, "output_type": "np", **pictures}
    ours = pipeline(prompt, generator=torch.Generator().manual_seed(3), **call).images
    x_0 = torch.from_numpy(np.array(pictures["image"])).permute(2, 0, 1) / 127.5 - 1
    call["image"] = x_0.expand(len(ours), 3, 8, 8)
    theirs = stock(prompt, generator=torch.Generator().manual_seed(3), clean_caption=False, **call).images
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    assert ours[:, :, 4:].std() > 0.05


@pytest.mark.parametrize("sampler", [None, DPMSolverMultistepScheduler])
def test_what_is_given_to_any_model_is_as_noisy_as_the_rest(tiny_pipeline, pictures, sampler):
    """x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) eps where pixels are given, with one eps, in float64; at the end x_0 itself."""
    pipeline = tiny_pipeline()
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    if sampler is not None:
        pipeline.scheduler = rebuild(sampler, pipeline.scheduler)
    noise, seen = torch.randn(2, 3, 8, 8), []

    def see(pipeline, step, timestep, tensors):
        seen.append(tensors["network_input"].numpy())

    call = {"num_inference_steps": 4, "output_type": "pt", "callback_on_step_end": see}
    drawn = pipeline(batch_size=2, latents=noise, **call, **pictures).images
    x_0 = np.asarray(pictures["image"]).transpose(2, 0, 1) / 127.5 - 1
    for t, x_t in zip(pipeline.scheduler.timesteps.tolist(), seen, strict=True):
        expected = np.sqrt(alpha_bar[t]) * x_0 + np.sqrt(1 - alpha_bar[t]) * noise.numpy()
        np.testing.assert_allclose(x_t[..., :4], expected[..., :4], atol=1e-5, rtol=0)
    levels = (drawn * 255).round().numpy()
    np.testing.assert_array_equal(levels[..., :4], np.broadcast_to((x_0 + 1) * 127.5, levels.shape).round()[..., :4])
    assert np.abs(levels[0, ..., 4:] - levels[1, ..., 4:]).max() > 10


def test_a_cascade_keeps_what_is_given_at_the_large_size(tiny_cascade):
    """The base is given the same pictures made smaller, whose hole covers all of the large one."""
    pipeline = tiny_cascade()
    _, height, width = pipeline.upsampler.image_shape
    pixels = np.random.default_rng(2).integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[3:5, 3:5] = 255
    pictures = {"image": Image.fromarray(pixels), "mask_image": Image.fromarray(mask)}
    small = shrunk(pictures, pipeline.image_shape[1:])
    assert small["image"].size == small["mask_image"].size == pipeline.image_shape[:0:-1]
    hole = np.kron(np.asarray(small["mask_image"]), np.ones((2, 2)))
    assert (hole[mask == 255] == 255).all() and (hole == 255).sum() == 16, "the 2x2 pixels that the hole touches"
    drawn = pipeline("a red apple", num_inference_steps=2, guidance_scale=1, output_type="np", **pictures).images
    levels = (drawn[0] * 255).round()
    np.testing.assert_array_equal(levels[mask == 0], pixels[mask == 0])


def test_pictures_and_samplers_that_do_not_suit(tiny_pipeline, pictures):
    pipeline, larger = tiny_pipeline(), Image.new("RGB", (9, 8))
    for change, words in (
        ({"image": larger}, "`image` must be a picture of the model's 8x8 pixels, got 9x8"),
        ({"mask_image": larger}, "`mask_image` must be a picture of the model's 8x8 pixels, got 9x8"),
        ({"mask_image": None}, "`mask_image` must be a picture of the model's 8x8 pixels, got none"),
        ({"mask_image": Image.new("L", (8, 8), 127)}, "`mask_image` must be white where to draw"),
        ({"skip_steps": 1, "latents": torch.zeros(1, 3, 8, 8)}, "`skip_steps` must be left out with `image`, got 1"),
    ):
        with pytest.raises(ValueError, match=words):
            pipeline(num_inference_steps=2, **{**pictures, **change})
    pipeline.scheduler = rebuild(EulerDiscreteScheduler, pipeline.scheduler)
    with pytest.raises(ValueError, match="`scheduler` must be one that keeps x_t at unit variance, .* got Euler"):
        pipeline(num_inference_steps=2, **pictures)
