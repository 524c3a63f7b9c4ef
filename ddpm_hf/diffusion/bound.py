"""The variational bound on -log p(x_0), term by term and image by image, in bits per dimension.

Ho et al. 2020 (arXiv 2006.11239), Eq. 5: L = L_T + Σ L_{t-1} + L_0. With a strided chain the sum runs over the steps
of the chain, and its last step is the decoder L_0 (Nichol & Dhariwal 2021, arXiv 2102.09672, §4).
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from diffusers import DDPMScheduler

from .gaussian import discretized_gaussian_log_likelihood, normal_kl, share_off_the_8_bit_grid
from .process import FORWARD_VARIANCES
from .scheduler import LinearDDPMScheduler
from .tensors import image_means

# (x_t, timesteps, **conditions) -> output: (pairs, C, H, W) and (pairs,) to (pairs, C or 2C, H, W)
Network = Callable[..., torch.Tensor]


class StepTerm(NamedTuple):
    """One step's share of the bound; both of shape (batch,)."""

    bits: torch.Tensor
    """L_{t-1}, or L_0 at the chain's last timestep, in bits/dim."""
    x_0_mse: torch.Tensor
    """Mean square error of the predicted x_0 (clipped if the bound clips), pixels in [-1, 1]."""


@dataclass
class Bound:
    """The bound of a batch of images: all of its n terms, or K of them for each image."""

    prior: torch.Tensor
    """L_T in bits/dim, shape (batch,)."""
    timesteps: torch.Tensor
    """Which terms: shape (batch, K), entries of the chain."""
    terms: torch.Tensor
    """L_{t-1}, and L_0 at the chain's last timestep, in bits/dim, shape (batch, K)."""
    x_0_mse: torch.Tensor
    """Mean square error of the predicted x_0, pixels in [-1, 1], shape (batch, K)."""
    chain: tuple[int, ...]
    """The n timesteps of the chain, decreasing."""

    weights: torch.Tensor
    """What makes the weighted sum of the terms unbiased, float64, shape (batch, K); 1 if all are there."""

    @property
    def sent(self) -> torch.Tensor:
        """The weighted terms, float64, on the CPU, shape (batch, K)."""
        return self.weights * self.terms.cpu().double()

    @property
    def total(self) -> torch.Tensor:
        """L in bits/dim, float64, on the CPU, shape (batch,): exact for all terms, an unbiased estimate for some."""
        return self.prior.cpu().double() + self.sent.sum(1)

    @property
    def distortion(self) -> torch.Tensor:
        """L_0, as `total`."""
        return torch.where(self.timesteps == self.chain[-1], self.sent, 0).sum(1)

    @property
    def rate(self) -> torch.Tensor:
        """L_1 + … + L_T, as `total`."""
        return self.total - self.distortion


class VariationalBound:
    """Computes the bound for one process and one chain.

    Args:
        scheduler: the process; copied, so that `set_timesteps` on it does not change the bound.
        num_inference_steps: length of a strided chain, by the scheduler's spacing; by default all T timesteps.
        timesteps: a chain given explicitly instead, decreasing.
        clip: the range to which the predicted x_0 is clipped, as published bits/dim do; None for none.
        decoder: -L_0, the log of p(x_0 | x_1) of each element, given x_0, mean and log variance.

    Raises:
        ValueError: for an impossible chain, or a prediction of epsilon with zero terminal SNR.
    """

    def __init__(
        self,
        scheduler: DDPMScheduler,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        *,
        clip: tuple[float, float] | None = (-1.0, 1.0),
        decoder: Callable[..., torch.Tensor] = discretized_gaussian_log_likelihood,
    ):
        self.scheduler = LinearDDPMScheduler.from_config(scheduler.config)
        if num_inference_steps is None and timesteps is None:
            timesteps = range(self.scheduler.config.num_train_timesteps - 1, -1, -1)
        self.scheduler.set_timesteps(num_inference_steps, timesteps=timesteps)
        self.chain = tuple(self.scheduler.timesteps.tolist())
        self.clip, self.decoder = clip, decoder

    def prior_term(self, x_0: torch.Tensor) -> torch.Tensor:
        """L_T = KL(q(x_T | x_0) ‖ N(0, I)) in bits/dim, shape (batch,), for x_0 of shape (batch, C, H, W)."""
        at, zero = self.scheduler.coefficients.at, torch.zeros_like(x_0)
        mean = at("root_alpha_bar", self.chain[0], x_0) * x_0
        log_variance = zero + 2 * at("root_noise", self.chain[0], x_0).log()
        return bits_per_dim(normal_kl(mean, log_variance, zero, zero))

    def step_term(
        self,
        model_output: torch.Tensor,
        x_0: torch.Tensor,
        x_t: torch.Tensor,
        timesteps: torch.Tensor,
        hole: torch.Tensor | None = None,
    ) -> StepTerm:
        """L_{t-1} = KL(q(x_prev | x_t, x_0) ‖ p(x_prev | x_t)), or L_0 = -log p(x_0 | x_t) at the last timestep.

        Args:
            model_output: the network's output for x_t, (batch, C or 2C, H, W).
            x_0: images in [-1, 1], (batch, C, H, W); on the 8-bit grid where L_0 is asked for.
            x_t: the same images with noise.
            timesteps: (batch,), entries of the chain.
            hole: the pixels that the bits are a mean of, bool (batch, 1, H, W); by default all.

        Raises:
            ValueError: for a wrong number of output channels (2C for learned variances, else C).
        """
        s, model_output = self.scheduler, model_output.to(x_0.dtype)
        prediction, predicted_variance = s.split_model_output(model_output, x_0)
        predicted_x_0 = s.predict_original_sample(prediction, x_t, timesteps)
        if self.clip is not None:
            predicted_x_0 = predicted_x_0.clamp(*self.clip)

        mean = s.posterior_mean(predicted_x_0, x_t, timesteps)
        true_mean = s.posterior_mean(x_0, x_t, timesteps)
        true_log_variance = s.posterior_log_variance(timesteps, like=x_0)
        last = (timesteps == self.chain[-1]).to(x_0.device)
        log_variance = s.model_log_variance(timesteps, predicted=predicted_variance, like=x_0)
        if s.config.variance_type in FORWARD_VARIANCES:
            # The decoder uses the posterior variance of the preceding step as sigma_1², like the published code.
            log_variance = torch.where(last.view(true_log_variance.shape), true_log_variance, log_variance)

        bits = bits_per_dim(normal_kl(true_mean, true_log_variance, mean, log_variance), hole)
        decoder = -self.decoder(x_0[last], mean[last], log_variance[last])
        return StepTerm(
            bits=bits.index_put((last,), bits_per_dim(decoder, None if hole is None else hole[last])),
            x_0_mse=(predicted_x_0 - x_0).square().flatten(1).mean(1),
        )

    @torch.no_grad()
    def evaluate(
        self,
        network: Network,
        x_0: torch.Tensor,
        generators: Sequence[torch.Generator],
        *,
        timesteps: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        pairs_per_call: int = 256,
        **conditions: torch.Tensor,
    ) -> Bound:
        """The bound of each image: every term, or those at `timesteps`.

        Pairs of an image and a timestep share network calls. An image's numbers depend only on its own generator, not
        on the batch.

        Args:
            network: called with x_t (pairs, C, H, W), timesteps (pairs,) and the conditions of these pairs.
            x_0: images in [-1, 1] on the 8-bit grid, (batch, C, H, W); pixels off the grid cause a warning.
            generators: one per image, on the CPU.
            timesteps: (batch, K), entries of the chain; by default all n of it for each image.
            weights: of these terms in the sum, (batch, K), float64; by default n / K, for uniformly drawn ones.
            pairs_per_call: the network's batch size.
            **conditions: tensors whose first dimension is the batch.

        Raises:
            ValueError: for a wrong number of generators.
        """
        if len(generators) != len(x_0):
            raise ValueError(f"`generators` must be one per image, got {len(generators)} for {len(x_0)} images.")
        off_grid = share_off_the_8_bit_grid(x_0)
        if off_grid > 0:
            warnings.warn(
                f"{off_grid:.2%} of the pixels are not 8-bit values in [-1, 1]; L_0 assumes they are.", stacklevel=2
            )

        if timesteps is None:
            timesteps = torch.tensor(self.chain).expand(len(x_0), -1)
        if weights is None:
            weights = torch.full(timesteps.shape, len(self.chain) / timesteps.shape[1], dtype=torch.float64)
        # Timestep by timestep, so that each generator is used in the order of its image's terms.
        pairs = torch.arange(timesteps.numel())
        terms = x_0.new_empty(timesteps.shape)
        x_0_mse = torch.empty_like(terms)
        for part in pairs.split(pairs_per_call):
            ks, images = part // len(x_0), part % len(x_0)
            t, clean = timesteps[images, ks].to(x_0.device), x_0[images.to(x_0.device)]
            noise = [torch.randn(x_0.shape[1:], generator=generators[i], dtype=x_0.dtype) for i in images.tolist()]
            x_t = self.scheduler.add_noise(clean, torch.stack(noise).to(x_0.device), t)
            output = network(x_t, t, **{name: value[images.to(value.device)] for name, value in conditions.items()})
            term = self.step_term(output, clean, x_t, t)
            terms[images, ks], x_0_mse[images, ks] = term.bits, term.x_0_mse
        return Bound(self.prior_term(x_0), timesteps, terms, x_0_mse, self.chain, weights)


def bits_per_dim(nats: torch.Tensor, hole: torch.Tensor | None = None) -> torch.Tensor:
    """Nats of each element, (batch, C, H, W) -> bits per dimension of each image, (batch,), as `image_means`."""
    return image_means(nats, hole) / math.log(2)
