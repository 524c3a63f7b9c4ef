"""The objective of an autoencoder: Rombach et al. 2022 (arXiv 2112.10752), section 3.1."""

from collections.abc import Callable

import torch

from .adversarial import AdversarialTerm
from .gaussian import normal_kl
from .tensors import at_least_float32

RECONSTRUCTION_LOSSES = ("l1", "l2")


class ReconstructionLoss:
    """The error of each reconstruction, plus a small weight times KL(q(z|x) || N(0, I)).

    As in the paper, the KL divergence is summed over the latents and the error over the pixels' values; here both are
    then divided by the number of those values, so that the first is a mean.

    Args:
        loss: "l1", the absolute error, or "l2", the squared one.
        kl_weight: of the KL divergence, in nats.
        perceptual: (pictures, pictures) -> a distance (batch,) that is added to the error.
        adversarial: added when the network also returns what a discriminator says.

    Raises:
        ValueError: for another loss.
    """

    def __init__(
        self,
        loss: str,
        kl_weight: float,
        perceptual: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        adversarial: AdversarialTerm | None = None,
    ):
        if loss not in RECONSTRUCTION_LOSSES:
            raise ValueError(f"`loss` must be one of {', '.join(RECONSTRUCTION_LOSSES)}, got {loss!r}.")
        self.loss, self.kl_weight = loss, kl_weight
        self.perceptual, self.adversarial = perceptual, adversarial

    def __str__(self) -> str:
        error = " + ".join(filter(None, [self.loss.upper(), self.perceptual and str(self.perceptual)]))
        end = "" if self.adversarial is None else f" + {self.adversarial}"
        return f"{error} of the reconstruction + {self.kl_weight:g} KL{end}"

    def __call__(
        self,
        network: Callable[..., tuple[torch.Tensor, ...]],
        original_samples: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        **told: torch.Tensor,
    ) -> torch.Tensor:
        """One loss value per image, shape (batch,), float32 (float64 for float64 images), under autocast too.

        Args:
            network: called with (noise, timesteps, **told); its output is the reconstruction, mean and log variance
                of the posterior, and what a discriminator says, if one is asked (see `AdversarialTerm`).
            original_samples: the pictures in [-1, 1], (batch, C, H, W).
            noise: standard normal, of the same shape.
            timesteps: of no meaning here.
        """
        reconstruction, mean, log_variance, *verdicts = network(noise, timesteps, **told)
        reconstruction, original_samples = at_least_float32(reconstruction, original_samples)
        difference = (reconstruction - original_samples).flatten(1)
        error = (difference.abs() if self.loss == "l1" else difference.square()).mean(1)
        if self.perceptual is not None:
            error = error + self.perceptual(reconstruction, original_samples)
        mean, log_variance = at_least_float32(mean, log_variance)
        zero = torch.zeros((), device=mean.device, dtype=mean.dtype)
        divergence = normal_kl(mean, log_variance, zero, zero).flatten(1).sum(1)
        loss = error + self.kl_weight * divergence / difference.shape[1]
        return loss + self.adversarial(error, *verdicts) if verdicts else loss
