"""Interpolation against diffusers' own chain, against a theorem, and against samplers' exact solution."""

import diffusers
import numpy as np
import pytest
import torch
from torch import nn

from ddpm_hf import DDPMPipeline
from ddpm_hf.sampling.interpolation import interpolate
from ddpm_hf.sampling.samplers import SAMPLER_NAMES, make_sampler
from ddpm_hf.seeds import generator_for
from ddpm_hf.steps.sampler import rebuild

STOCHASTIC = ("ddpm", "dpm-sde")
MIXTURES = [0.0, 0.25, 0.5, 1.0]


def two_images(seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def pixels(samples: torch.Tensor) -> np.ndarray:
    return np.rint((samples.permute(0, 2, 3, 1).double().numpy().clip(-1, 1) + 1) * 127.5)


def test_depth_zero_is_the_linear_blend(tiny_pipeline):
    first, second = two_images()
    images, depths = interpolate(tiny_pipeline(), first, second, [0], MIXTURES)
    assert depths == [0] and images.shape == (1, 4, 8, 8, 3)
    a, b = first.double().numpy().transpose(1, 2, 0), second.double().numpy().transpose(1, 2, 0)
    for image, mixture in zip(images[0], MIXTURES, strict=True):
        expected = np.rint(((1 - mixture) * a + mixture * b + 1) * 127.5)
        assert np.abs(expected - image).max() <= 1


@pytest.mark.parametrize("depth", [300, 1000])
def test_ends_are_the_reconstructions_of_both_images_by_diffusers(tiny_pipeline, depth):
    pipeline, pair = tiny_pipeline(), two_images()
    images, depths = interpolate(pipeline, *pair, [depth], MIXTURES, seed=3, num_inference_steps=21)
    scheduler = diffusers.DDPMScheduler.from_config(dict(pipeline.scheduler.config))
    scheduler.set_timesteps(21)
    start = int((scheduler.timesteps + 1 - depth).abs().argmin())
    assert depths == [int(scheduler.timesteps[start]) + 1] and abs(depths[0] - depth) <= 25
    noise = torch.randn(3, 8, 8, generator=generator_for(3, "interpolation", "way there"))
    for original, found in zip(pair, (images[0, 0], images[0, -1]), strict=True):
        generator = generator_for(3, "interpolation", "way back")
        x = scheduler.add_noise(original[None], noise[None], scheduler.timesteps[start : start + 1])
        for t in scheduler.timesteps[start:]:
            with torch.no_grad():
                x = scheduler.step(pipeline.unet(x, t).sample, t, x, generator=generator).prev_sample
        assert np.abs(pixels(x)[0] - found).max() <= 1


def test_with_the_same_noise_mixing_x_t_is_mixing_the_images(tiny_pipeline):
    """(1 - l)(a x + s e) + l (a y + s e) = a((1 - l) x + l y) + s e, so a blend's reconstruction is the same."""
    pipeline, (first, second) = tiny_pipeline(), two_images()
    between, _ = interpolate(pipeline, first, second, [400], [0.25], num_inference_steps=20)
    blend = 0.75 * first + 0.25 * second
    of_the_blend, _ = interpolate(pipeline, blend, second, [400], [0.0], num_inference_steps=20)
    assert np.abs(between.astype(int) - of_the_blend).max() <= 1


class OptimalNetwork(diffusers.ModelMixin, diffusers.ConfigMixin):
    """Predicts eps for data N(mean, std²): the chain without noise then has a solution in closed form."""

    @diffusers.configuration_utils.register_to_config
    def __init__(self, sample_size=8, in_channels=3, num_class_embeds=None, mean=0.3, std=0.2):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x_t, t, **conditions):
        alpha_bar = np.cumprod(1 - np.linspace(0.0001, 0.02, 1000))
        a = float(np.exp(np.interp(float(t), np.arange(1000), np.log(alpha_bar))))
        variance = a * self.config.std**2 + 1 - a
        eps = np.sqrt(1 - a) * (x_t - np.sqrt(a) * self.config.mean) / variance
        return diffusers.models.unets.unet_2d.UNet2DOutput(sample=eps)


@pytest.mark.parametrize("name", [name for name in SAMPLER_NAMES if name not in STOCHASTIC + ("pndm",)])
@pytest.mark.parametrize("depth", [500, 1000])
def test_every_sampler_starts_in_the_middle_at_the_right_noise(name, depth, tiny_pipeline):
    """The probability flow takes N(m_t, v_t) to N(mean, std²) linearly: x_0 = mean + std (x_t - m_t) / √v_t."""
    process = tiny_pipeline(clip_sample=False).scheduler
    pipeline = DDPMPipeline(OptimalNetwork(), make_sampler(name, process))
    pipeline.set_progress_bar_config(disable=True)
    pair = 0.3 + 0.2 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    images, (taken,) = interpolate(pipeline, *pair, [depth], [0.0, 1.0], num_inference_steps=100)
    assert abs(taken - depth) <= 11
    a = np.cumprod(1 - np.linspace(0.0001, 0.02, 1000))[taken - 1]
    noise = torch.randn(3, 8, 8, generator=generator_for(0, "interpolation", "way there"))
    x_t = np.sqrt(a) * pair + np.sqrt(1 - a) * noise
    x_0 = 0.3 + 0.2 * (x_t - np.sqrt(a) * 0.3) / np.sqrt(a * 0.04 + 1 - a)
    error = np.abs(pixels(x_0) - images[0])
    assert error.mean() < 2.5, f"mean error of {error.mean():.2f} grey levels"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ddim", {}),
        ("euler", {}),
        ("heun", {}),
        ("dpm", {"solver_order": 1}),
        ("dpm-single", {"solver_order": 1}),
        ("deis", {"solver_order": 1}),
        ("unipc", {"solver_order": 1, "disable_corrector": list(range(12))}),
    ],
)
def test_a_chain_that_starts_in_the_middle_goes_on_as_the_whole_one(tiny_pipeline, name, changes):
    """Solvers that remember nothing between steps (multistep ones at order 1): the same images, to rounding."""
    pipeline = tiny_pipeline()
    pipeline.scheduler = rebuild(type(sampler := make_sampler(name, pipeline.scheduler)), sampler, **changes)
    seen = []
    arguments = {"num_inference_steps": 12, "output_type": "pt", "batch_size": 2}
    whole = pipeline(
        generator=torch.Generator().manual_seed(0),
        callback_on_step_end=lambda pipe, step, t, tensors: seen.append(tensors["latents"]),
        **arguments,
    ).images
    for skip in (4, 10):
        rest = pipeline(latents=seen[skip - 1], skip_steps=skip, **arguments).images
        assert (rest - whole).abs().max() < 1e-4
    assert whole.std() > 0.1


def test_what_cannot_be_interpolated_is_refused(tiny_pipeline):
    pipeline, (first, second) = tiny_pipeline(), two_images()
    with pytest.raises(ValueError, match=r"`second` must have the model's shape \(3, 8, 8\), got \(3, 8, 7\)"):
        interpolate(pipeline, first, second[..., :7], [0], [0.5])
    with pytest.raises(ValueError, match="`depths` must be between 0 and 1000, got 1001"):
        interpolate(pipeline, first, second, [0, 1001], [0.5])
    pipeline.scheduler = make_sampler("pndm", pipeline.scheduler)
    with pytest.raises(ValueError, match="start midway, such as ddpm, ddim or dpm, got 'pndm'"):
        interpolate(pipeline, first, second, [500], [0.5])


def test_skipped_steps_are_checked(tiny_pipeline):
    pipeline = tiny_pipeline()
    for skip in (-1, 5):
        with pytest.raises(ValueError, match=f"`skip_steps` must be between 0 and 4, got {skip}"):
            pipeline(num_inference_steps=5, skip_steps=skip, latents=torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="`latents`.* must be given"):
        pipeline(num_inference_steps=5, skip_steps=2)
