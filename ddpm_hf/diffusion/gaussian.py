"""Gaussians: KL divergence, and the likelihood of a pixel that was rounded to 8 bits. In nats.

Equation numbers are those of Ho et al. 2020 (arXiv 2006.11239).
"""

import math

import torch

from .tensors import at_least_float32

LEVELS = 256
BIN = 2 / (LEVELS - 1)  # spacing of pixel values in [-1, 1]
NARROW = 0.05  # width times (1 + distance) below which an interval of the normal density is expanded about its middle
CDFS = ("erf", "tanh")


def normal_kl(
    mean_1: torch.Tensor, log_variance_1: torch.Tensor, mean_2: torch.Tensor, log_variance_2: torch.Tensor
) -> torch.Tensor:
    """KL(N(mean_1, variance_1) ‖ N(mean_2, variance_2)) of each element, in nats; the arguments broadcast."""
    ratio = torch.exp(log_variance_1 - log_variance_2)
    distance = (mean_1 - mean_2).square() * torch.exp(-log_variance_2)
    return 0.5 * (log_variance_2 - log_variance_1 + ratio + distance - 1)


class _NormalLogCDF(torch.autograd.Function):
    """torch.special.log_ndtr, whose own gradient is wrong in the far tail (6 times too large at -1e4 in float32)."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return torch.special.log_ndtr(z)

    @staticmethod
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        return grad * (math.sqrt(2 / math.pi) / torch.special.erfcx(-z / math.sqrt(2)))


def normal_log_cdf(z: torch.Tensor) -> torch.Tensor:
    """log Phi(z), the log-CDF of N(0, 1), finite and with an exact gradient phi(z) / Phi(z) far into both tails."""
    return _NormalLogCDF.apply(z)


def discretized_gaussian_log_likelihood(
    x: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor, *, cdf: str = "erf"
) -> torch.Tensor:
    """Log of the mass that N(mean, variance) puts on the bin of each pixel, Eq. 13, in nats.

    A bin reaches 1/255 to each side of its pixel value; the outermost two extend to -∞ and ∞, so the 256 bins have a
    total mass of 1.

    Args:
        x: pixels, float32 or float64, one of the 256 values p/255·2 - 1.
        mean, log_variance: of the Gaussian; they broadcast with `x`.
        cdf: "erf" is exact, computed in the log domain, and finite for every pixel however unlikely. "tanh" is what
            published bits/dim used: an approximation of the CDF that is off by up to 1.8e-4, and a mass of at least
            1e-12 for every pixel.

    Returns:
        Tensor of the broadcast shape, at most 0.

    Raises:
        ValueError: for another `cdf`.
    """
    if cdf not in CDFS:
        raise ValueError(f"`cdf` must be one of {', '.join(CDFS)}, got {cdf!r}.")
    x, mean = at_least_float32(x, mean)
    x, log_variance = at_least_float32(x, log_variance)
    inverse_std = torch.exp(-0.5 * log_variance)
    # The square of a standardized distance must stay finite.
    limit = torch.finfo(x.dtype).max ** 0.5 / 4
    centre = ((x - mean) * inverse_std).clamp(-limit, limit)
    width = (BIN * inverse_std).clamp(max=limit).expand_as(centre)
    if cdf == "tanh":
        return _tanh_log_mass(x, centre - width / 2, centre + width / 2)
    inside = _log_mass(centre, width)
    inside = torch.where(x < -1 + BIN / 2, normal_log_cdf(centre + width / 2), inside)
    return torch.where(x > 1 - BIN / 2, normal_log_cdf(width / 2 - centre), inside)


def _log_mass(centre: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    """log(Phi(centre + width/2) - Phi(centre - width/2)) without cancellation."""
    # By symmetry the interval can be moved to the left, where log Phi does not saturate.
    z = -centre.abs()
    narrow = width * (1 - z) < NARROW
    # d log Phi/dz = phi/Phi ≥ -z, so log Phi differs by at least -width·upper between the ends, even if rounding made
    # them equal.
    wide = torch.where(narrow, torch.ones_like(width), width)  # keeps the unused branch, and its gradient, finite
    upper = z + wide / 2
    log_upper = normal_log_cdf(upper)
    log_ratio = (log_upper - normal_log_cdf(z - wide / 2)).maximum(wide * (-upper).clamp(min=0))
    by_difference = log_upper + torch.log(-torch.expm1(-log_ratio))
    # The midpoint rule with its next two terms; the error is of order (width·z)^6 / 3e5.
    thin = torch.where(narrow, width, torch.zeros_like(width) + NARROW / 2)
    flat = torch.where(narrow, z, torch.zeros_like(z))
    curvature = thin**2 * (flat**2 - 1) / 24 + thin**4 * (flat**4 - 6 * flat**2 + 3) / 1920
    by_midpoint = thin.log() - 0.5 * (flat**2 + math.log(2 * math.pi)) + torch.log1p(curvature)
    return torch.where(narrow, by_midpoint, by_difference)


def _tanh_log_mass(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """As in the paper's code, including its floor of 1e-12."""
    cdf_lower, cdf_upper = (
        0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) for z in (lower, upper)
    )
    mass = torch.where(x < -1 + BIN / 2, cdf_upper, cdf_upper - cdf_lower)
    mass = torch.where(x > 1 - BIN / 2, 1 - cdf_lower, mass)
    return mass.clamp(min=1e-12).log()


def share_off_the_8_bit_grid(images: torch.Tensor) -> float:
    """The fraction of pixels that are not one of the 256 values p/255·2 - 1."""
    levels = (images.float() + 1) * ((LEVELS - 1) / 2)
    on_grid = ((levels - levels.round()).abs() < 1e-2) & (levels > -0.5) & (levels < LEVELS - 0.5)
    return 1 - float(on_grid.float().mean())
