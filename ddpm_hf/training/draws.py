"""The random numbers of a training step: functions of (seed, step) for the global batch, sliced by process."""

import torch

from ..diffusion.losses import SecondMomentSampler, stratified_timesteps, uniform_timesteps
from ..seeds import derive_seed, generator_for
from .device import to_device
from .plan import Plan


class StepDraws:
    """Noise, timesteps, hidden classes and the dropout seed.

    They do not depend on how processes and micro-steps divide the batch, nor on earlier draws. Only importance
    sampling has a state, `sampler`, which belongs in checkpoints.
    """

    def __init__(self, plan: Plan):
        self.seed = plan.config.optimization.seed
        self.batch = plan.facts["global_batch_size"]
        self.num_timesteps = plan.scheduler.config.num_train_timesteps
        self.sampling = plan.config.optimization.timestep_sampling
        self.sampler = SecondMomentSampler(self.num_timesteps) if self.sampling == "importance" else None
        self.num_classes = None if plan.id2label is None else len(plan.id2label)
        self.condition_dropout = plan.config.model.condition_dropout

    def noise(self, positions: range, like: torch.Tensor) -> torch.Tensor:
        """eps ~ N(0, I), float32, for the images at these positions, with the shape and device of `like`.

        Each image has its own seed, whatever the number of processes. The noise is drawn on the device, which then
        need not wait for the host; another kind of device draws other numbers.
        """
        generator = torch.Generator(like.device)
        seeds = (derive_seed(self.seed, "noise", position) for position in positions)
        return torch.stack(
            [torch.randn(like.shape[1:], generator=generator.manual_seed(s), device=like.device) for s in seeds]
        )

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

    def conditions(self, step: int, positions: range, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Class labels for the network, some replaced by the null class; none for an unconditional model."""
        if self.num_classes is None:
            return {}
        generator = generator_for(self.seed, "condition dropout", step)
        hidden = torch.rand(self.batch, generator=generator)[self._slice(step, positions)] < self.condition_dropout
        labels = batch["class_labels"]
        return {"class_labels": labels.masked_fill(to_device(hidden, labels.device), self.num_classes)}

    def dropout_seed(self, step: int, micro_step: int, process: int) -> int:
        """The seed of torch's global generators for a forward pass."""
        return derive_seed(self.seed, "dropout", step, micro_step, process)

    def _slice(self, step: int, positions: range) -> slice:
        first = positions.start - step * self.batch
        return slice(first, first + len(positions))
