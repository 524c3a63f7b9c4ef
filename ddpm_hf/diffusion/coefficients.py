"""The coefficients of the formulas in process.py, as tables by timestep.

They are computed in float64 on the CPU (some devices have no float64) and only then cast: 1 - alpha_bar_1 = 1e-4 would
be lost if alpha_bar were rounded to bfloat16 first. They are at least float32, since log-variances in half precision
are off by per cents. Equation numbers are those of Ho et al. 2020 (arXiv 2006.11239).
"""

import operator
from collections.abc import Sequence
from functools import cached_property

import torch


def transitions(alpha_bar: torch.Tensor, previous: torch.Tensor, above: torch.Tensor) -> dict[str, torch.Tensor]:
    """Coefficients of the posterior q(x_previous | x_t, x_0), Eq. 6 and 7, and of p's variance, for t = 0 … T-1.

    In a strided chain alpha_t is alpha_bar_t / alpha_bar_previous (Nichol & Dhariwal 2021, arXiv 2102.09672, §4).

    Args:
        alpha_bar: float64, shape (T,).
        previous: where each step goes, in [-1, t), int64; -1 is the data.
        above: the timestep before t in the chain, T if there is none. Used where `previous` is -1.

    Returns:
        Tensors of shape (T,): `posterior_x_0` and `posterior_x_t` (of the mean), `posterior_log_variance`,
        `log_beta`, `noise_switch` (0 for a step to the data, else 1), and the standard deviations `posterior_sigma`
        and `forward_sigma`, times that switch.
    """
    with_data = torch.cat([alpha_bar, torch.ones(1, dtype=torch.float64)])  # index -1 is the data
    alpha_bar_previous = with_data[previous]
    alpha = alpha_bar / alpha_bar_previous
    beta = 1 - alpha
    # The variance of the step to the data is 0. Its log is clipped to that of the preceding step, as in the published
    # code, or to log beta in a chain of one step.
    last = previous < 0
    alone = last & (above == len(alpha_bar))
    t, clipped = torch.arange(len(alpha_bar)), last & ~alone
    upper, lower = alpha_bar[torch.where(clipped, above, t)], with_data[torch.where(clipped, t, previous)]
    variance = torch.where(alone, beta, (1 - lower) / (1 - upper) * (1 - upper / lower))
    noise_switch = (~last).double()
    return {
        "posterior_x_0": alpha_bar_previous.sqrt() * beta / (1 - alpha_bar),
        "posterior_x_t": alpha.sqrt() * (1 - alpha_bar_previous) / (1 - alpha_bar),
        "posterior_log_variance": variance.log(),
        "log_beta": beta.log(),
        "noise_switch": noise_switch,
        "posterior_sigma": noise_switch * variance.sqrt(),
        "forward_sigma": noise_switch * beta.sqrt(),
    }


class Coefficients:
    """All coefficients of a process with given alpha_bar, for one chain of timesteps.

    Args:
        alpha_bar: float64, shape (T,), on the CPU.
        num_train_timesteps: T.
        chain: its timesteps, strictly decreasing, in [0, T).

    Raises:
        ValueError: for a chain that is empty, not decreasing or outside [0, T).
    """

    def __init__(self, alpha_bar: torch.Tensor, num_train_timesteps: int, chain: Sequence[int]):
        if not chain or min(chain) < 0 or max(chain) >= num_train_timesteps:
            raise ValueError(f"`timesteps` must be one or more in [0, {num_train_timesteps}), got {chain}.")
        if any(a <= b for a, b in zip(chain, chain[1:], strict=False)):
            raise ValueError(f"`timesteps` must be decreasing, got {chain}.")
        self.alpha_bar, self.num_train_timesteps, self.chain = alpha_bar, num_train_timesteps, chain
        self.previous = dict(zip(chain, [*chain[1:], -1], strict=True))
        self._tables: dict[tuple, torch.Tensor] = {}
        self._entries: dict[tuple, tuple[torch.Tensor, ...]] = {}

    @cached_property
    def _float64(self) -> dict[str, torch.Tensor]:
        """Every coefficient for i = 0 … T-1; for one outside the chain, as if the chain began there."""
        if len(self.alpha_bar) != self.num_train_timesteps:
            raise ValueError(
                f"`trained_betas` must have `num_train_timesteps={self.num_train_timesteps}` values, got "
                f"{len(self.alpha_bar)}."
            )
        every = torch.arange(self.num_train_timesteps)
        chain = torch.tensor([-1, *reversed(self.chain), self.num_train_timesteps])
        previous = chain[torch.searchsorted(chain, every) - 1]
        above = chain[torch.searchsorted(chain, every, right=True)]
        return {
            "root_alpha_bar": self.alpha_bar.sqrt(),
            "root_noise": (1 - self.alpha_bar).sqrt(),
            "snr": self.alpha_bar / (1 - self.alpha_bar),
            "previous": previous,
            **transitions(self.alpha_bar, previous, above),
        }

    def table(self, name: str, device: torch.device | str, dtype: torch.dtype, ndim: int = 1) -> torch.Tensor:
        """Coefficient `name`, shape (T,), with axes of length 1 appended up to `ndim`. Cached."""
        key = (name, device, dtype, ndim)
        table = self._tables.get(key)
        if table is None:
            table = self._float64[name].to(device=device, dtype=dtype)
            table = self._tables[key] = table.view((-1,) + (1,) * (ndim - 1))
        return table

    def at(self, name: str, timesteps: int | torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
        """Coefficient `name` at `timesteps`, on the chain.

        Args:
            timesteps: an int, 0-d or (batch,), in [0, T).
            like: images that the result will multiply; it gets their device, their dtype (at least float32) and the
                shape (batch, 1, …). For a single timestep known on the host it is a 0-d CPU tensor, which torch treats
                as a number on any device. Without it: float32, the timesteps' shape and device.
        """
        if like is not None and type(timesteps) is int and 0 <= timesteps < self.num_train_timesteps:
            entries = self._entries.get((name, like.dtype))
            if entries is not None:
                return entries[timesteps]
        dtype = _table_dtype(like)
        if not isinstance(timesteps, torch.Tensor) or (timesteps.ndim == 0 and timesteps.is_cpu):
            return self._entry(name, operator.index(timesteps), dtype)
        device = timesteps.device if like is None else like.device
        index = timesteps if timesteps.ndim == 1 else timesteps.reshape(-1)
        if index.device != device:
            index = index.to(device)
        # Not table[index], which waits for the device if the index is 0-d.
        values = self.table(name, device, dtype, 1 if like is None else like.ndim).index_select(0, index)
        return values.view(timesteps.shape) if like is None else values

    def _entry(self, name: str, i: int, dtype: torch.dtype) -> torch.Tensor:
        """One entry of a table as a 0-d tensor, cached: making it takes as long as the sum it is used in."""
        if not 0 <= i < self.num_train_timesteps:
            raise ValueError(f"`timesteps` must be in [0, {self.num_train_timesteps}), got {i}.")
        entries = self._entries.get((name, dtype))
        if entries is None:
            entries = self._entries[name, dtype] = self.table(name, "cpu", dtype).unbind()
        return entries[i]


def _table_dtype(like: torch.Tensor | None) -> torch.dtype:
    return torch.float64 if like is not None and like.dtype == torch.float64 else torch.float32
