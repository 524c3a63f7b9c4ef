"""Gaussian formulas against torch.distributions, quadrature, many digits and the published approximation."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, stats

from ddpm_hf.diffusion.gaussian import (
    discretized_gaussian_log_likelihood,
    normal_kl,
    normal_log_cdf,
    share_off_the_8_bit_grid,
)

PIXELS = torch.arange(256, dtype=torch.float64) / 255 * 2 - 1


def random(seed, shape=(500,)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kl_equals_torch_distributions():
    mean_1, mean_2, log_variance_1, log_variance_2 = (2 * random(seed) for seed in range(4))
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean_1, (0.5 * log_variance_1).exp()),
        torch.distributions.Normal(mean_2, (0.5 * log_variance_2).exp()),
    )
    found = normal_kl(mean_1, log_variance_1, mean_2, log_variance_2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def log_mass(x, mean, std, **options):
    mean, log_variance = torch.tensor([mean, 2 * math.log(std)], dtype=torch.float64)
    return discretized_gaussian_log_likelihood(x, mean, log_variance, **options)


@pytest.mark.parametrize("std", [1e-4, 1e-3, 0.0074, 0.1, 1.0, 30.0, 1e5])
@pytest.mark.parametrize("mean", [-7.0, -1.0, -0.3, 0.0, 0.123, 1.0, 1.5])
def test_bins_sum_to_one(mean, std):
    found = log_mass(PIXELS, mean, std)
    assert found.max() <= 0
    assert abs(math.fsum(found.exp().tolist()) - 1) < 1e-12
    by_tanh = log_mass(PIXELS, mean, std, cdf="tanh").exp().sum()
    assert abs(float(by_tanh) - 1) < 1e-9  # each mass is at least 1e-12


def exact_log_mass(pixel, mean, std):
    """The mass of a bin by mpmath with 60 digits, which no tail and no narrow bin can exhaust."""
    with mpmath.workdps(60):
        x, half, mean, std = 2 * mpmath.mpf(pixel) / 255 - 1, mpmath.mpf(1) / 255, mpmath.mpf(mean), mpmath.mpf(std)
        lower = -mpmath.inf if pixel == 0 else (x - half - mean) / std
        upper = mpmath.inf if pixel == 255 else (x + half - mean) / std
        if lower > 0:
            lower, upper = -upper, -lower
        return float(mpmath.log(mpmath.ncdf(upper) - mpmath.ncdf(lower)))


@pytest.mark.parametrize("std", [1e-3, 0.0074, 0.05, 0.4, 3.0, 200.0])
def test_decoder_equals_many_digits(std):
    mean = 0.1234
    found = log_mass(PIXELS, mean, std)
    for pixel in (0, 1, 60, 140, 142, 143, 144, 200, 254, 255):
        assert float(found[pixel]) == pytest.approx(exact_log_mass(pixel, mean, std), rel=1e-11, abs=1e-12)


@pytest.mark.parametrize("std", [0.0074, 0.1, 2.0])
def test_decoder_equals_quadrature(std):
    mean = 0.1234
    for pixel in (136, 143, 150):  # an outer bin or a far tail would leave nothing to integrate in float64
        x = float(PIXELS[pixel])
        mass, _ = integrate.quad(stats.norm(mean, std).pdf, x - 1 / 255, x + 1 / 255, epsabs=0, epsrel=1e-12)
        assert float(log_mass(PIXELS, mean, std)[pixel]) == pytest.approx(np.log(mass), rel=1e-10)


def test_log_cdf_and_its_gradient_far_out():
    for dtype in (torch.float32, torch.float64):
        z = torch.tensor([-1e8, -1e4, -50.0, -1.0, 0.0, 3.0, 50.0], dtype=dtype, requires_grad=True)
        normal_log_cdf(z).sum().backward()
        with mpmath.workdps(60):
            values = [float(mpmath.log(mpmath.ncdf(v))) for v in z.tolist()[1:]]
            hazard = [float(mpmath.npdf(v) / mpmath.ncdf(v)) for v in z.tolist()[1:]]
        np.testing.assert_allclose(normal_log_cdf(z).tolist()[1:], values, rtol=1e-6, atol=1e-30)
        np.testing.assert_allclose(z.grad.tolist()[1:], hazard, rtol=1e-6, atol=1e-30)
        assert z.grad[0].item() == pytest.approx(1e8, rel=1e-6)


@pytest.mark.parametrize("cdf", ["erf", "tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_pixel_is_impossible(dtype, cdf):
    means = torch.tensor([0.0, 1.0, -1.0, 0.5, 3.0, -200.0, 1e6, -1e12], dtype=dtype, requires_grad=True)
    log_variances = torch.tensor([0.0, -10.0, -30.0, -80.0, 10.0, 80.0], dtype=dtype, requires_grad=True)
    x = PIXELS.to(dtype)[:, None, None]
    found = discretized_gaussian_log_likelihood(x, means[:, None], log_variances, cdf=cdf)
    assert found.isfinite().all() and found.max() <= 0
    found.clamp(min=-1e6).sum().backward()
    assert means.grad.isfinite().all() and log_variances.grad.isfinite().all()


def test_float32_is_near_to_float64():
    mean, log_variance = random(0, (200, 1)), torch.linspace(-11, 1, 200, dtype=torch.float64)[:, None]
    exact = discretized_gaussian_log_likelihood(PIXELS, mean, log_variance)
    single = discretized_gaussian_log_likelihood(PIXELS.float(), mean.float(), log_variance.float())
    assert float(((single.double() - exact).abs() / exact.abs().clamp(min=1)).max()) < 1e-4


def test_gradient_equals_finite_differences():
    x = PIXELS[[0, 30, 128, 255]][:, None]
    mean = torch.tensor([0.1, -0.8, 0.99]).double().requires_grad_()
    for center in (-9.5, -3.0, 8.0):
        log_variance = torch.full((3,), center, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda m, v: discretized_gaussian_log_likelihood(x, m, v),
            (mean, log_variance),
            eps=1e-7,
            rtol=1e-4,
            atol=1e-5,
        )


def test_tanh_is_the_published_approximation():
    # A perfect prediction and one that is 4 levels off, at the first step's standard deviation, by the formula as
    # published: Phi(z) ≈ (1 + tanh(√(2/π)(z + 0.044715 z³)))/2.
    std = 0.00738
    for off in (0, 4):
        lower, upper = ((2 * off + sign) / 255 / std for sign in (-1, 1))
        cdf_lower, cdf_upper = (
            0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) for z in (lower, upper)
        )
        found = log_mass(PIXELS, float(PIXELS[120]), std, cdf="tanh")[120 + off]
        # Far out the two CDFs are near 1 and lose digits in their difference.
        assert float(found) == pytest.approx(math.log(cdf_upper - cdf_lower), rel=1e-9)
        assert float(found) != pytest.approx(exact_log_mass(120 + off, float(PIXELS[120]), std), rel=1e-5)


def test_unknown_cdf():
    with pytest.raises(ValueError, match="`cdf` must be one of erf, tanh, got 'logistic'"):
        discretized_gaussian_log_likelihood(PIXELS, PIXELS, PIXELS, cdf="logistic")


def test_share_off_the_8_bit_grid():
    pixels = PIXELS.float().repeat(4)
    assert share_off_the_8_bit_grid(pixels) == 0
    pixels[:256] += 0.3 / 127.5
    pixels[256:512] = torch.linspace(1.01, 3, 256)
    assert share_off_the_8_bit_grid(pixels) == 0.5


def test_dtypes_may_differ():
    x = torch.tensor([-1.0, 3 / 255, 1.0])
    wanted = discretized_gaussian_log_likelihood(x, x / 2, torch.zeros(3))
    for dtypes in ((torch.float64, torch.float32, torch.float32), (torch.float32, torch.bfloat16, torch.float64)):
        given = [tensor.to(dtype) for tensor, dtype in zip((x, x / 2, torch.zeros(3)), dtypes, strict=True)]
        torch.testing.assert_close(
            discretized_gaussian_log_likelihood(*given), wanted, check_dtype=False, rtol=0.02, atol=0
        )
