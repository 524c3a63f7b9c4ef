"""Few network calls at fitted timesteps: what is fitted, what is drawn, and what is refused."""

import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DOutput

from ddpm_hf import FastSampling
from ddpm_hf.diffusion.timestep_fit import fit_timesteps
from ddpm_hf.pipelines.fast_sampling import SAMPLING_FILE

STD = 0.5


def test_the_fit_is_that_of_the_networks_own_errors(tiny_pipeline):
    """With the exact predictor of N(0, STD²) data, whose error is known: STD² / (1 + STD² SNR)."""
    pipeline = tiny_pipeline(num_train_timesteps=1000)
    alpha_bar = pipeline.scheduler._alpha_bar

    def exact(x_t, t):
        a = alpha_bar[int(t)]
        return UNet2DOutput(sample=(((1 - a).sqrt() / (1 - a + a * STD**2)) * x_t.double()).float())

    pipeline.unet.forward = exact
    images = STD * torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1.9, 1.9)
    fitted = FastSampling.fit(pipeline, images, None, seed=0)
    snr = (alpha_bar / (1 - alpha_bar)).numpy()
    errors = STD**2 / (1 + STD**2 * snr)

    def cost(chain: list[int]) -> float:
        held = np.sum(errors[chain[:-1]] * np.diff(np.log(snr[chain])))
        return float(held + np.trapezoid(errors, np.log(snr)))

    assert fitted.sampler == "dpm-sde" and len(fitted.timesteps) == 20
    best = cost(fit_timesteps(snr, errors, 20))
    assert best <= cost(fitted.timesteps) < 1.005 * best
    assert cost(np.linspace(999, 0, 20).round().astype(int).tolist()) > 1.5 * best


@pytest.mark.parametrize("architecture", [{}, {"num_classes": 3}, {"learned_variance": True}])
def test_it_draws_what_diffusers_own_loop_draws(tiny_pipeline, tmp_path, architecture):
    pipeline = tiny_pipeline(num_train_timesteps=100, **architecture)
    classes = torch.tensor([2, 0]) if "num_classes" in architecture else None
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    was_training = pipeline.unet.train().training
    fitted = FastSampling.fit(pipeline, images, classes, seed=0)
    assert pipeline.unet.training == was_training
    fitted.write(tmp_path)
    fast = FastSampling.read(str(tmp_path))
    assert fast == fitted

    config = {**pipeline.scheduler.config, "variance_type": None, "algorithm_type": "sde-dpmsolver++"}
    stock = diffusers.DPMSolverMultistepScheduler.from_config(config)
    stock.set_timesteps(timesteps=fast.timesteps)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    pipeline.unet.eval()
    with torch.no_grad():
        for t in stock.timesteps:
            output = pipeline.unet(x, t, classes).sample[:, :3]
            x = stock.step(output, t, x, generator=generator).prev_sample
    arguments = {} if classes is None else {"class_labels": classes}
    drawn = pipeline(2, torch.Generator().manual_seed(3), output_type="pt", **arguments, **fast.apply(pipeline)).images
    assert drawn.std() > 0.05
    torch.testing.assert_close(drawn, (x / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)


def test_a_process_of_few_timesteps_keeps_them_all(tiny_pipeline):
    pipeline = tiny_pipeline(num_train_timesteps=5)
    assert FastSampling.fit(pipeline, torch.zeros(1, 3, 8, 8), None, 0).timesteps == [4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "must have the keys sampler and timesteps"),
        ('{"sampler": "dpm-sde"}', "must have the keys"),
        ('{"sampler": "x", "timesteps": [1]}', "names the sampler 'x'; choose from ddpm, ddim"),
        ('{"sampler": "ddpm", "timesteps": []}', "must be a list of whole numbers"),
        ('{"sampler": "ddpm", "timesteps": [5, 2.5]}', "must be a list of whole numbers"),
        ('{"sampler": "ddpm", "timesteps": [5, 5]}', "must be decreasing"),
        ('{"sampler": "ddpm", "timesteps": [5, -1]}', "must be decreasing and not negative"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, content, words):
    (tmp_path / SAMPLING_FILE).write_text(content)
    with pytest.raises(ValueError, match=words):
        FastSampling.read(str(tmp_path))


def test_timesteps_and_what_does_not_go_with_them(tiny_pipeline, tmp_path):
    with pytest.raises(ValueError, match="has no sampling.json, which train.py writes"):
        FastSampling.read(str(tmp_path))
    pipeline = tiny_pipeline(num_train_timesteps=10)
    with pytest.raises(ValueError, match="num_inference_steps is 3, but timesteps are given"):
        pipeline(num_inference_steps=3, timesteps=[9, 0])
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match="timesteps cannot be chosen with DDIMScheduler"):
        pipeline(timesteps=[9, 0])


def test_the_file_is_plain(tmp_path):
    FastSampling(sampler="dpm-sde", timesteps=[9, 0]).write(tmp_path)
    assert json.loads((tmp_path / SAMPLING_FILE).read_text()) == {"sampler": "dpm-sde", "timesteps": [9, 0]}
