"""Training objectives: targets, one loss value per image, and the sampling of timesteps.

Ho et al. 2020 (arXiv 2006.11239), Algorithm 1; Nichol & Dhariwal 2021 (arXiv 2102.09672) for the bound as a loss and
for importance sampling. Losses have shape (batch,) and are float32 at least; the caller reduces.
"""

from collections.abc import Callable

import torch
from diffusers import DDPMScheduler

from .bound import VariationalBound
from .process import EPSILON_WITHOUT_SIGNAL, LEARNED_VARIANCES
from .scheduler import LinearDDPMScheduler
from .tensors import at_least_float32, image_means

LOSSES = ("simple", "vlb", "hybrid")
WEIGHTINGS = ("none", "min_snr", "p2")
VLB_WEIGHT = 0.001  # of L_vlb in L_hybrid, arXiv 2102.09672, §3.1


def training_target(
    scheduler: LinearDDPMScheduler, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """What the network should output for x_t: eps, x_0 or v, by `scheduler.config.prediction_type`.

    Args:
        original_samples, noise: x_0 and eps, (batch, channels, height, width).
        timesteps: (batch,), in [0, T).

    Raises:
        ValueError: for epsilon with zero terminal SNR.
    """
    if scheduler.config.prediction_type == "epsilon":
        if scheduler.lacks_terminal_signal:
            raise ValueError(EPSILON_WITHOUT_SIGNAL)
        return noise
    if scheduler.config.prediction_type == "sample":
        return original_samples
    return scheduler.get_velocity(original_samples, noise, timesteps)


def simple_loss(prediction: torch.Tensor, target: torch.Tensor, hole: torch.Tensor | None = None) -> torch.Tensor:
    """L_simple, Eq. 14: the mean squared error of each image, float32 or float64, as `image_means`."""
    prediction, target = at_least_float32(prediction, target)
    return image_means((prediction - target).square(), hole)


def snr_weight(
    snr: torch.Tensor, prediction_type: str, weighting: str, *, gamma: float, offset: float = 1.0
) -> torch.Tensor:
    """The weight of an image's squared error, as a function of its signal-to-noise ratio.

    A weighting is defined on the error of x_0. The same error is SNR times as large in eps, and SNR + 1 times in v
    (Salimans & Ho 2022, arXiv 2202.00512), so the weight is divided by that.

    Args:
        snr: any shape, ≥ 0, and > 0 for epsilon.
        prediction_type: what the error is of.
        weighting: "none" is 1 for every prediction type; "min_snr" is min(SNR, gamma) on x_0 (Hang et al. 2023, arXiv
            2303.09556); "p2" is SNR / (offset + SNR)^gamma on x_0 (Choi et al. 2022, arXiv 2204.00227).
        gamma, offset: parameters of the weighting.

    Raises:
        ValueError: for an unknown weighting.
    """
    if weighting == "none":
        return torch.ones_like(snr)
    if weighting == "min_snr":
        on_x_0 = snr.clamp(max=gamma)
    elif weighting == "p2":
        on_x_0 = snr / (offset + snr) ** gamma
    else:
        raise ValueError(f"`weighting` must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}.")
    return on_x_0 / {"epsilon": snr, "sample": 1, "v_prediction": snr + 1}[prediction_type]


class DiffusionLoss:
    """The loss of each image, from clean images, noise and timesteps.

    - "simple": the mean squared error of the prediction (Eq. 14), times the weight.
    - "vlb": the bound: T times the term of the drawn timestep, in bits/dim (Eq. 5), without clipping.
    - "hybrid": "simple" + 0.001 "vlb", where the bound trains only the predicted variance: its gradient to the mean
      is stopped (arXiv 2102.09672, §3.1).

    Args:
        scheduler: the process; copied, so that `set_timesteps` on it does not change the loss.
        loss: one of these three.
        weighting: of the squared error, see `snr_weight`.
        gamma: parameter of the weighting; by default 5 for "min_snr" and 1 for "p2".

    Raises:
        ValueError: for unknown choices, a weighted "vlb", a weight or epsilon with zero terminal SNR, "hybrid" without
            a learned variance, and "simple" with one, which would never be trained.
    """

    def __init__(
        self, scheduler: DDPMScheduler, loss: str = "simple", weighting: str = "none", gamma: float | None = None
    ):
        for name, value, choices in (("loss", loss, LOSSES), ("weighting", weighting, WEIGHTINGS)):
            if value not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
        if loss == "vlb" and weighting != "none":
            raise ValueError(f"`weighting={weighting!r}` weights the squared error, which `loss='vlb'` does not have.")
        self.bound = VariationalBound(scheduler, clip=None)
        if weighting != "none" and self.bound.scheduler.lacks_terminal_signal:
            raise ValueError(
                f"`weighting={weighting!r}` is 0 where SNR is 0, so the last timestep of this process, where sampling "
                "starts, would never be trained. Choose 'none', or a process without `rescale_betas_zero_snr`."
            )
        variance_type = scheduler.config.variance_type
        if loss != "vlb" and (loss == "hybrid") != (variance_type in LEARNED_VARIANCES):
            raise ValueError(
                f"`loss={loss!r}` cannot be used with `variance_type={variance_type!r}`: 'simple' trains no variance "
                "and 'hybrid' needs a learned one. Choose 'hybrid' or 'vlb' for 'learned_range' and 'learned'."
            )
        self.loss, self.weighting = loss, weighting
        self.gamma = gamma if gamma is not None else {"min_snr": 5.0}.get(weighting, 1.0)

    def __call__(
        self,
        network: Callable[..., torch.Tensor],
        original_samples: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        hole: torch.Tensor | None = None,
        **conditions,
    ) -> torch.Tensor:
        """One loss value per image, shape (batch,), float32 (float64 for float64 images), under autocast too.

        Args:
            network: called with (x_t, timesteps, **conditions); its output has C channels, 2C for learned variances.
            original_samples: images in [-1, 1], (batch, C, H, W).
            noise: standard normal, of the same shape.
            timesteps: (batch,), in [0, T).
            hole: of images that are known elsewhere, bool (batch, 1, H, W): outside it the network is given x_0
                instead of x_t, as when stock `IFInpaintingPipeline` samples, and no pixel counts.
            **conditions: passed to the network.
        """
        scheduler = self.bound.scheduler
        x_0, noise = at_least_float32(original_samples, noise)
        x_t = scheduler.add_noise(x_0, noise, timesteps)
        given = x_t if hole is None else torch.where(hole, x_t, x_0)
        output, _ = at_least_float32(network(given, timesteps, **conditions), x_t)
        if self.loss == "vlb":
            return self._bound_loss(output, x_0, x_t, timesteps, hole)
        prediction, predicted_variance = scheduler.split_model_output(output, x_t)
        error = simple_loss(prediction, training_target(scheduler, x_0, noise, timesteps), hole)
        snr, prediction_type = scheduler.snr(timesteps), scheduler.config.prediction_type
        loss = snr_weight(snr, prediction_type, self.weighting, gamma=self.gamma).to(error) * error
        if self.loss == "hybrid":
            frozen_mean = torch.cat([prediction.detach(), predicted_variance], dim=1)
            loss = loss + VLB_WEIGHT * self._bound_loss(frozen_mean, x_0, x_t, timesteps, hole)
        return loss

    def _bound_loss(self, output: torch.Tensor, *about: torch.Tensor | None) -> torch.Tensor:
        return len(self.bound.chain) * self.bound.step_term(output, *about).bits


def uniform_timesteps(n: int, num_train_timesteps: int, generator: torch.Generator) -> torch.Tensor:
    """n independent timesteps, uniform on 0 … T-1: int64, shape (n,), on the generator's device."""
    return torch.randint(0, num_train_timesteps, (n,), generator=generator, device=generator.device)


def stratified_timesteps(n: int, num_train_timesteps: int, generator: torch.Generator) -> torch.Tensor:
    """n timesteps, int64, one in each of n equal strata of [0, T), in random order; each on its own is uniform.

    The mean loss of a batch then varies less than with independent timesteps (the low-discrepancy sampler of Kingma et
    al. 2021, arXiv 2107.00630, uses one shared offset instead of one per stratum).
    """
    strata = torch.randperm(n, generator=generator, device=generator.device)
    uniform = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)
    timesteps = ((strata + uniform) * num_train_timesteps / n).long()
    return timesteps.clamp(max=num_train_timesteps - 1)  # a uniform number may round up to 1


class SecondMomentSampler:
    """Timesteps drawn in proportion to √E[L_t²], for the bound as a loss: arXiv 2102.09672, §3.3 and Eq. 18.

    It draws uniformly until every timestep has `history` losses. All processes must call `update` with the timesteps
    and losses of the global batch in the same order, and so share the same state, which belongs in checkpoints.

    Args:
        num_train_timesteps: T.
        history: how many recent losses of each timestep to keep.
        uniform_share: the fraction of draws that is uniform, so that no timestep is forgotten.
    """

    def __init__(self, num_train_timesteps: int, history: int = 10, uniform_share: float = 0.001):
        self.uniform_share = uniform_share
        self.losses = torch.zeros(num_train_timesteps, history, dtype=torch.float64)
        self.counts = torch.zeros(num_train_timesteps, dtype=torch.int64)

    def probabilities(self) -> torch.Tensor:
        """Of each timestep: float64, shape (T,)."""
        total = len(self.counts)
        uniform = torch.full((total,), 1 / total, dtype=torch.float64)
        root = self.losses.square().mean(1).sqrt()
        if int(self.counts.min()) < self.losses.shape[1] or float(root.sum()) == 0:
            return uniform
        return (1 - self.uniform_share) * root / root.sum() + self.uniform_share * uniform

    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """n timesteps (int64) and weights 1 / (T p_t) (float32) that keep the mean loss unbiased, on the CPU."""
        p = self.probabilities()
        timesteps = torch.multinomial(p, n, replacement=True, generator=generator)
        return timesteps, (1 / (len(p) * p[timesteps])).float()

    def update(self, timesteps: torch.Tensor, losses: torch.Tensor) -> None:
        """Record the unweighted losses (batch,) at `timesteps` (batch,)."""
        for t, loss in zip(timesteps.tolist(), losses.detach().tolist(), strict=True):
            self.losses[t, self.counts[t] % self.losses.shape[1]] = loss
            self.counts[t] += 1

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The kept losses and the number of losses seen per timestep, as tensors."""
        return {"losses": self.losses, "counts": self.counts}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what `state_dict` returned; ValueError if T or history differ."""
        if state["losses"].shape != self.losses.shape:
            raise ValueError(
                f"`state` must hold losses of shape {tuple(self.losses.shape)} (timesteps, history), got "
                f"{tuple(state['losses'].shape)}."
            )
        self.losses, self.counts = state["losses"].clone(), state["counts"].clone()
