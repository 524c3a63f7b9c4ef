"""Every sampler by name runs the process that was trained, and draws its data."""

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DOutput

from ddpm_hf import LinearDDPMScheduler
from ddpm_hf.sampling.samplers import SAMPLER_NAMES, make_sampler
from ddpm_hf.steps.sampler import thresholding_of, with_thresholding

ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
PROCESSES = {
    "linear": {},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "linear, zero SNR": ZERO_SNR,
    "cosine, zero SNR": {"beta_schedule": "squaredcos_cap_v2", **ZERO_SNR},
    "sigmoid, zero SNR": {"beta_schedule": "sigmoid", **ZERO_SNR},
    "x_0, zero SNR": {**ZERO_SNR, "prediction_type": "sample"},
    "last beta of 1": {"trained_betas": [*np.linspace(0.0001, 0.02, 999), 1.0], "prediction_type": "v_prediction"},
}
OTHERS = {"scaled": {"beta_schedule": "scaled_linear"}, "laplace": {"beta_schedule": "laplace"}}


def cases(processes):
    return [
        (name, process)
        for process in processes
        for name in SAMPLER_NAMES
        if (name, process) != ("pndm", "x_0, zero SNR")
    ]


@pytest.mark.parametrize(("name", "process"), cases(PROCESSES | OTHERS))
def test_every_sampler_runs_the_process_that_was_trained(name, process):
    trained = LinearDDPMScheduler(**(PROCESSES | OTHERS)[process], timestep_spacing="linspace")
    sampler = make_sampler(name, trained)
    expected = np.sqrt(trained.alphas_cumprod.double().numpy())
    found = np.sqrt(sampler.alphas_cumprod.double().numpy())
    np.testing.assert_allclose(found[:-1], expected[:-1], rtol=0, atol=1e-6)
    # Solvers divide by the last √alpha_bar: it is 1e-5, or 2^-12 of the one before if float32 has no beta between.
    assert abs(found[-1] - expected[-1]) <= max(1.1e-5, 2.0**-12 * 1.01 * expected[-2])
    # What is built from the sampler again, as for pictures of its chain, is that process too.
    back = np.sqrt(make_sampler("ddpm", sampler).alphas_cumprod.double().numpy())
    np.testing.assert_allclose(back, found, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "process"), cases(PROCESSES))
def test_few_steps_keep_mean_and_spread_of_the_data(tiny_pipeline, name, process):
    """With the exact predictor of normal data, even 20 steps end near their mean m and standard deviation s.

    x_t has the variance V = alpha_bar s^2 + 1 - alpha_bar, and E[x_0 | x_t] = m + root s^2 (x_t - root m) / V with
    root = sqrt(alpha_bar). Euler and Heun need scaled inputs and a larger first noise for it, and Heun asks between
    timesteps, where diffusers takes log sigma as linear.
    """
    pipeline = tiny_pipeline(resolution=32, clip_sample=False, **PROCESSES[process])
    m, s, scheduler = 0.2, 0.25, pipeline.scheduler
    alpha_bar = np.maximum(scheduler._alpha_bar.numpy(), 1e-10)
    log_sigmas = 0.5 * np.log(1 / alpha_bar - 1)

    def exact(x_t, t):
        sigma = np.exp(np.interp(float(t), np.arange(1000), log_sigmas))
        root, noise = 1 / np.sqrt(1 + sigma**2), sigma / np.sqrt(1 + sigma**2)
        x_0 = m + root * s**2 * (x_t - root * m) / (root**2 * s**2 + noise**2)
        eps = noise * (x_t - root * m) / (root**2 * s**2 + noise**2)
        outputs = {"epsilon": eps, "sample": x_0, "v_prediction": root * eps - noise * x_0}
        return UNet2DOutput(sample=outputs[scheduler.config.prediction_type].float())

    pipeline.unet.forward = exact
    pipeline.scheduler = make_sampler(name, scheduler)
    generator = torch.Generator().manual_seed(0)
    images = 2 * pipeline(generator=generator, num_inference_steps=20, output_type="pt").images - 1
    assert images.mean() == pytest.approx(m, abs=0.03)
    # The least is 0.17, of the ancestral steps under the linear schedule.
    assert images.std() == pytest.approx(s, rel=0.35)


def test_samplers_that_cannot_are_refused_with_the_choices(tiny_pipeline):
    with pytest.raises(ValueError, match="ddpm, ddim, dpm.* got 'dpmm'"):
        make_sampler("dpmm", tiny_pipeline().scheduler)
    with pytest.raises(ValueError, match="must be one of ddpm, ddim, dpm.* predicts x_0, got 'pndm'"):
        make_sampler("pndm", tiny_pipeline(prediction_type="sample").scheduler)


def test_samplers_keep_dynamic_thresholding_or_refuse_it(tiny_pipeline, tiny_latent_pipeline):
    pipeline = tiny_pipeline()
    pipeline.threshold({})
    assert thresholding_of(pipeline.scheduler.config) == {}
    pipeline.threshold({"thresholding": True})
    assert thresholding_of(pipeline.scheduler.config) == {
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 100.0,
    }
    for name in SAMPLER_NAMES:
        if name in ("euler", "heun", "pndm"):
            with pytest.raises(ValueError, match=f"must be one of ddpm, ddim, dpm, .* `thresholding`, got '{name}'"):
                make_sampler(name, pipeline.scheduler)
        else:
            sampler = make_sampler(name, pipeline.scheduler)
            assert thresholding_of(sampler.config) == thresholding_of(pipeline.scheduler.config)
            out = sampler._threshold_sample(torch.tensor([0.5, 3.0]).view(2, 1, 1, 1))
            assert out.flatten().tolist() == [0.5, 1.0], "image by image"
    changed = with_thresholding(pipeline.scheduler, {"sample_max_value": 2.0})
    assert thresholding_of(changed.config) == {"dynamic_thresholding_ratio": 0.995, "sample_max_value": 2.0}
    assert thresholding_of(with_thresholding(changed, {"thresholding": False}).config) == {}
    for asked, words in (
        ({"dynamic_thresholding_ratio": 0.0}, "`dynamic_thresholding_ratio` must be above 0 and at most 1, got 0"),
        ({"sample_max_value": 0.5}, "`sample_max_value` must be at least 1, got 0.5"),
        ({"thresholding": False, "sample_max_value": 2.0}, "`sample_max_value` needs `thresholding`"),
    ):
        with pytest.raises(ValueError, match=words):
            with_thresholding(pipeline.scheduler, asked)
    with pytest.raises(ValueError, match="`thresholding` must be left out for a model of latents"):
        tiny_latent_pipeline().threshold({"thresholding": True})
