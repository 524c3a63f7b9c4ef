"""What follows the last step: measuring and drawing, within a tenth of the training time."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..conditions.condition import usual
from ..evaluation.record import update_report
from ..hub.folder import CHAIN_FILE, EVALUATION_FILE, SAMPLES_FILE
from ..outputs.folder import OutputFolder
from ..pipelines.ddpm import DDPMPipeline
from ..pipelines.fingerprint import weights_fingerprint
from ..systems.plan import Plan
from .previews import CHAIN_IMAGES
from .scoring import Scorer

LEAST_SECONDS, SHARE_OF_TRAINING = 60, 0.1
_FEWEST_SAMPLES = 100  # whose captions are followed: the interval of a share is then up to 20 points wide
_FEWEST_STEPS = 10  # of a preview; with fewer there is little to see
# Of the bound, per image. More would not help, because images differ: on digits the standard deviation of a single
# image's estimate is 0.56 bits/dim with 10 terms and 0.55 with 50.
_TERMS = 10


class Budget:
    """Time that all processes share. The main process's clock decides what fits, so that all do the same.

    Args:
        seconds: from now.
        clock: a monotonic clock in seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        self.seconds, self.clock = seconds, clock
        self.end = clock() + seconds

    def part(self, share: float) -> "Budget":
        """A share of the time left, starting now."""
        return type(self)(share * max(0.0, self.end - self.clock()), self.clock)

    def fitting(self, wanted: int, each: float) -> int:
        """How many of `wanted` things of `each` seconds fit into the time left."""
        return self._agreed(max(0, min(wanted, int((self.end - self.clock()) / each))))

    def is_left(self) -> bool:
        """Whether there is any time left."""
        return self._agreed(self.clock() < self.end)

    def _agreed(self, decision: int) -> int:
        return broadcast_object_list([decision])[0]


class Ending:
    """Measures and draws after the last step what its budget allows; all processes call it together.

    Attributes:
        left_out: figure or file that did not fit -> a sentence for the card.

    Args:
        scorer: has the held-out images; None if there are none.
        seconds: training time.
    """

    def __init__(self, plan: Plan, accelerator: Accelerator, scorer: Scorer | None, seconds: float):
        self.plan, self.accelerator, self.scorer = plan, accelerator, scorer
        self.budget = Budget(max(LEAST_SECONDS, SHARE_OF_TRAINING * seconds))
        self.left_out: dict[str, str] = {}
        self.draws_pictures = plan.system.draws_pictures
        self.has_process = self.draws_pictures and plan.system.scheduler is not None
        self.has_bound = self.has_process and plan.system.codec.decoder is not None
        figure = "samples, against those" if self.has_process else "reconstruction"
        figure = "bits/dim" if self.has_bound else figure if self.draws_pictures else "figures"
        work = [f"{figure} of held-out images"] * (scorer is not None)
        work += [SAMPLES_FILE] * self.draws_pictures + [CHAIN_FILE] * self.has_process
        still = f"; still to come, in at most {self.budget.seconds:.0f} s: {', '.join(work)}" if work else ""
        accelerator.print(f"training is done and the pipeline saved{still}")

    def measure(self, pipeline: DDPMPipeline, step: int, output: OutputFolder) -> None:
        """Write bits/dim of held-out images, or, where there is no such bound, all that is asked for, into the report.

        What was scored after this step is not measured again.
        """
        if self.scorer is None:
            why = "no images were held out of training"
            if self.plan.images.holdout.holds_out:
                asked = self.plan.config.run.eval_metrics
                why = "too few images were held out" if asked else "no --eval_metrics were asked for"
            self._leave_out("bits_per_dim", f"Nothing was measured, because {why}.")
            return
        measured = self.scorer.figures_after(step)
        if any(figure["name"] == "bits_per_dim" or not self.has_bound for figure in measured):
            return
        if self.has_bound:
            figures = self._bits_per_dim(pipeline, step)
        else:
            figures = self._scores(pipeline) if self.has_process else self.scorer.measure(pipeline)
        if figures and self.accelerator.is_main_process:
            with output.sparing_the_run(EVALUATION_FILE):
                update_report(output / EVALUATION_FILE, weights_fingerprint(pipeline), figures)

    def _bits_per_dim(self, pipeline: DDPMPipeline, step: int) -> list[dict[str, Any]]:
        wanted, terms = self.scorer.images.most, min(_TERMS, self.plan.system.num_timesteps)
        batch = self.plan.config.optimization.train_batch_size
        each = terms * self._seconds_per_call(pipeline, batch) / batch / self.accelerator.num_processes
        budget = self.budget.part(0.5)  # the rest is for the pictures
        count = budget.fitting(wanted, each)
        if count < 2:
            self._leave_out("bits_per_dim", "Bits/dim was not measured, for lack of time.")
            return []
        try:
            figure = self.scorer.bits_per_dim(pipeline, count, terms, budget.is_left)
        except ValueError as error:  # an unreadable image or an infinite bound must not fail a finished training
            self._leave_out("bits_per_dim", f"Bits/dim was not measured: {str(error).removesuffix('.')}.")
            return []
        self.accelerator.log({"eval/bits_per_dim": figure["value"]}, step=step)
        self.accelerator.print(
            f"bits/dim {figure['value']:.3f} (standard error {figure['standard_error'] or math.nan:.3f}) on "
            f"{figure['n']} held-out images, from {terms} of {figure['steps']} terms each"
        )
        return [figure]

    def _scores(self, pipeline: DDPMPipeline) -> list[dict[str, Any]]:
        """Of samples, guided as in previews: two calls of the network for each step."""
        run, batch = self.plan.config.run, self.plan.config.optimization.train_batch_size
        calls = 2 * min(run.eval_inference_steps, self.plan.system.num_timesteps)
        with self.accelerator.autocast():
            each = calls * self._seconds_per_call(pipeline, batch) / batch / self.accelerator.num_processes
        count = self.budget.part(0.5).fitting(self.scorer.count, each)
        if count < min(_FEWEST_SAMPLES, self.scorer.count) or (count < self.scorer.count and self.scorer.metrics):
            self._leave_out("bits_per_dim", "Samples were not scored, for lack of time.")
            return []
        return self.scorer.measure(pipeline, count)

    def preview_steps(self, pipeline: DDPMPipeline) -> int:
        """How many denoising steps there is time for in the last preview; 0 for none."""
        if not self.draws_pictures:
            return 0
        wanted, batch = self.plan.preview_inference_steps, self.plan.config.optimization.train_batch_size
        share = math.ceil(self.plan.preview_layout(self.plan.shown)[0] / self.accelerator.num_processes)
        with self.accelerator.autocast():  # as the pictures are drawn
            each = math.ceil(share / batch) * self._seconds_per_call(pipeline, min(share, batch))
        steps = self.budget.part(0.75).fitting(wanted, each)
        if steps >= min(wanted, _FEWEST_STEPS):
            return steps
        self._leave_out(SAMPLES_FILE, "No samples were drawn at the end, for lack of time.")
        return 0

    def has_time_for_chain(self, pipeline: DDPMPipeline, steps: int) -> bool:
        """Whether there is time to draw a denoising chain of this many steps, if there is a process."""
        if not self.has_process:
            return False
        if steps:
            with self.accelerator.autocast():
                each = self._seconds_per_call(pipeline, CHAIN_IMAGES)
            if self.budget.part(0.9).fitting(steps, each) == steps:
                return True
        self._leave_out(CHAIN_FILE, "The denoising chain was not drawn, for lack of time.")
        return False

    def _seconds_per_call(self, pipeline: DDPMPipeline, images: int) -> float:
        """Of the network for a batch of images; extrapolated from a single image if measuring would take long."""
        alone = self._measured(pipeline, 1)
        if self.budget.part(0.1).fitting(1, 2 * images * alone):
            return self._measured(pipeline, images)
        return images * alone

    @torch.no_grad()
    def _measured(self, pipeline: DDPMPipeline, images: int) -> float:
        """Seconds of the second of two network calls; the first one warms up."""
        network, system, device = pipeline.network.eval(), self.plan.system, pipeline.device
        x_t = torch.randn(images, *system.codec.shape, device=device)
        timesteps = torch.zeros(images, dtype=torch.long, device=device)
        told = usual(system.conditions, images, device)
        for _ in range(2):
            started = time.monotonic()
            output = network(x_t, timesteps, **told)
            (output if self.has_process else output[0]).sum().item()  # waits for the device
        return time.monotonic() - started

    def _leave_out(self, name: str, sentence: str) -> None:
        self.left_out[name] = sentence
        self.accelerator.print(sentence)
