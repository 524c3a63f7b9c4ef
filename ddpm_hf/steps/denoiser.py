"""The network as everything but diffusers calls it."""

import torch
from torch import nn

from ..conditions.condition import Told


class Denoiser(nn.Module):
    """(x_t, t, **told) -> output, both float32 whatever the dtype of the weights.

    Training wraps, averages and saves it as one module, the bound measures it, and pipelines sample from it. Its
    children have the names of a pipeline's components.

    Args:
        unet: of diffusers; what is told are its arguments.
    """

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def encode(self, told: Told) -> Told:
        """What the U-Net takes of what is told; it is the same for every step, and `forward` takes it too."""
        return told

    def forward(self, x_t: torch.Tensor, timesteps: torch.Tensor, **told: torch.Tensor) -> torch.Tensor:
        """x_t (B, C, ...) and timesteps, () or (B,) -> (B, C or 2C, ...)."""
        return self.unet(x_t.to(self.unet.dtype), timesteps, **told).sample.float()
