"""When things happen in a run, counted in optimizer steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from diffusers.optimization import get_scheduler

from ..settings.config import Config


@dataclass(frozen=True)
class Clock:
    """The steps of a run.

    Args:
        config: with every setting filled in.
        steps_per_epoch: None for a stream of unknown length.

    Raises:
        ValueError: epochs are asked for, but their length is unknown.
    """

    config: Config
    steps_per_epoch: float | None

    def __post_init__(self):
        run = self.config.run
        asked = self.config.optimization.num_epochs, run.save_images_epochs or run.save_model_epochs
        if self.steps_per_epoch is None and asked[0] is not None:
            raise ValueError(
                "--num_epochs needs data of known length, which this stream is not; give --max_train_steps"
            )
        if self.steps_per_epoch is None and asked[1] is not None:
            raise ValueError("--save_images_epochs and --save_model_epochs need data of known length")

    @cached_property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        options = self.config.optimization
        if options.num_epochs is None:
            return options.max_train_steps
        return math.ceil(options.num_epochs * self.steps_per_epoch)

    @property
    def preview_steps(self) -> int:
        """Steps between previews; 0 for none."""
        run = self.config.run
        if run.preview_steps is not None:
            return run.preview_steps
        return self._epochs(run.save_images_epochs) or math.ceil(self.steps / 5)

    @property
    def pipeline_steps(self) -> int:
        """Steps between saves of the pipeline; 0 for none."""
        return self._epochs(self.config.run.save_model_epochs) or 0

    def _epochs(self, count: int | None) -> int | None:
        return None if count is None else max(1, round(count * self.steps_per_epoch))

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of optimizer step 0, 1, …, whatever the accumulation and number of processes."""
        return self.config.optimization.learning_rate * self._course(step)

    @cached_property
    def _course(self) -> Callable[[int], float]:
        """diffusers' schedule as a function of the step, so that it has no state to save."""
        options = self.config.optimization
        schedule = get_scheduler(
            options.lr_scheduler,
            torch.optim.SGD([torch.zeros(1)], lr=options.learning_rate),  # required, never stepped
            num_warmup_steps=options.lr_warmup_steps,
            num_training_steps=self.steps,
            num_cycles=options.lr_num_cycles,
            power=options.lr_power,
        )
        return schedule.lr_lambdas[0]
