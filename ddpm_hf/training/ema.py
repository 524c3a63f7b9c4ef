"""Exponential moving average of the weights, the copy that draws the samples (Ho et al. 2020, appendix B)."""

import copy
from itertools import compress

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def ema_decay(step: int, max_decay: float, inv_gamma: float | None, power: float) -> float:
    """The decay after optimizer step `step` (1, 2, …): 1 - (1 + step/inv_gamma)^-power, at most `max_decay`.

    Below `max_decay`, the initial weights' share of the average falls like (step/inv_gamma)^-inv_gamma at power 1 and
    faster at lower powers; above 1 it would not tend to 0. `inv_gamma=None` gives the paper's constant `max_decay`.
    """
    if inv_gamma is None:
        return max_decay
    return min(max_decay, 1 - (1 + step / inv_gamma) ** -power)


class EMA:
    """A float32 moving average of a network's parameters, kept as a network that can draw samples.

    Args:
        model: the network, not yet wrapped for training; the average starts as a copy of it.
        max_decay, inv_gamma, power: see `ema_decay`.

    Raises:
        ValueError: for a power outside (0, 1].
    """

    def __init__(self, model: nn.Module, max_decay: float, inv_gamma: float | None, power: float):
        if not 0 < power <= 1:
            raise ValueError(f"`power` must be above 0 and at most 1, got {power}: the initial weights would stay.")
        self.model = copy.deepcopy(model).float().eval().requires_grad_(False)
        self.is_trained = [weight.requires_grad for weight in model.parameters()]
        self.max_decay, self.inv_gamma, self.power = max_decay, inv_gamma, power

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the (unwrapped) network as it is after optimizer step `step`.

        Parameters that it has after those of the average are left out.
        """
        decay = ema_decay(step, self.max_decay, self.inv_gamma, self.power)
        weights = [whole(weight) for weight in compress(model.parameters(), self.is_trained)]
        torch._foreach_lerp_(list(compress(self.model.parameters(), self.is_trained)), weights, 1 - decay)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The average of what is trained, by the names of the network; weights that it uses twice are kept once."""
        return {**dict(compress(self.model.named_parameters(), self.is_trained)), **dict(self.model.named_buffers())}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what `state_dict` returned."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A weight or norm, unsharded and in float32: FSDP shards it, DeepSpeed keeps it in half precision."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.float()
