"""Initial weights as in Ho et al. 2020 (arXiv 2006.11239), for networks of diffusers' blocks."""

import math
from collections.abc import Collection

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

# The paper's code replaces a scale of 0 by this.
NEAR_ZERO_SCALE = 1e-10


def init_paper_weights(
    network: nn.Module, last: Collection[nn.Module], generator: torch.Generator | None = None
) -> None:
    """Reinitialise the weights as the authors' code does (github.com/hojonathanho/diffusion, `nn.py`).

    Kernels are uniform with variance `scale / fan_avg`, fan_avg = (fan_in + fan_out)/2; biases are zero. The scale is
    1, but 1e-10 in the last layer of each residual branch (second convolution, attention output) and in those that are
    named, so that residual blocks start as the identity and what these predict as zero. Norms start as the identity.
    The paper has no classes; their embedding is standard normal, as in Dhariwal & Nichol 2021.

    Args:
        last: layers of the network.
        generator: on the device of the weights; the global one if None.
    """
    closing = set(last)
    for module in network.modules():
        if isinstance(module, ResnetBlock2D):
            closing.add(module.conv2)
        elif isinstance(module, Attention):
            closing.add(module.to_out[0])
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            # Xavier's uniform distribution has variance gain² / fan_avg.
            gain = math.sqrt(NEAR_ZERO_SCALE) if module in closing else 1.0
            nn.init.xavier_uniform_(module.weight, gain=gain, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, generator=generator)
        elif isinstance(module, nn.GroupNorm):
            module.reset_parameters()
