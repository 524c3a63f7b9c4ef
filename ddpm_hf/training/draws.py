"""The random numbers of a training step: functions of (seed, step) for the global batch, sliced by process."""

from collections.abc import Mapping
from typing import Any

import torch

from ..conditions.condition import Told, tell
from ..diffusion.losses import SecondMomentSampler, stratified_timesteps, uniform_timesteps
from ..seeds import derive_seed, generator_for, noise_at
from ..systems.plan import Plan
from .device import to_device


class StepDraws:
    """Noise, timesteps, hidden conditions and the dropout seed.

    They do not depend on how processes and micro-steps divide the batch, nor on earlier draws. Only importance
    sampling has a state, `sampler`, which belongs in checkpoints.
    """

    def __init__(self, plan: Plan):
        self.seed = plan.config.optimization.seed
        self.batch = plan.facts.global_batch_size
        self.num_timesteps = plan.system.num_timesteps
        self.sampling = plan.config.optimization.timestep_sampling
        self.sampler = SecondMomentSampler(self.num_timesteps) if self.sampling == "importance" else None
        self.conditions, self.told_from = plan.system.conditions, plan.system.told_from
        # An autoencoder's noise is no diffusion's.
        self.offset = None if plan.system.scheduler is None else plan.config.optimization.noise_offset

    def noise(self, positions: range, like: torch.Tensor) -> torch.Tensor:
        """eps ~ N(0, I), float32, for the images at these positions, with the shape and device of `like`.

        Each image has its own seed, whatever the number of processes. The noise is drawn on the device, which then
        need not wait for the host; another kind of device draws other numbers.

        With `--noise_offset` c it is eps + c N(0, I) of each channel, the same for all of its pixels
        (https://www.crosslabs.org//blog/diffusion-with-offset-noise): pictures may then be darker or lighter on the
        whole than noise is.
        """
        noise = noise_at((self.seed, "noise"), positions, like)
        if self.offset:
            noise += self.offset * noise_at((self.seed, "noise offset"), positions, like[..., :1, :1])
        return noise

    def timesteps(self, step: int, positions: range, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Timesteps (B,) int64 of these images, and the weights (B,) that keep the mean loss unbiased."""
        generator = generator_for(self.seed, "timesteps", step)
        if self.sampler is not None:
            timesteps, weights = self.sampler.sample(self.batch, generator)
        else:
            draw = uniform_timesteps if self.sampling == "uniform" else stratified_timesteps
            timesteps, weights = draw(self.batch, self.num_timesteps, generator), torch.ones(self.batch)
        own = self._slice(step, positions)
        return to_device(timesteps[own], device), to_device(weights[own], device)

    def told(self, step: int, positions: range, batch: Mapping[str, Any]) -> Told:
        """What the loss is told about these images; each condition is hidden independently, image by image."""
        generator, own = generator_for(self.seed, "condition dropout", step), self._slice(step, positions)
        device = batch["rows"].device
        masks = [
            to_device(torch.rand(self.batch, generator=generator)[own] < condition.hidden, device)
            for condition in self.conditions
        ]
        first, later = self.told_from
        return tell(self.conditions, {**batch, "positions": positions}, masks) | (later if step >= first else {})

    def dropout_seed(self, step: int, micro_step: int, process: int) -> int:
        """The seed of torch's global generators for a forward pass."""
        return derive_seed(self.seed, "dropout", step, micro_step, process)

    def _slice(self, step: int, positions: range) -> slice:
        first = positions.start - step * self.batch
        return slice(first, first + len(positions))
