"""Algorithm 1 of Ho et al. 2020 on Accelerate, counted in optimizer steps.

Whatever is random in a step (rows, crops, flips, noise, timesteps, hidden classes, network dropout) is a pure function
of (seed, step). A resumed run therefore needs only its weights and its step to equal an unbroken one: to the same
bits on one CPU process with the same number of threads, on which the order of summation depends.
"""

import json
import math
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..data.loading import make_loader
from ..data.order import PositionSampler
from ..data.transforms import normalize
from ..diffusion.losses import SecondMomentSampler
from ..hub.access import Page
from ..hub.folder import CHAIN_FILE, CURVE_FILE, LOSS_FILE, PREVIEWS_FOLDER, SAMPLES_FILE, SUMMARY_FILE
from ..pipelines.ddpm import DDPMPipeline
from ..progress import progress_bar
from .checkpoint import find_checkpoint, list_checkpoints, load_checkpoint, remove_partial_checkpoints, save_checkpoint
from .device import describe_hardware, has_fused_optimizer, peak_memory, start_trackers, to_device
from .doctor import report
from .draws import StepDraws
from .ema import EMA, whole
from .ending import Ending
from .interruption import Interruption, describe_reason, exit_status, parse_duration
from .output import LossTable, OutputFolder, write_text
from .plan import Plan
from .previews import draw_chain, draw_preview, track_image
from .publish import Publisher
from .scoring import Scorer
from .watch import Watch


class Trainer:
    """One training run: build it, then call `train`.

    Args:
        plan: settings, data, network and process, all checked.
        accelerator: made by `make_accelerator` from the same settings.
        output: the open output folder.
        summary: what the folder says of the run so far.
        page: where the model is pushed to; None for nowhere.
        scorer: measures the model on the way; None for nobody.
    """

    def __init__(
        self,
        plan: Plan,
        accelerator: Accelerator,
        output: OutputFolder,
        summary: dict,
        page: Page | None = None,
        scorer: Scorer | None = None,
    ):
        self.plan, self.accelerator, self.output, self.summary = plan, accelerator, output, summary
        self.scorer = scorer
        self.options = plan.config.optimization
        self.run = plan.config.run
        self.step, self.saved_step = 0, 0
        self.picture, self.drawn = None, None  # the newest preview, and what is to be said of it
        self.seconds = 0.0  # of training, over all sessions of this run
        self.peak_memory = 0
        # Counted where the gradients are, so that no step has to wait for them.
        self.bad_steps, self.bad_in_a_row = torch.zeros(2, dtype=torch.int64, device=accelerator.device)
        self.publisher = Publisher(plan.config, output, page, tqdm.write) if accelerator.is_main_process else None
        self.ema = None
        if self.options.use_ema:
            inv_gamma = self.options.ema_inv_gamma if self.options.ema_warmup else None
            self.ema = EMA(plan.unet, self.options.ema_decay, inv_gamma, self.options.ema_power)
            self.ema.model.to(accelerator.device)
        self.draws = StepDraws(plan)
        self._prepare_model()

    def _prepare_model(self) -> None:
        unet, options = self.plan.unet, self.options
        if self.plan.config.model.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if self.plan.config.model.compile:
            unet.compile_repeated_blocks()
        optimizer = torch.optim.AdamW(
            unet.parameters(),
            lr=options.learning_rate,
            betas=(options.adam_beta1, options.adam_beta2),
            weight_decay=options.adam_weight_decay,
            eps=options.adam_epsilon,
            fused=has_fused_optimizer(self.accelerator.device),
        )
        plugin = self.accelerator.state.deepspeed_plugin
        if plugin is not None:
            # DeepSpeed wants to know the batch, which it otherwise reads off a prepared loader.
            plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = options.train_batch_size
        self.model, self.optimizer = self.accelerator.prepare(unet, optimizer)
        # DeepSpeed has taken its step, by an optimizer of its own, when the norm of its gradient is known.
        self.fused = optimizer.defaults["fused"] and plugin is None
        self.model.train()

    # The run as a whole

    def train(self) -> None:
        """Train to the last step, going on from the newest checkpoint, and write everything a run leaves behind."""
        try:
            self._train()
        finally:
            self.output.unlock()

    def _train(self) -> None:
        self._resume()
        start_trackers(self.accelerator, self.plan.config, self.summary["tracker_run"], self.step)
        self.watch = Watch(self.plan, self.accelerator, self.ema, self.accelerator.unwrap_model(self.model))
        self.table = LossTable(self.output / LOSS_FILE, self.step) if self.accelerator.is_main_process else None
        if self.scorer is not None:
            self.scorer.resume(self.output, self.step)
        hardware = describe_hardware(self.accelerator)
        earlier = self.summary.get("hardware", [])
        if earlier and earlier[-1] != hardware:
            self.accelerator.print(
                f"this session runs on {hardware}, the one before on {earlier[-1]}: results equal those of an "
                "unbroken run up to rounding, not to the last bit"
            )
        self._note("hardware", hardware)
        if self.accelerator.trackers:
            self._note("logging_dirs", self.run.logging_dir)
        self._start_report()
        limit = self.options.max_train_time
        bar = progress_bar(
            total=self.plan.steps,
            initial=self.step,
            desc="training",
            unit=" steps",
            dynamic_ncols=True,
            disable=not self.accelerator.is_local_main_process,
        )
        with bar as self.bar, Interruption(None if limit is None else parse_duration(limit)) as self.interruption:
            for batch in self._batches():
                self._micro_step(batch)
                if self.accelerator.sync_gradients:
                    self._after_step()
                    self._stop_if_asked()
        self._finish()

    def _note(self, name: str, value: str) -> None:
        """Add to what the summary lists of all sessions of this run."""
        if value in self.summary.setdefault(name, []):
            return
        self.summary[name].append(value)
        if self.accelerator.is_main_process:
            with self.output.sparing_the_run(SUMMARY_FILE):
                self.output.write_summary(self.summary)

    def _stop_if_asked(self) -> None:
        """Save and exit if any process has a reason to; all of them must agree on the step."""
        reason = self.interruption.reason()
        if self.accelerator.num_processes > 1:
            reason = int(self.accelerator.gather(torch.tensor([reason], device=self.accelerator.device)).max())
        if not reason or self.step == self.plan.steps:
            return
        if self.step > self.reported_step:
            self._report()
        self._checkpoint()
        self.bar.close()
        where = f"checkpoint-{self.saved_step}" if self.saved_step else "the beginning, for no checkpoint was saved"
        self.accelerator.print(
            f"stopped by {describe_reason(reason)} at step {self.step} of {self.plan.steps}. "
            f"The same command goes on from {where}."
        )
        self._leave()
        sys.exit(exit_status(reason))

    def _leave(self) -> None:
        """Close the trackers and the process group, which nothing here may hold any more.

        If DistributedDataParallel were the last to hold it, gloo's threads would be joined by a thread that keeps the
        interpreter locked, and the one that still lets go of its last collective waits for that lock: a deadlock of
        torch 2.13, found in one of twenty exits of two processes on a busy machine.
        """
        self.model = self.accelerator.unwrap_model(self.model)
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def _resume(self) -> None:
        remove_partial = self.accelerator.is_main_process
        if remove_partial:
            remove_partial_checkpoints(self.output.path)
        self.accelerator.wait_for_everyone()
        if self.run.resume_from_checkpoint is not None:
            checkpoint = find_checkpoint(self.output.path, self.run.resume_from_checkpoint)
        else:
            checkpoint = next(reversed(list_checkpoints(self.output.path)), None)
        if checkpoint is not None:
            progress, tensors = load_checkpoint(self.accelerator, checkpoint)
            for name, holder in self._holders().items():
                holder.load_state_dict(tensors[name])
            self.step = self.saved_step = progress["step"]
            self.seconds = progress["seconds"]
            self.bad_steps = self.bad_steps + progress["bad_steps"]
            self.peak_memory = progress.get("peak_memory_bytes") or 0
            self.plan.images.add_unreadable(progress["unreadable"])
            self.summary["tracker_run"] = progress["tracker_run"]
            self.accelerator.print(f"resuming from {checkpoint} at step {self.step} of {self.plan.steps}")

    def _holders(self) -> dict[str, EMA | SecondMomentSampler]:
        """What has state beside model and optimizer, under the names of its checkpoint files."""
        holders = {"ema": self.ema, "timestep_sampler": self.draws.sampler}
        return {name: holder for name, holder in holders.items() if holder is not None}

    def _batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """The micro-batches of this process from the current step to the last, on the device."""
        self.sampler = PositionSampler(
            self.options.train_batch_size,
            start_step=self.step,
            num_steps=self.plan.steps - self.step,
            gradient_accumulation_steps=self.options.gradient_accumulation_steps,
            num_processes=self.accelerator.num_processes,
            process_index=self.accelerator.process_index,
        )
        loader = make_loader(
            self.plan.images.data,
            self.sampler,
            num_workers=self.plan.config.data.dataloader_num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        for micro_step, batch in enumerate(loader):
            self.micro_step = micro_step % self.options.gradient_accumulation_steps
            yield {name: to_device(tensor, self.accelerator.device) for name, tensor in batch.items()}

    def _finish(self) -> None:
        # First what was trained, for the rest takes its time, in which a run can be killed too.
        self._checkpoint()
        self._write_curves()
        self.save_pipeline()
        summary = {"status": "finished", **self._look_back()}
        if self.publisher is not None:
            self.output.write_summary(self._summary_so_far() | summary)
        self.accelerator.print(self.plan.images.describe_unreadable(), end="")
        self._leave()
        # Alone, since no other process waits any more.
        if self.publisher is not None:
            self.publisher.finish()

    def _look_back(self) -> dict:
        """Measure and draw what there is time for; what is to be said of it in the summary."""
        ending, said = Ending(self.plan, self.accelerator, self.scorer, self.seconds), {}
        ending.measure(self.pipeline(), self.step, self.output)
        steps = ending.preview_steps(self.pipeline())
        if steps:
            self._preview(SAMPLES_FILE, steps)
        else:
            self.drawn = None
        if ending.has_time_for_chain(self.pipeline(), steps):
            folder = self.output.path if self.publisher is not None else None
            with self.accelerator.autocast():
                said["chain"] = self.drawn | draw_chain(self.pipeline(CHAIN_FILE), self.plan, steps, folder)
        return said | {"left_out": ending.left_out}

    def _summary_so_far(self) -> dict:
        """The summary with what the run has cost and shown up to the last report."""
        return self.summary | {
            "step": self.step,
            "training_seconds": round(self.seconds, 1),
            "images_per_second": round(self.reported_step * self.sampler.global_batch_size / self.seconds, 1),
            "final_loss": self.table.rows[-1]["loss"],
            "peak_memory_bytes": self._peak_memory(),
            "precision": self.accelerator.mixed_precision,
            "software": {name: version(name) for name in ("torch", "diffusers", "accelerate")},
            "samples": self.drawn,
            "unreadable": self.plan.images.unreadable,
            "bad_steps": int(self.bad_steps),
        }

    def _peak_memory(self) -> int | None:
        now = peak_memory(self.accelerator.device)
        return None if now is None else max(now, self.peak_memory)

    # One optimizer step

    def _micro_step(self, batch: dict[str, torch.Tensor]) -> None:
        """Algorithm 1, lines 2 to 5, for this process's share of the images."""
        # Before the gradient, because DeepSpeed takes its step as part of going backwards.
        self._set_learning_rate(self.plan.learning_rate_at(self.step))
        with self.accelerator.accumulate(self.model):
            # 1. x_0 from the data, t and eps; all in float32 whatever the precision of the network
            x_0 = normalize(batch["images"])
            positions = self.sampler.positions(self.step, self.micro_step)
            noise = self.draws.noise(positions, x_0)
            timesteps, weights = self.draws.timesteps(self.step, positions, x_0.device)
            conditions = self.draws.conditions(self.step, positions, batch)
            # 2. One loss per image: x_t, the network's output, and how far it is from what it should be
            torch.manual_seed(self.draws.dropout_seed(self.step, self.micro_step, self.accelerator.process_index))
            losses = self.plan.loss(self._network, x_0, noise, timesteps, **conditions)
            # 3. Gradient descent on their mean
            loss = (losses * weights).mean()
            self.accelerator.backward(loss)
            self.step_loss += loss.detach()
            self.step_record.append((batch["rows"], timesteps, losses.detach()))
            self.watch.see(timesteps, losses.detach())
            if self.accelerator.sync_gradients:
                norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.options.max_grad_norm)
                self.grad_norm = whole(torch.as_tensor(norm, device=self.accelerator.device))
                self.is_bad = ~self.grad_norm.isfinite()
                if self.fused:  # it leaves weights and moments alone where this is 1
                    self.optimizer.optimizer.found_inf = self.is_bad.float()
                # In half precision the gradient scaler skips a bad step itself, and learns from it.
                if self.fused or self.accelerator.scaler is not None or not self.is_bad:
                    self.optimizer.step()
            self.optimizer.zero_grad()

    def _network(self, x_t: torch.Tensor, timesteps: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        return self.model(x_t, timesteps, **conditions).sample

    def _set_learning_rate(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = value

    def _after_step(self) -> None:
        """Everything that hangs on the clock, once the weights have moved."""
        self.step += 1
        # A step without a finite gradient changed nothing and has no loss.
        self.bad_steps = self.bad_steps + self.is_bad
        self.bad_in_a_row = (self.bad_in_a_row + 1) * self.is_bad
        self.good_steps = self.good_steps + ~self.is_bad
        self.loss_sum += self.step_loss.masked_fill(self.is_bad, 0)
        self.step_loss = torch.zeros_like(self.step_loss)
        if self.draws.sampler is not None and not self.is_bad:
            for _, *seen in self.step_record:
                timesteps, losses = self.accelerator.gather(torch.stack(seen, dim=1)).cpu().unbind(1)
                self.draws.sampler.update(timesteps.long(), losses)
        if self.ema is not None:
            self.ema.update(self.accelerator.unwrap_model(self.model), self.step)
        self.bar.update()
        last = self.step == self.plan.steps
        if self.step % self.run.logging_steps == 0 or last:
            self._stop_if_bad()
            self._report()
        self.step_record.clear()
        if self.scorer is not None and self.scorer.is_due(self.step) and not self.bad_in_a_row:
            self._score()
        if last:
            return
        if self.plan.preview_steps and self.step % self.plan.preview_steps == 0:
            name = f"{PREVIEWS_FOLDER}/step-{self.step:07d}.png"
            self._preview(name, self.plan.preview_inference_steps)
            self._write_curves()
        if self.plan.pipeline_steps and self.step % self.plan.pipeline_steps == 0:
            with self.output.sparing_the_run("the pipeline"):
                self.save_pipeline()
        if self.step % self.run.checkpointing_steps == 0:
            self._checkpoint()
            if self.publisher is not None and self.saved_step == self.step and self.table.rows:
                self.publisher.checkpoint(self.pipeline(), self._summary_so_far(), self.picture)

    def _stop_if_bad(self) -> None:
        """End a run in which nothing moves. Looked at with every report, because it waits for the device.

        Raises:
            FloatingPointError: if the latest `--max_bad_steps` steps or more had a NaN or infinite gradient, once
                `bad_batch.json` tells what was in the last one.
        """
        bad_in_a_row = int(self.bad_in_a_row)
        if bad_in_a_row < self.options.max_bad_steps:
            return
        columns = [
            self.accelerator.gather(torch.cat(column)).tolist() for column in zip(*self.step_record, strict=True)
        ]
        file = self.output / "bad_batch.json"
        if self.accelerator.is_main_process:
            record = dict(zip(("rows", "timesteps", "losses"), columns, strict=True))
            write_text(file, json.dumps({"step": self.step, **record}, indent=2) + "\n")
        raise FloatingPointError(
            f"{bad_in_a_row} steps in a row had a NaN or infinite loss or gradient; {file} tells what was in the last "
            "one, and the checkpoints are from before. Try a lower --learning_rate or --mixed_precision no"
        )

    # What a run tells

    def _start_report(self) -> None:
        self.loss_sum = torch.zeros((), device=self.accelerator.device)
        self.good_steps = torch.zeros_like(self.bad_steps)
        self.step_loss, self.step_record = torch.zeros_like(self.loss_sum), []
        self.reported_step, self.report_time = self.step, time.perf_counter()

    def _report(self) -> None:
        """Mean loss over all processes and micro-steps since the last report: to the bar, the table, the tracker."""
        steps = self.step - self.reported_step
        micro_steps = self.good_steps * self.options.gradient_accumulation_steps
        loss = self.accelerator.reduce(self.loss_sum, "mean") / micro_steps
        seconds = time.perf_counter() - self.report_time
        self.seconds += seconds
        row = {
            "step": self.step,
            "epoch": self.step * self.sampler.global_batch_size / (self.plan.images.count or math.nan),
            "loss": loss.item(),
            "learning_rate": self.plan.learning_rate_at(self.step - 1),
            "grad_norm": float(self.grad_norm),
            "images_per_second": steps * self.sampler.global_batch_size / seconds,
            "seconds": self.seconds,
        }
        shown = {"loss": f"{row['loss']:.4f}", "images/s": f"{row['images_per_second']:.0f}"}
        self.bar.set_postfix(shown, refresh=False)
        if self.table is not None:
            with self.output.sparing_the_run(LOSS_FILE):
                self.table.append(**row)
        self.accelerator.log({name: value for name, value in row.items() if name != "step"}, step=self.step)
        if findings := self.watch.report(self.step):
            self.summary["doctor"] = report(findings, self.summary["doctor"])
            if self.accelerator.is_main_process:
                tqdm.write("\n".join(map(str, findings)))
                with self.output.sparing_the_run(SUMMARY_FILE):
                    self.output.write_summary(self.summary)
        self._start_report()

    def _write_curves(self) -> None:
        if self.table is not None and self.table.rows:
            with self.output.sparing_the_run(CURVE_FILE):
                self.table.plot(self.output / CURVE_FILE)

    def pipeline(self, what: str = "sampling") -> DDPMPipeline:
        """The pipeline as it would be saved now: with the averaged weights if there are any; `what` is on its bar."""
        unet = self.ema.model if self.ema is not None else self.accelerator.unwrap_model(self.model)
        pipeline = DDPMPipeline(unet, self.plan.scheduler, id2label=self.plan.id2label)
        hidden = not self.accelerator.is_local_main_process
        pipeline.set_progress_bar_config(desc=what, leave=False, disable=hidden)
        return pipeline

    def _score(self) -> None:
        started = time.perf_counter()
        self.scorer.score(self.pipeline(), self.step)
        self.report_time += time.perf_counter() - started

    def _preview(self, name: str, steps: int) -> None:
        """A labelled grid of images with fixed seeds, drawn by all processes together."""
        started = time.perf_counter()
        grid, facts = draw_preview(self.pipeline(name), self.plan, self.accelerator, steps)
        if self.accelerator.is_main_process:
            with self.output.sparing_the_run(name):
                (self.output / name).parent.mkdir(exist_ok=True)
                grid.save(self.output / name)
            track_image(self.accelerator, grid, self.step)
        self.picture, self.drawn = self.output / name, {**facts, "step": self.step}
        self.report_time += time.perf_counter() - started

    def save_pipeline(self) -> None:
        """Write the pipeline into the output folder itself, where diffusers' own example puts it."""
        try:
            if self.accelerator.is_main_process:
                self.pipeline().save_pretrained(self.output.path)
        finally:
            self.accelerator.wait_for_everyone()

    def _checkpoint(self) -> None:
        """Save what a later session needs; `saved_step` tells whether it worked."""
        # Weights amid steps without a finite gradient may be spoilt, and would push out good ones.
        if self.step == self.saved_step or self.bad_in_a_row:
            return
        started = time.perf_counter()
        progress = {
            "step": self.step,
            "seconds": self.seconds,
            "peak_memory_bytes": self._peak_memory(),
            "bad_steps": int(self.bad_steps),
            "unreadable": self.plan.images.gather_unreadable(),
            "tracker_run": self.summary["tracker_run"],
        }
        tensors = {name: holder.state_dict() for name, holder in self._holders().items()}
        limit = self.run.checkpoints_total_limit
        if save_checkpoint(self.accelerator, self.output.path, progress, tensors, limit):
            self.saved_step = self.step
        self.report_time += time.perf_counter() - started
