"""What a discriminator adds to the objective of an autoencoder (Esser et al. 2021, arXiv 2012.09841, section 3.1).

The paper writes the discriminator's loss as a logarithm; its code, and that of Rombach et al. 2022, has the hinge loss
of Lim & Ye 2017 (arXiv 1705.02894).
"""

import torch
import torch.distributed
from torch import nn
from torch.nn.functional import relu

_DELTA, _MOST = 1e-6, 1e4


class AdversarialTerm:
    """w lambda L_adv + L_D, whose gradients train the autoencoder and the discriminator in one backward pass.

    L_adv = -mean D(x') tells the autoencoder alone, L_D = (mean max(0, 1 - D(x)) + mean max(0, 1 + D(x'))) / 2 the
    discriminator alone; x is a picture, x' its reconstruction, and the means are over patches. In the published code
    the discriminator's step comes after the autoencoder's; here both see the same weights, and their gradients are
    clipped together.

    Args:
        weight: w.
        start: the optimizer step from which it counts; only told.
        last_layer: of the decoder; see `adaptive_weight`.
    """

    def __init__(self, weight: float, start: int, last_layer: nn.Module):
        self.weight, self.start, self.last_layer = weight, start, last_layer

    def __str__(self) -> str:
        return f"{self.weight:g} adversarial from step {self.start}"

    def __call__(
        self, error: torch.Tensor, fooled: torch.Tensor, real: torch.Tensor, fake: torch.Tensor
    ) -> torch.Tensor:
        """One value per image, shape (batch,).

        Args:
            error: of the reconstructions, (batch,), without the KL divergence.
            fooled: D(x') with gradients for x' but not for D's weights, (batch, 1, h, w).
            real, fake: D(x) and D(x') with gradients for D's weights only.
        """
        adversarial = -_per_image(fooled)
        weight = self.weight * adaptive_weight(error.mean(), adversarial.mean(), self.last_layer.weight)
        return weight * adversarial + (_per_image(relu(1 - real)) + _per_image(relu(1 + fake))) / 2


def adaptive_weight(error: torch.Tensor, adversarial: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """lambda = |grad L_rec| / (|grad L_adv| + 1e-6): eq. 7 of Esser et al. 2021, at most 1e4 as in their code.

    The gradients are those of the whole batch, so that all processes have the same lambda.

    Args:
        error, adversarial: L_rec and L_adv, the means over this process's share of the batch.
        weights: with respect to which gradients are taken: those of the decoder's last layer.
    """
    gradients = torch.stack(
        [torch.autograd.grad(loss, weights, retain_graph=True)[0].float() for loss in (error, adversarial)]
    )
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(gradients)
        gradients /= torch.distributed.get_world_size()
    of_error, of_adversarial = gradients.flatten(1).norm(dim=1)
    return (of_error / (of_adversarial + _DELTA)).clamp(max=_MOST)


def _per_image(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(1).mean(1)
