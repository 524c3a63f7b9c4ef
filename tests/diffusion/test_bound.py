"""The bound against closed forms for Gaussian data, and against true likelihoods of a discrete toy distribution."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from gaussian_data import MEAN, STD, optimal_network, optimal_variance

from ddpm_hf.diffusion.bound import VariationalBound
from ddpm_hf.diffusion.gaussian import discretized_gaussian_log_likelihood
from ddpm_hf.diffusion.process import PREDICTION_TYPES, VARIANCE_TYPES
from ddpm_hf.diffusion.scheduler import LinearDDPMScheduler

ALPHA_BAR = np.cumprod(1 - np.linspace(0.0001, 0.02, 1000))
FULL = list(range(999, -1, -1))
CHAINS = {"full": FULL, "strided": [999, 750, 500, 250, 100, 10, 0], "odd": [980, 300, 7], "single": [999]}
LN2 = math.log(2)


def gauss_hermite(n):
    """Nodes and weights of the expectation over N(0, 1), exact for polynomials up to degree 2n - 1."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return nodes, weights / weights.sum()


def generators(n):
    return [torch.Generator().manual_seed(k) for k in range(n)]


def chain_coefficients(chain):
    """By step of the chain: alpha_bar, alpha_bar of the previous timestep, beta and the posterior variance."""
    now = ALPHA_BAR[chain]
    before = np.append(ALPHA_BAR[chain[1:]], 1.0)
    beta = 1 - now / before
    return now, before, beta, (1 - before) / (1 - now) * beta


def expected_terms(bound, network):
    """E over x_0 and eps of each step's bits, exact for the KL terms, which are quadratic in both."""
    nodes, weights = gauss_hermite(3)
    steps = len(bound.chain)
    x_0 = torch.from_numpy(MEAN + STD * nodes).repeat_interleave(3).repeat(steps).reshape(-1, 1, 1, 1)
    eps = torch.from_numpy(nodes).repeat(3 * steps).reshape(-1, 1, 1, 1)
    weights = torch.from_numpy(np.outer(weights, weights).flatten())
    timesteps = torch.tensor(bound.chain).repeat_interleave(9)
    x_t = bound.scheduler.add_noise(x_0, eps, timesteps)
    term = bound.step_term(network(x_t, timesteps), x_0, x_t, timesteps)
    return tuple((values.reshape(steps, 9) @ weights).numpy() for values in term)


@pytest.mark.parametrize("chain", ["full", "strided", "odd"])
@pytest.mark.parametrize("prediction_type, variance_type", [
    *[("epsilon", v) for v in VARIANCE_TYPES], ("sample", "fixed_small"), ("v_prediction", "fixed_large"),
    ("v_prediction", "learned_range"),
])  # fmt: skip
def test_kl_terms_of_gaussian_data(prediction_type, variance_type, chain):
    now, before, beta, small = chain_coefficients(CHAINS[chain])
    second = {"learned": -3.0, "learned_range": 0.2}.get(variance_type)
    scheduler = LinearDDPMScheduler(prediction_type=prediction_type, variance_type=variance_type)
    bound = VariationalBound(scheduler, timesteps=CHAINS[chain], clip=None)
    bits, mse = expected_terms(bound, optimal_network(ALPHA_BAR, prediction_type, second))

    np.testing.assert_allclose(mse, optimal_variance(now), rtol=1e-8)

    now, before, beta, small = (values[:-1] for values in (now, before, beta, small))  # the last step is no KL term
    log_variance = {
        "learned": np.full_like(beta, -3.0),
        "learned_range": 0.6 * np.log(beta) + 0.4 * np.log(small),
    }.get(variance_type, np.log(beta if "large" in variance_type else small))
    weight = before * (beta / (1 - now)) ** 2  # of the error of x_0 in the squared distance of the means
    distance = weight * optimal_variance(now)
    kl = 0.5 * (log_variance - np.log(small) - 1 + (small + distance) / np.exp(log_variance))
    np.testing.assert_allclose(bits[:-1] * LN2, kl, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("chain", CHAINS)
def test_prior_term_of_gaussian_data(chain):
    bound = VariationalBound(LinearDDPMScheduler(), timesteps=CHAINS[chain])
    a = ALPHA_BAR[CHAINS[chain][0]]
    nodes, weights = gauss_hermite(3)
    x_0 = torch.from_numpy(MEAN + STD * nodes).reshape(3, 1, 1, 1)
    expected = 0.5 * (a * (MEAN**2 + STD**2) + (1 - a) - 1 - np.log(1 - a))
    assert float((bound.prior_term(x_0).numpy() * weights).sum()) * LN2 == pytest.approx(expected, abs=1e-10)


def test_bound_is_tight_with_the_exact_reverse_process():
    # For Gaussian data p(x_{t-1} | x_t) is Gaussian: with its mean and variance, a continuous decoder included, the
    # bound is E[-log p(x_0)] = entropy + KL(q(x_T) ‖ N(0, 1)).
    now, before, beta, small = chain_coefficients(FULL)
    exact = small + before * (beta / (1 - now)) ** 2 * optimal_variance(now)
    scheduler = LinearDDPMScheduler(variance_type="learned")
    bound = VariationalBound(scheduler, clip=None)
    bits, _ = expected_terms(bound, optimal_network(ALPHA_BAR, "epsilon", np.log(exact[::-1].copy())))
    a, nodes = ALPHA_BAR[-1], gauss_hermite(3)
    x_0 = torch.from_numpy(MEAN + STD * nodes[0]).reshape(3, 1, 1, 1)
    prior = float((bound.prior_term(x_0).numpy() * nodes[1]).sum())
    decoder = 0.5 * np.log(2 * np.pi * np.e * optimal_variance(ALPHA_BAR[0]))
    entropy = 0.5 * np.log(2 * np.pi * np.e * STD**2)
    marginal = a * STD**2 + 1 - a
    gap = 0.5 * (marginal + a * MEAN**2 - 1 - np.log(marginal))
    assert (prior + bits[:-1].sum()) * LN2 + decoder == pytest.approx(entropy + gap, abs=1e-9)


@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
def test_decoder_term(variance_type):
    # By the paper's published code sigma_1² is the posterior variance of the second step, for the large one too.
    scheduler = LinearDDPMScheduler(variance_type=variance_type)
    bound = VariationalBound(scheduler, timesteps=[999, 500, 3, 0], clip=None)
    _, _, beta, small = chain_coefficients([999, 500, 3, 0])
    second = {"learned": -8.0, "learned_range": 0.0}.get(variance_type)
    expected_log_variance = {"learned": -8.0, "learned_range": 0.5 * (np.log(beta[-1]) + np.log(small[-2]))}.get(
        variance_type, np.log(small[-2])
    )
    x_0 = (torch.arange(256, dtype=torch.float64) / 255 * 2 - 1).reshape(256, 1, 1, 1)
    x_t, timesteps = x_0 + 0.01, torch.zeros(256, dtype=torch.int64)
    network = optimal_network(ALPHA_BAR, "epsilon", second)
    a = ALPHA_BAR[0]
    mean = MEAN + np.sqrt(a) * STD**2 / (a * STD**2 + 1 - a) * (x_t - np.sqrt(a) * MEAN)
    log_variance = torch.tensor(expected_log_variance, dtype=torch.float64)
    expected = -discretized_gaussian_log_likelihood(x_0, mean, log_variance).flatten() / LN2
    found = bound.step_term(network(x_t, timesteps), x_0, x_t, timesteps).bits
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    tanh = VariationalBound(
        scheduler,
        timesteps=[999, 500, 3, 0],
        clip=None,
        decoder=partial(discretized_gaussian_log_likelihood, cdf="tanh"),
    )
    assert not tanh.step_term(network(x_t, timesteps), x_0, x_t, timesteps).bits.allclose(expected, rtol=1e-6)


def test_clipping_bounds_the_prediction():
    wild = LinearDDPMScheduler(prediction_type="sample")
    x_0, x_t, t = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.tensor([500])
    clipped = VariationalBound(wild).step_term(torch.full_like(x_0, 3.0), x_0, x_t, t)
    free = VariationalBound(wild, clip=None).step_term(torch.full_like(x_0, 3.0), x_0, x_t, t)
    assert clipped.x_0_mse.item() == 0 and clipped.bits.item() == pytest.approx(0, abs=1e-6)
    assert free.x_0_mse.item() == 4 and free.bits.item() > 0


# A bound on true likelihoods: one pixel with three values.

VALUES = torch.tensor([20, 128, 250], dtype=torch.float64) / 255 * 2 - 1
PROBABILITIES = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def toy_network(x_t, timesteps):
    """E[x_0 | x_t] of the toy distribution."""
    a = torch.from_numpy(ALPHA_BAR)[timesteps].reshape(-1, 1, 1, 1)
    log_weights = PROBABILITIES.log() - (x_t - a.sqrt() * VALUES).square() / (2 * (1 - a))
    return (log_weights.softmax(dim=-1) * VALUES).sum(-1, keepdim=True)


def toy_bound(bound):
    """The bound for each value in bits, its expectation over the noise by Gauss-Hermite quadrature."""
    nodes, weights = (torch.from_numpy(array) for array in gauss_hermite(200))
    steps, count = len(bound.chain), len(VALUES)
    x_0 = VALUES.repeat_interleave(200).repeat(steps).reshape(-1, 1, 1, 1)
    eps = nodes.repeat(count * steps).reshape(-1, 1, 1, 1)
    timesteps = torch.tensor(bound.chain).repeat_interleave(200 * count)
    x_t = bound.scheduler.add_noise(x_0, eps, timesteps)
    bits = bound.step_term(toy_network(x_t, timesteps), x_0, x_t, timesteps).bits
    terms = bits.reshape(steps, count, 200) @ weights
    return bound.prior_term(VALUES.reshape(-1, 1, 1, 1)) + terms.sum(0)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_bound_lies_above_the_entropy_and_comes_nearer(variance_type):
    scheduler = LinearDDPMScheduler(
        prediction_type="sample", variance_type=variance_type, timestep_spacing="linspace"
    )  # fmt: skip
    entropy = float(-(PROBABILITIES * PROBABILITIES.log2()).sum())
    gaps = [
        float((PROBABILITIES * toy_bound(VariationalBound(scheduler, n))).sum()) - entropy for n in (4, 20, 100, 1000)
    ]
    assert all(gap > 0 for gap in gaps)
    assert all(a > b for a, b in zip(gaps, gaps[1:], strict=False))
    assert gaps[-1] < gaps[0] / 3


def test_bound_lies_above_the_models_own_likelihood():
    # -log p(x_0) of the model itself, by integrating its chain backwards on a grid.
    scheduler = LinearDDPMScheduler(prediction_type="sample")
    bound = VariationalBound(scheduler, timesteps=[999, 800, 600, 450, 300, 200, 120, 60, 20, 0])
    s, grid = bound.scheduler, torch.linspace(-4.5, 4.5, 1501, dtype=torch.float64)
    step, x = grid[1] - grid[0], grid.reshape(-1, 1, 1, 1)
    likelihood = None  # of each value, given x_t on the grid
    for t in reversed(bound.chain):
        timesteps = torch.full((len(grid),), t)
        mean = s.posterior_mean(toy_network(x, timesteps).clamp(-1, 1), x, timesteps).reshape(-1, 1)
        log_variance = s.model_log_variance(t).double()
        if likelihood is None:
            likelihood = discretized_gaussian_log_likelihood(VALUES, mean, log_variance).exp()
        else:
            density = torch.exp(-0.5 * (grid - mean).square() / log_variance.exp())
            likelihood = density @ likelihood * step / torch.sqrt(2 * math.pi * log_variance.exp())
    prior = torch.exp(-0.5 * grid.square()) / math.sqrt(2 * math.pi)
    true_bits = -torch.log2(prior @ likelihood * step)
    found = toy_bound(bound)
    assert (true_bits < found).all() and (found < true_bits + 3.5).all()


# Evaluation of batches.


def bound_and_images(variance_type="fixed_small", n=6, count=5):
    bound = VariationalBound(LinearDDPMScheduler(variance_type=variance_type, timestep_spacing="linspace"), n)
    pixels = torch.randint(0, 256, (count, 2, 3, 3), generator=torch.Generator().manual_seed(1))
    return bound, pixels.float() / 255 * 2 - 1


def network(x_t, timesteps, shift=None):
    output = 0.9 * x_t + 0.01 * timesteps.reshape(-1, 1, 1, 1) / 1000
    return output if shift is None else output + shift.reshape(-1, 1, 1, 1)


def test_evaluation_does_not_depend_on_the_batch():
    bound, x_0 = bound_and_images()
    shift = torch.linspace(0, 1, 5)
    whole = bound.evaluate(network, x_0, generators(5), pairs_per_call=7, shift=shift)
    for k in range(5):
        alone = bound.evaluate(network, x_0[k : k + 1], generators(5)[k : k + 1], shift=shift[k : k + 1])
        for name in ("prior", "terms", "x_0_mse", "total", "rate", "distortion"):
            torch.testing.assert_close(getattr(whole, name)[k : k + 1], getattr(alone, name), rtol=1e-5, atol=1e-6)
    assert whole.timesteps[0].tolist() == list(bound.chain) == [999, 799, 599, 400, 200, 0]
    torch.testing.assert_close(whole.rate + whole.terms[:, -1].double(), whole.total)
    torch.testing.assert_close((whole.prior + whole.terms.sum(1)).double(), whole.total, rtol=1e-6, atol=0)


def test_terms_are_those_of_step_term():
    bound, x_0 = bound_and_images(count=2)
    found = bound.evaluate(network, x_0, generators(2))
    replay = generators(2)
    for k, t in enumerate(bound.chain):
        eps = torch.stack([torch.randn(2, 3, 3, generator=generator) for generator in replay])
        timesteps = torch.full((2,), t)
        x_t = bound.scheduler.add_noise(x_0, eps, timesteps)
        term = bound.step_term(network(x_t, timesteps), x_0, x_t, timesteps)
        torch.testing.assert_close(found.terms[:, k], term.bits)


def test_sampled_terms_estimate_the_sum():
    bound, x_0 = bound_and_images(count=1)
    many = x_0.expand(4000, -1, -1, -1)
    exact = bound.evaluate(network, many[:500], generators(500)).total
    drawn = torch.rand(4000, 6, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :2]  # 2 of the 6 terms
    timesteps = torch.tensor(bound.chain)[drawn]
    estimate = bound.evaluate(network, many, generators(4000), timesteps=timesteps, pairs_per_call=4000)
    assert estimate.terms.shape == (4000, 2) and torch.equal(estimate.timesteps, timesteps)
    error = (estimate.total.var() / 4000 + exact.var() / 500).sqrt()
    assert abs(float(estimate.total.mean() - exact.mean())) < 4 * float(error)


def test_bad_input():
    bound, x_0 = bound_and_images()
    with pytest.raises(ValueError, match="`generators` must be one per image, got 4 for 5 images"):
        bound.evaluate(network, x_0, generators(4))
    with pytest.warns(UserWarning, match="50.00% of the pixels are not 8-bit values"):
        bound.evaluate(network, torch.cat([x_0, x_0 + 0.002]), generators(10))
    with pytest.raises(ValueError, match="`num_inference_steps` must be between 1 and 1000, got 1001"):
        VariationalBound(LinearDDPMScheduler(), 1001)
    with pytest.raises(ValueError, match="must have 4"):
        bound_and_images("learned_range")[0].evaluate(network, x_0, generators(5))
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="rescale_betas_zero_snr"):
        VariationalBound(LinearDDPMScheduler(rescale_betas_zero_snr=True))


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_zero_terminal_snr_has_no_prior_term(prediction_type):
    scheduler = LinearDDPMScheduler(prediction_type=prediction_type, rescale_betas_zero_snr=True)
    found = VariationalBound(scheduler).evaluate(network, bound_and_images(count=2)[1], generators(2))
    assert found.prior.tolist() == [0, 0]
    assert found.terms.isfinite().all() and (found.terms > -1e-6).all()


def test_the_copy_of_the_process_is_its_own():
    scheduler = LinearDDPMScheduler()
    bound = VariationalBound(scheduler)
    scheduler.set_timesteps(3)
    assert len(bound.chain) == len(bound.scheduler.timesteps) == 1000


def test_all_predictions_of_one_x_0_give_one_bound():
    x_0 = bound_and_images(count=3)[1].double()
    totals = []
    for prediction_type in PREDICTION_TYPES:
        bound = VariationalBound(LinearDDPMScheduler(prediction_type=prediction_type), timesteps=[999, 400, 20, 0])
        totals.append(bound.evaluate(optimal_network(ALPHA_BAR, prediction_type), x_0, generators(3)).total)
    torch.testing.assert_close(totals[0], totals[1], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(totals[0], totals[2], rtol=1e-8, atol=1e-8)
