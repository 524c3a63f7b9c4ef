"""Problems that show only during a run: it does not learn, or its moving average does not move."""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from ..diffusion.losses import snr_weight
from ..systems.plan import Plan
from .doctor import Finding
from .ema import EMA

GROUPS = 10  # of timesteps, from little noise to much
# Judged after the warm-up and at least this many steps, over at least this many images.
_FIRST_STEP, _GROUP_FIRST_STEP, _IMAGES = 200, 1000, 2000
_AVERAGE_STEPS = 100  # within which a moving average must move


class Watch:
    """Compares the loss with that of two trivial predictors, by groups of timesteps.

    This needs the squared error, so with `--loss vlb` or `hybrid` only the moving average is watched.

    - The zero predictor always outputs 0.
    - The pixelwise predictor knows the mean and variance of all pixels and sees one noisy pixel at a time. With s² the
      variance, its squared error of x_0 is s²(1 - alpha_bar) / (alpha_bar s² + 1 - alpha_bar), the least of any linear
      function of that pixel; of eps it is SNR times, of v SNR + 1 times as much (Salimans & Ho 2022, arXiv
      2202.00512).

    Args:
        ema: the moving average at the first watched step, if there is one.
        model: the network it averages, unwrapped.
    """

    def __init__(self, plan: Plan, accelerator: Accelerator, ema: EMA | None, model: torch.nn.Module):
        self.accelerator, self.ema, self.model = accelerator, ema, model
        self.warmup = plan.config.optimization.lr_warmup_steps
        self.found: set[str] = set()
        self.first_step: int | None = None
        self.beginning = None if ema is None else [_sample(ema.model).clone(), _sample(model).clone()]
        self.tables = None
        if plan.system.loss.loss == "simple":
            self.tables = torch.stack(untrained_losses(plan)).float().to(accelerator.device)
            self._clear()

    def _clear(self) -> None:
        # Per group: number of images, their loss, the zero predictor's loss, and the limit.
        self.sums = torch.zeros(4, GROUPS, device=self.accelerator.device)

    def see(self, timesteps: torch.Tensor, losses: torch.Tensor) -> None:
        """Record a micro-batch of this process, both (batch,), without waiting for the device.

        NaN and infinite losses are left out.
        """
        if self.tables is None:
            return
        zero, limit = self.tables
        groups = timesteps * GROUPS // len(zero)
        values = torch.stack([torch.ones_like(losses), losses, zero[timesteps], limit[timesteps]])
        self.sums.index_add_(1, groups, values.masked_fill(~losses.isfinite(), 0))

    def findings(self, step: int) -> list[Finding]:
        """New findings after `step` optimizer steps; all processes call this at the same steps."""
        if self.first_step is None:
            self.first_step = step
        findings = [*self._average(step), *self._losses(step)]
        new = [finding for finding in findings if finding.name not in self.found]
        self.found.update(finding.name for finding in new)
        return new

    def _average(self, step: int) -> list[Finding]:
        sharded = self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if self.ema is None or sharded or step < self.first_step + _AVERAGE_STEPS:
            return []
        average, weights = (
            torch.equal(before, _sample(model))
            for before, model in zip(self.beginning, (self.ema.model, self.model), strict=True)
        )
        if weights or not average:
            return []
        return [
            Finding(
                name="still-average",
                what=f"from step {self.first_step} to {step} the weights changed, but their moving average did not",
                why="Samples and the saved pipeline use the average and will be those of the untrained network",
                change="Use an --ema_decay below 1, or --use_ema false",
            )
        ]

    def _losses(self, step: int) -> list[Finding]:
        if self.tables is None or step < max(_FIRST_STEP, self.warmup):
            return []
        count, loss, zero, limit = self.accelerator.reduce(self.sums, "sum").cpu().double()
        if count.sum() < _IMAGES:
            return []
        self._clear()
        mean, mean_of_zero = float(loss.sum() / count.sum()), float(zero.sum() / count.sum())
        if mean > 0.95 * mean_of_zero:
            return [
                Finding(
                    name="learns-nothing",
                    what=f"after {step} steps the loss is {mean:.3f}; a network that always outputs 0 has "
                    f"{mean_of_zero:.3f}",
                    why="The run learns nothing: the gradient is lost, or the learning rate is far off",
                    change="Try --learning_rate ten times smaller (and larger), and --mixed_precision no",
                )
            ]
        if step < max(_GROUP_FIRST_STEP, 2 * self.warmup):
            return []
        worse = [
            group for group in range(GROUPS) if count[group] >= _IMAGES / GROUPS / 4 and loss[group] > limit[group]
        ]
        return [_poor_groups(step, worse, (loss / count).tolist(), len(self.tables[0]))] if worse else []


def untrained_losses(plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss at each timestep of a network that has learnt nothing, float64, each (T,).

    Returns:
        The loss of the zero predictor, and a limit above that of the pixelwise predictor, by 20 % plus 0.05: where the
        noise hides nearly everything, a network does not match it exactly.
    """
    pixels = plan.system.codec.encode({"images": torch.from_numpy(plan.images.some_pixels())}).double()
    power, variance = pixels.square().mean(), pixels.var()
    coefficients = plan.system.scheduler.coefficients
    alpha_bar = coefficients.table("root_alpha_bar", "cpu", torch.float64).square()
    noise = coefficients.table("root_noise", "cpu", torch.float64).square()
    prediction, snr = plan.system.scheduler.config.prediction_type, alpha_bar / noise
    pixelwise = variance * noise / (alpha_bar * variance + noise)
    if prediction == "epsilon":
        zero, pixelwise = torch.ones_like(snr), pixelwise * snr
    elif prediction == "sample":
        zero = power.expand_as(snr)
    else:
        zero, pixelwise = alpha_bar + noise * power, pixelwise * (snr + 1)
    weight = snr_weight(snr, prediction, plan.system.loss.weighting, gamma=plan.system.loss.gamma)
    return weight * zero, weight * (1.2 * pixelwise + 0.05)


def _sample(model: torch.nn.Module) -> torch.Tensor:
    """Small enough to copy, and early to change: the last layer of a U-Net, or the first of a decoder of latents."""
    return list(next(model.children()).parameters())[-2].detach()


def _poor_groups(step: int, groups: list[int], losses: list[float], timesteps: int) -> Finding:
    ranges = ", ".join(
        f"{-(-group * timesteps // GROUPS)} to {-(-(group + 1) * timesteps // GROUPS) - 1} (loss {losses[group]:.3f})"
        for group in groups
    )
    return Finding(
        name="poor-timesteps",
        what=f"after {step} steps the loss at timesteps {ranges} is worse than guessing each pixel from its own noisy "
        "value",
        why="Every sample passes through these timesteps and suffers there",
        change="Check --prediction_type, --beta_schedule and --loss_weighting, or train longer",
    )
