"""Pictures of the chain: x_t at unit variance, and the x_0 predicted from it, for every sampler."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DOutput
from scipy import stats

from ddpm_hf.sampling.generation import generate
from ddpm_hf.sampling.samplers import SAMPLER_NAMES, make_sampler
from ddpm_hf.sampling.strips import denoising_chain
from ddpm_hf.seeds import image_generators

STEPS = 6


def pixels(samples: torch.Tensor) -> np.ndarray:
    return np.rint((samples.permute(0, 2, 3, 1).double().numpy().clip(-1, 1) + 1) * 127.5)


@pytest.mark.parametrize("scheduler_class", [diffusers.DDPMScheduler, diffusers.DDIMScheduler])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_predictions_are_those_of_diffusers_and_end_in_the_image(tiny_pipeline, scheduler_class, prediction_type):
    pipeline = tiny_pipeline(prediction_type=prediction_type)
    stock = scheduler_class.from_config(dict(pipeline.scheduler.config))
    pipeline.scheduler = make_sampler("ddim" if scheduler_class is diffusers.DDIMScheduler else "ddpm", stock)
    chain, calls = denoising_chain(pipeline, [4, 9], 2, STEPS, STEPS, predicted=True)
    assert calls == [1, 2, 3, 4, 5, 6] and chain.shape == (STEPS, 2, 8, 8, 3)

    stock.set_timesteps(STEPS)
    generators = image_generators(2, [4, 9])
    x = torch.stack([torch.randn(3, 8, 8, generator=generator) for generator in generators])
    for frame, t in zip(chain, stock.timesteps, strict=True):
        with torch.no_grad():
            step = stock.step(pipeline.unet(x, t).sample, t, x, generator=generators)
        x = step.prev_sample
        assert np.abs(pixels(step.pred_original_sample) - frame).max() <= 1
    ((_, images),) = generate(pipeline, [4, 9], 2, 2, num_inference_steps=STEPS)
    assert np.array_equal(chain[-1], images)
    assert np.abs(pixels(x) - images).max() <= 1
    assert np.abs(chain[0].astype(int) - images).mean() > 5, "the frames differ"


@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_every_sampler_tells_what_it_predicts(tiny_pipeline, name):
    """Against Eq. 15 in float64 on the first call, where x_t is the noise that each image's generator gives."""
    pipeline = tiny_pipeline(num_classes=2, clip_sample=False)
    alpha_bar = np.cumprod(1 - np.linspace(0.0001, 0.02, 1000))
    pipeline.scheduler = make_sampler(name, pipeline.scheduler)
    # One bright pixel more or less would not be seen in a clipped picture: a network whose guess stays in range.
    with torch.no_grad():
        pipeline.unet.conv_out.weight.mul_(0)
        pipeline.unet.conv_out.bias.copy_(torch.tensor([0.0, 0.002, -0.002]))
    x_t = torch.stack([torch.randn(3, 8, 8, generator=generator) for generator in image_generators(1, [0, 5])])
    chain, calls = denoising_chain(pipeline, [0, 5], 1, STEPS, 100, {"class_labels": [0, 1]}, predicted=True)
    pipeline.scheduler.set_timesteps(STEPS)
    assert calls == list(range(1, len(pipeline.scheduler.timesteps) + 1)) and len(chain) == len(calls)
    t = round(float(pipeline.scheduler.timesteps[0]))
    eps = np.array([0.0, 0.002, -0.002]).reshape(3, 1, 1)
    x_0 = (x_t.double().numpy() - np.sqrt(1 - alpha_bar[t]) * eps) / np.sqrt(alpha_bar[t])
    expected = np.rint((x_0.transpose(0, 2, 3, 1).clip(-1, 1) + 1) * 127.5)
    assert np.abs(expected - chain[0]).max() <= 1
    images = next(generate(pipeline, [0, 5], 1, 2, {"class_labels": [0, 1]}, num_inference_steps=STEPS))[1]
    assert np.array_equal(chain[-1], images)


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_noise_is_shown_at_unit_variance_whatever_the_scale_of_the_sampler(tiny_pipeline, name):
    """With eps = 0 these chains stand still at sigma_0 z; divided by √(sigma_1² + 1) its share of black is known."""
    pipeline = tiny_pipeline(resolution=32, clip_sample=False)
    pipeline.scheduler = make_sampler(name, pipeline.scheduler)
    pipeline.unet.forward = lambda x_t, t: UNet2DOutput(sample=torch.zeros_like(x_t))
    chain, _ = denoising_chain(pipeline, range(4), 0, 50, 100)
    alpha_bar = np.cumprod(1 - np.linspace(0.0001, 0.02, 1000))
    sigma = np.sqrt(1 / alpha_bar - 1)
    t = np.linspace(999, 0, 50)[1]
    spread = np.sqrt(sigma[999] ** 2 + 1) / np.sqrt(np.interp(t, np.arange(1000), sigma) ** 2 + 1)
    black = stats.norm.cdf(-(1 - 1 / 255) / spread)
    assert (chain[0] == 0).mean() == pytest.approx(black, abs=0.015)
    assert (chain[0] == 255).mean() == pytest.approx(black, abs=0.015)
