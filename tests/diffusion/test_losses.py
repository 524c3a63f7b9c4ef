"""Targets, losses and timestep sampling."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ddpm_hf.diffusion.losses import (
    DiffusionLoss,
    SecondMomentSampler,
    simple_loss,
    snr_weight,
    stratified_timesteps,
    training_target,
    uniform_timesteps,
)
from ddpm_hf.diffusion.scheduler import LinearDDPMScheduler


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_target_makes_the_prediction_right():
    x_0 = torch.randn(4, 1, 2, 2, generator=generator(0), dtype=torch.float64)
    eps = torch.randn(4, 1, 2, 2, generator=generator(1), dtype=torch.float64)
    timesteps = torch.tensor([0, 10, 500, 999])
    for prediction_type in ("epsilon", "sample", "v_prediction"):
        scheduler = LinearDDPMScheduler(prediction_type=prediction_type)
        target = training_target(scheduler, x_0, eps, timesteps)
        x_t = scheduler.add_noise(x_0, eps, timesteps)
        torch.testing.assert_close(scheduler.predict_original_sample(target, x_t, timesteps), x_0, rtol=0, atol=1e-8)


def test_no_target_for_epsilon_with_zero_terminal_snr():
    with pytest.warns(UserWarning):
        scheduler = LinearDDPMScheduler(rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="rescale_betas_zero_snr"):
        training_target(scheduler, torch.zeros(1), torch.zeros(1), torch.tensor([0]))


def test_simple_loss_is_one_float32_per_image():
    prediction, target = (
        torch.randn(3, 2, 4, 4, generator=generator()),
        torch.randn(3, 2, 4, 4, generator=generator(1)),
    )
    expected = ((prediction.double().numpy() - target.double().numpy()) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(simple_loss(prediction, target).numpy(), expected, rtol=1e-6)
    assert simple_loss(prediction.bfloat16(), target).dtype == torch.float32


@pytest.mark.parametrize("sample", [uniform_timesteps, stratified_timesteps])
def test_timesteps_are_uniform_and_reproducible(sample):
    drawn = torch.stack([sample(64, 10, generator(seed)) for seed in range(500)])
    assert drawn[7].equal(sample(64, 10, generator(7))) and not drawn[7].equal(drawn[8])
    for values in (drawn, drawn[:, 0]):  # all, and one place of the batch
        counts = torch.bincount(values.flatten(), minlength=10).double()
        assert counts.numel() == 10
        expected = values.numel() / 10
        assert float(((counts - expected) ** 2 / expected).sum()) < 33.7  # chi-square with 9 degrees, p = 1e-4


@pytest.mark.parametrize("n, total", [(1, 1000), (7, 1000), (1000, 1000), (64, 10)])
def test_stratified_timesteps_fill_their_strata(n, total):
    timesteps = stratified_timesteps(n, total, generator()).sort().values
    lower = torch.arange(n) * total // n
    upper = -(-(torch.arange(n) + 1) * total // n)
    assert ((lower <= timesteps) & (timesteps < upper)).all()


# The bound as a loss.


def images(seed, count=6, channels=2):
    return torch.randn(count, channels, 4, 4, generator=generator(seed), dtype=torch.float64)


def data(count=6):
    pixels = torch.randint(0, 256, (count, 2, 4, 4), generator=generator(9))
    return pixels.double() / 255 * 2 - 1


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_bound_is_the_weighted_square_error_of_eq_12(variance_type):
    # For fixed variances a KL term is beta² / (2 sigma² alpha (1 - alpha_bar)) ‖eps - eps_theta‖² plus a constant.
    alpha_bar = np.cumprod(1 - np.linspace(0.0001, 0.02, 1000))
    timesteps = torch.tensor([1, 5, 100, 500, 998, 999])
    now, before = alpha_bar[timesteps], alpha_bar[timesteps - 1]
    beta = 1 - now / before
    small = (1 - before) / (1 - now) * beta
    sigma_2 = beta if variance_type == "fixed_large" else small
    weight = beta**2 / (2 * sigma_2 * (1 - beta) * (1 - now))
    constant = 0.5 * (np.log(sigma_2 / small) - 1 + small / sigma_2)
    loss = DiffusionLoss(LinearDDPMScheduler(variance_type=variance_type), "vlb")
    x_0, eps, guess = data(), images(1), images(2)
    found = loss(lambda x_t, t: guess, x_0, eps, timesteps)
    expected = 1000 * (weight * (eps - guess).square().mean((1, 2, 3)).numpy() + constant) / np.log(2)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-7)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_hybrid_is_simple_plus_bound_with_the_mean_stopped(prediction_type):
    scheduler = LinearDDPMScheduler(prediction_type=prediction_type, variance_type="learned_range")
    timesteps, x_0, eps = torch.tensor([0, 1, 10, 500, 900, 999]), data(), images(1)
    output = images(2, channels=4).requires_grad_()
    hybrid, vlb = (DiffusionLoss(scheduler, loss) for loss in ("hybrid", "vlb"))
    (grad_hybrid,) = torch.autograd.grad(hybrid(lambda x_t, t: output, x_0, eps, timesteps).sum(), output)
    (grad_vlb,) = torch.autograd.grad(vlb(lambda x_t, t: output, x_0, eps, timesteps).sum(), output)
    target = training_target(scheduler, x_0, eps, timesteps)
    (grad_simple,) = torch.autograd.grad(simple_loss(output[:, :2], target).sum(), output)
    torch.testing.assert_close(grad_hybrid[:, :2], grad_simple[:, :2])
    torch.testing.assert_close(grad_hybrid[:, 2:], 0.001 * grad_vlb[:, 2:])
    assert grad_vlb[:, :2].abs().min() > 0 and grad_hybrid[:, 2:].abs().min() > 0
    total = hybrid(lambda x_t, t: output, x_0, eps, timesteps)
    parts = simple_loss(output[:, :2], target) + 0.001 * vlb(lambda x_t, t: output, x_0, eps, timesteps)
    torch.testing.assert_close(total, parts)


# A hole.


def test_the_network_sees_what_is_known_and_the_error_is_of_the_hole():
    """v-prediction in numpy: v = √ᾱ eps - √(1 - ᾱ) x_0."""
    x_0, eps, output, t = data(2), images(1, 2), images(2, 2), np.array([3, 700])
    hole = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    hole[0, 0, 1:3, :2] = hole[1, 0, :, 3] = True
    seen = []
    loss = DiffusionLoss(LinearDDPMScheduler(prediction_type="v_prediction"))
    found = loss(lambda x_t, t: seen.append(x_t) or output, x_0, eps, torch.from_numpy(t), hole=hole)
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[t, None, None, None]
    x, noise, mask = x_0.numpy(), eps.numpy(), hole.numpy()
    x_t = np.sqrt(alpha_bar) * x + np.sqrt(1 - alpha_bar) * noise
    np.testing.assert_allclose(seen[0].numpy(), mask * x_t + ~mask * x, rtol=1e-6)
    squares = (output.numpy() - np.sqrt(alpha_bar) * noise + np.sqrt(1 - alpha_bar) * x) ** 2
    expected = (squares[0, :, 1:3, :2].mean(), squares[1, :, :, 3].mean())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("loss", ["hybrid", "vlb"])
def test_a_hole_and_all_around_it_make_the_whole(loss):
    """Every loss is a mean of pixels, at the first timestep too, where the term is of the decoder."""
    loss = DiffusionLoss(LinearDDPMScheduler(variance_type="learned_range"), loss)
    output, arguments = images(2, channels=4), (data(), images(1), torch.tensor([0, 1, 10, 500, 900, 999]))
    hole = torch.rand(6, 1, 4, 4, generator=generator(3)) < 0.3
    share = hole.double().mean((1, 2, 3))
    inside, outside, whole = (loss(lambda x_t, t: output, *arguments, hole=h) for h in (hole, ~hole, None))
    torch.testing.assert_close(share * inside + (1 - share) * outside, whole)
    assert (inside - outside).abs().min() > 0 and ((share > 0) & (share < 1)).all()


@pytest.mark.parametrize(
    "loss, variance_type", [("simple", "fixed_small"), ("vlb", "fixed_large"), ("hybrid", "learned_range")]
)
def test_one_float32_loss_per_image_under_autocast(loss, variance_type):
    scheduler = LinearDDPMScheduler(variance_type=variance_type)
    channels = 4 if loss == "hybrid" else 2
    network = torch.nn.Conv2d(2, channels, 1)
    x_0, eps, timesteps = data().float(), images(1).float(), torch.tensor([0, 1, 10, 500, 900, 999])
    with torch.autocast("cpu", torch.bfloat16):
        found = DiffusionLoss(scheduler, loss)(lambda x_t, t: network(x_t), x_0, eps, timesteps)
        assert network(x_0).dtype == torch.bfloat16
    assert found.shape == (6,) and found.dtype == torch.float32
    found.mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_conditions_go_to_the_network():
    seen = {}

    def network(x_t, timesteps, **conditions):
        seen.update(conditions)
        return x_t

    labels = torch.arange(6)
    DiffusionLoss(LinearDDPMScheduler())(network, data(), images(1), torch.arange(6), class_labels=labels)
    assert seen["class_labels"] is labels


# Weights.

ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
SNR = torch.tensor([1e-4, 0.3, 1.0, 5.0, 7.0, 1e4], dtype=torch.float64)


def test_min_snr_weights_are_as_published():
    s = SNR.numpy()
    published = {
        "epsilon": np.minimum(s, 5) / s,
        "sample": np.minimum(s, 5),
        "v_prediction": np.minimum(s, 5) / (s + 1),
    }
    for prediction_type, expected in published.items():
        np.testing.assert_allclose(
            snr_weight(SNR, prediction_type, "min_snr", gamma=5.0).numpy(), expected, rtol=1e-12
        )


def test_p2_weights_are_as_published():
    s = SNR.numpy()
    for gamma, k in ((1.0, 1.0), (0.5, 2.0)):
        published = {
            "epsilon": 1 / (k + s) ** gamma,
            "sample": s / (k + s) ** gamma,
            "v_prediction": s / ((s + 1) * (k + s) ** gamma),
        }
        for prediction_type, expected in published.items():
            found = snr_weight(SNR, prediction_type, "p2", gamma=gamma, offset=k)
            np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("weighting", ["min_snr", "p2"])
def test_a_weighting_means_the_same_for_every_prediction(weighting):
    # One wrong guess of x_0, expressed as eps, x_0 or v, costs the same.
    x_0, eps, guess, timesteps = data(), images(1), images(2), torch.tensor([0, 1, 10, 500, 900, 999])
    losses = []
    for prediction_type in ("epsilon", "sample", "v_prediction"):
        scheduler = LinearDDPMScheduler(prediction_type=prediction_type)
        alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[
            timesteps, None, None, None
        ]
        x_t = scheduler.add_noise(x_0, eps, timesteps)
        eps_guess = ((x_t - alpha_bar.sqrt() * guess) / (1 - alpha_bar).sqrt()).float()  # Eq. 4
        output = training_target(scheduler, guess, eps_guess, timesteps)
        loss = DiffusionLoss(scheduler, weighting=weighting)
        losses.append(loss(lambda x_t, t, output=output: output, x_0, eps, timesteps))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses[0], losses[2], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "arguments, config, message",
    [
        ({"loss": "huber"}, {}, "`loss` must be one of simple, vlb, hybrid, got 'huber'"),
        ({"weighting": "snr"}, {}, "`weighting` must be one of none, min_snr, p2, got 'snr'"),
        ({"loss": "vlb", "weighting": "p2"}, {}, "`weighting='p2'`"),
        ({"weighting": "min_snr"}, ZERO_SNR, "`weighting='min_snr'` is 0 where SNR is 0.*`rescale_betas_zero_snr`"),
        ({"weighting": "p2"}, ZERO_SNR, "`weighting='p2'` is 0 where SNR is 0"),
        ({"loss": "hybrid"}, {}, "`loss='hybrid'` cannot be used with `variance_type='fixed_small'`"),
        ({"loss": "simple"}, {"variance_type": "learned_range"}, "`loss='simple'` cannot be used with"),
    ],
)
def test_bad_losses(arguments, config, message):
    with pytest.raises(ValueError, match=message):
        DiffusionLoss(LinearDDPMScheduler(**config), **arguments)


def test_learned_variance_needs_two_outputs_per_channel():
    loss = DiffusionLoss(LinearDDPMScheduler(variance_type="learned_range"), "hybrid")
    with pytest.raises(ValueError, match="must have 4 channels .* got 2. Change `variance_type` or `out_channels`"):
        loss(lambda x_t, t: x_t, data(), images(1), torch.arange(6))


# Importance sampling.


def filled_sampler():
    sampler = SecondMomentSampler(8, history=3)
    scale = torch.arange(1, 9).double()
    for seed in range(5):  # two rounds more than the history holds
        noise = 1 + 0.1 * torch.rand(8, generator=generator(seed), dtype=torch.float64)
        sampler.update(torch.arange(8), scale * noise)
    last = [1 + 0.1 * torch.rand(8, generator=generator(seed), dtype=torch.float64) for seed in (2, 3, 4)]
    return sampler, torch.stack(last) * scale


def test_probabilities_follow_the_second_moment_of_the_last_losses():
    sampler, last = filled_sampler()
    root = np.sqrt((last.numpy() ** 2).mean(0))
    expected = 0.999 * root / root.sum() + 0.001 / 8
    np.testing.assert_allclose(sampler.probabilities().numpy(), expected, rtol=1e-12)


def test_sampling_is_uniform_until_every_timestep_has_its_history():
    sampler = SecondMomentSampler(4, history=2)
    for _ in range(2):
        assert sampler.probabilities().tolist() == [0.25] * 4
        sampler.update(torch.arange(3), torch.tensor([1.0, 2.0, 3.0]))
    assert sampler.probabilities().tolist() == [0.25] * 4
    sampler.update(torch.tensor([3, 3]), torch.tensor([4.0, 4.0]))
    assert sampler.probabilities()[3] > sampler.probabilities()[0]
    timesteps, weights = SecondMomentSampler(4).sample(5, generator())
    assert timesteps.shape == (5,) and weights.tolist() == [1.0] * 5


def test_weights_keep_the_mean_unbiased_and_lower_the_variance():
    sampler, _ = filled_sampler()
    losses = torch.arange(1, 9).double()
    timesteps, weights = sampler.sample(20000, generator())
    estimates = weights * losses[timesteps]
    error = float(estimates.std()) / 20000**0.5
    assert abs(float(estimates.mean()) - float(losses.mean())) < 4 * error
    assert float(estimates.std()) < float(losses.std()) / 5


def test_sampler_state_round_trip(tmp_path):
    sampler, _ = filled_sampler()
    save_file(sampler.state_dict(), tmp_path / "sampler.safetensors")
    other = SecondMomentSampler(8, history=3)
    other.load_state_dict(load_file(tmp_path / "sampler.safetensors"))
    for step in range(3):
        drawn = [s.sample(4, generator(step)) for s in (sampler, other)]
        assert drawn[0][0].equal(drawn[1][0]) and drawn[0][1].equal(drawn[1][1])
        for s in (sampler, other):
            s.update(drawn[0][0], torch.arange(4).float())
    with pytest.raises(ValueError, match=r"\(9, 3\).*got \(8, 3\)"):
        SecondMomentSampler(9, history=3).load_state_dict(sampler.state_dict())
