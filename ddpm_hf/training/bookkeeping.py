"""What a run counts and reports: losses, bad steps, time and memory, for loss table, trackers and summary."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..files import write_json
from ..hub.folder import CURVE_FILE, LOSS_FILE, SUMMARY_FILE
from ..outputs.folder import LOSS_COLUMNS, OutputFolder, StepTable
from ..systems.plan import Plan
from .device import describe_hardware, peak_memory
from .doctor import merged
from .watch import Watch


class Bookkeeper:
    """Counts on the device, so that no step waits for it; the numbers are read once per report.

    Attributes:
        step: the optimizer step of the last report.
        seconds: training time over all sessions of the run.
        bad_steps, bad_in_a_row: steps whose gradient was NaN or infinite, in total and since the last good one.
    """

    def __init__(self, plan: Plan, accelerator: Accelerator, output: OutputFolder, summary: dict):
        self.plan, self.accelerator, self.output, self.summary = plan, accelerator, output, summary
        self.batch = plan.facts.global_batch_size
        self.seconds, self.earlier_peak = 0.0, 0
        self.bad_steps, self.bad_in_a_row = torch.zeros(2, dtype=torch.int64, device=accelerator.device)

    def state(self) -> dict:
        """What a checkpoint has to keep."""
        return {"seconds": self.seconds, "peak_memory_bytes": self._peak_memory(), "bad_steps": int(self.bad_steps)}

    def load_state(self, state: dict) -> None:
        """Continue from what `state` returned."""
        self.seconds, self.bad_steps = state["seconds"], self.bad_steps + state["bad_steps"]
        self.earlier_peak = state.get("peak_memory_bytes") or 0

    def start(self, step: int, watch: Watch) -> None:
        """Begin a session after `step` optimizer steps."""
        self.watch = watch
        is_main = self.accelerator.is_main_process
        self.table = StepTable(self.output / LOSS_FILE, step, LOSS_COLUMNS) if is_main else None
        hardware, earlier = describe_hardware(self.accelerator), self.summary.get("hardware", [])
        if earlier and earlier[-1] != hardware:
            self.accelerator.print(
                f"this session runs on {hardware}, the previous one ran on {earlier[-1]}: the results match those of "
                "an uninterrupted run only up to rounding"
            )
        self._note("hardware", hardware)
        if self.accelerator.trackers:
            self._note("logging_dirs", self.plan.config.run.logging_dir)
        self._restart(step)

    def _note(self, name: str, value: str) -> None:
        """Add to one of the summary's lists over all sessions."""
        if value not in self.summary.setdefault(name, []):
            self.summary[name].append(value)
            self._write_summary()

    def _write_summary(self) -> None:
        if self.accelerator.is_main_process:
            with self.output.sparing_the_run(SUMMARY_FILE):
                self.output.write_summary(self.summary)

    def _restart(self, step: int) -> None:
        self.loss_sum = torch.zeros((), device=self.accelerator.device)
        self.good_steps = torch.zeros_like(self.bad_steps)
        self.step_loss, self.step_record = torch.zeros_like(self.loss_sum), []
        self.step, self.time = step, time.perf_counter()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent in here does not count as training."""
        started = time.perf_counter()
        yield
        self.time += time.perf_counter() - started

    def see(self, rows: torch.Tensor, timesteps: torch.Tensor, losses: torch.Tensor, loss: torch.Tensor) -> None:
        """Record a micro-step: rows, timesteps and losses of its images, (batch,) each, and their weighted mean."""
        self.step_loss += loss
        self.step_record.append((rows, timesteps, losses))
        self.watch.see(timesteps, losses)

    def end_step(self, is_bad: torch.Tensor) -> None:
        """Count an optimizer step. A bad one changed no weights, and its loss is left out."""
        self.bad_steps = self.bad_steps + is_bad
        self.bad_in_a_row = (self.bad_in_a_row + 1) * is_bad
        self.good_steps = self.good_steps + ~is_bad
        self.loss_sum += self.step_loss.masked_fill(is_bad, 0)
        self.step_loss = torch.zeros_like(self.step_loss)

    def stop_if_bad(self, step: int) -> None:
        """End a run that no longer learns; checked with every report, because it waits for the device.

        Raises:
            FloatingPointError: if the last `--max_bad_steps` or more steps had a NaN or infinite gradient; the images
                of the last one are listed in `bad_batch.json`.
        """
        bad_in_a_row = int(self.bad_in_a_row)
        if bad_in_a_row < self.plan.config.optimization.max_bad_steps:
            return
        record, file = {"step": step}, self.output / "bad_batch.json"
        for name, parts in zip(("rows", "timesteps", "losses"), zip(*self.step_record, strict=True), strict=True):
            record[name] = self.accelerator.gather(torch.cat(parts)).tolist()
        if self.accelerator.is_main_process:
            write_json(file, record)
        raise FloatingPointError(
            f"the loss or its gradient was NaN or infinite in {bad_in_a_row} steps in a row; {file} lists the images "
            "of the last one, and the checkpoints are from before. Try a lower --learning_rate or --mixed_precision no"
        )

    def write_row(self, step: int, grad_norm: torch.Tensor) -> dict[str, float]:
        """Write the mean loss over all processes and steps since the last report to the table and the trackers."""
        micro_steps = self.good_steps * self.plan.config.optimization.gradient_accumulation_steps
        loss = self.accelerator.reduce(self.loss_sum, "mean") / micro_steps
        seconds = time.perf_counter() - self.time
        self.seconds += seconds
        row = {
            "step": step,
            "epoch": step * self.batch / (self.plan.images.count or math.nan),
            "loss": loss.item(),
            "learning_rate": self.plan.clock.learning_rate_at(step - 1),
            "grad_norm": float(grad_norm),
            "images_per_second": (step - self.step) * self.batch / seconds,
            "seconds": self.seconds,
        }
        if self.table is not None:
            with self.output.sparing_the_run(LOSS_FILE):
                self.table.append(**row)
        self.accelerator.log({name: value for name, value in row.items() if name != "step"}, step=step)
        if findings := self.watch.findings(step):
            self.summary["doctor"] = merged(findings, self.summary["doctor"])
            if self.accelerator.is_main_process:
                tqdm.write("\n".join(map(str, findings)))
            self._write_summary()
        self._restart(step)
        return row

    def write_curves(self) -> None:
        """Draw the loss curve on logarithmic axes, where a power law is a straight line."""
        if self.table is not None and self.table.rows:
            with self.output.sparing_the_run(CURVE_FILE):
                self.table.plot(self.output / CURVE_FILE, ["loss"], width=7, xscale="log", yscale="log")

    def summary_at(self, step: int) -> dict:
        """The summary with cost and results up to `step`."""
        return self.summary | {
            "step": step,
            "training_seconds": round(self.seconds, 1),
            "images_per_second": round(self.step * self.batch / self.seconds, 1),
            # NaN if every step since the last report was bad, and JSON has no NaN.
            "final_loss": next((row["loss"] for row in reversed(self.table.rows) if math.isfinite(row["loss"])), None),
            "peak_memory_bytes": self._peak_memory(),
            "precision": self.accelerator.mixed_precision,
            "software": {name: version(name) for name in ("torch", "diffusers", "accelerate")},
            "unreadable": self.plan.images.unreadable,
            "bad_steps": int(self.bad_steps),
        }

    def _peak_memory(self) -> int | None:
        now = peak_memory(self.accelerator.device)
        return None if now is None else max(now, self.earlier_peak)
