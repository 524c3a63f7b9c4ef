"""Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598)."""

from collections.abc import Callable

import torch

from ..conditions.condition import Told


def guided(
    network: Callable[..., torch.Tensor], x_t: torch.Tensor, t: torch.Tensor, told: Told, null: Told, scale: float
) -> torch.Tensor:
    """The network's output, pushed away from what it says when it is told nothing.

    Args:
        network: (x_t, t, **told) -> (B, C or 2C, ...).
        x_t: (B, C, ...).
        told, null: what it is told, and what instead when that is hidden.
        scale: w in eps = eps(null) + w (eps(told) - eps(null)), which holds for every type of prediction, because all
            are linear in eps. Only the mean is guided: a learned variance is that of `told`.
    """
    if not told or scale == 1:
        return network(x_t, t, **told)
    if scale == 0:
        return network(x_t, t, **null)
    both = {name: torch.cat([told[name], null[name]]) for name in told}
    conditional, unconditional = network(torch.cat([x_t, x_t]), t, **both).chunk(2)
    output, channels = conditional.clone(), x_t.shape[1]
    output[:, :channels] = torch.lerp(unconditional, conditional, scale)[:, :channels]
    return output
