"""Given pixels stay; that the hole is drawn as stock diffusers draws it: test_text_to_image.py."""

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from PIL import Image

from ddpm_hf.steps.inpainting import shrunk
from ddpm_hf.steps.sampler import rebuild


@pytest.fixture(scope="module")
def pictures():
    """A photo of 8x8 and a mask of its right half."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:, 4:] = 255
    return {"image": Image.fromarray(pixels), "mask_image": Image.fromarray(mask)}


def test_each_image_may_have_its_own_picture_and_hole(tiny_text_pipeline, pictures):
    pipeline, upright = tiny_text_pipeline(), pictures
    lying = {name: picture.rotate(90) for name, picture in pictures.items()}
    call = {"guidance_scale": 1.0, "num_inference_steps": 2, "output_type": "np"}
    several = {name: [upright[name], lying[name]] for name in pictures}
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    together = pipeline("a red apple", batch_size=2, generator=generators, **call, **several).images
    for seed, given in enumerate((upright, lying)):
        alone = pipeline("a red apple", generator=torch.Generator().manual_seed(seed), **call, **given).images[0]
        np.testing.assert_allclose(together[seed], alone, atol=1e-3)
    with pytest.raises(ValueError, match="`image` must be one per image, got 2 for 3 images"):
        pipeline("a red apple", batch_size=3, **call, **several)


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
    (image,), (small_mask,) = shrunk(pictures, pipeline.image_shape[1:]).values()
    assert image.size == small_mask.size == pipeline.image_shape[:0:-1]
    hole = np.kron(np.asarray(small_mask), np.ones((2, 2)))
    assert (hole[mask == 255] == 255).all() and (hole == 255).sum() == 16, "the 2x2 pixels that the hole touches"
    drawn = pipeline("a red apple", num_inference_steps=2, guidance_scale=1, output_type="np", **pictures).images
    levels = (drawn[0] * 255).round()
    np.testing.assert_array_equal(levels[mask == 0], pixels[mask == 0])


def test_pictures_and_samplers_that_do_not_suit(tiny_pipeline, pictures):
    pipeline, larger = tiny_pipeline(), Image.new("RGB", (9, 8))
    for change, words in (
        ({"image": larger}, "`image` must be a PIL image of the model's 8x8 pixels, got 9x8"),
        ({"mask_image": larger}, "`mask_image` must be a PIL image of the model's 8x8 pixels, got 9x8"),
        ({"image": torch.zeros(3, 8, 8)}, "`image` must be a PIL image of the model's 8x8 pixels, got Tensor"),
        ({"image": []}, "`image` must be a PIL image of the model's 8x8 pixels, got NoneType"),
        ({"mask_image": None}, "`mask_image` must be a PIL image of the model's 8x8 pixels, got NoneType"),
        ({"mask_image": Image.new("L", (8, 8), 127)}, "`mask_image` must be white where to draw"),
        ({"skip_steps": 1, "latents": torch.zeros(1, 3, 8, 8)}, "`skip_steps` must be left out with `image`, got 1"),
    ):
        with pytest.raises(ValueError, match=words):
            pipeline(num_inference_steps=2, **{**pictures, **change})
    pipeline.scheduler = rebuild(EulerDiscreteScheduler, pipeline.scheduler)
    with pytest.raises(ValueError, match="`scheduler` must be one that keeps x_t at unit variance, .* got Euler"):
        pipeline(num_inference_steps=2, **pictures)
