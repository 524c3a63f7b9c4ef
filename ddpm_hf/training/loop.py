"""Algorithm 1 of Ho et al. 2020 on Accelerate, counted in optimizer steps.

Everything random in a step (rows, crops, flips, noise, timesteps, hidden conditions, dropout) is a pure function of
(seed, step). A resumed run therefore needs only its weights and its step to match an uninterrupted one: bit for bit on
one CPU process with the same number of threads, which determines the order of summation.
"""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..data.order import PositionSampler
from ..diffusion.losses import SecondMomentSampler
from ..hub.access import Page
from ..hub.folder import CHAIN_FILE, PREVIEWS_FOLDER, SAMPLES_FILE
from ..outputs import checkpoint as checkpoints
from ..outputs.folder import OutputFolder
from ..outputs.publish import Publisher
from ..pipelines.ddpm import DDPMPipeline
from ..progress import progress_bar
from ..settings.checks import parse_duration
from ..systems.plan import Plan
from .bookkeeping import Bookkeeper
from .device import start_trackers, to_device, training_attention
from .draws import StepDraws
from .ema import EMA, whole
from .ending import Ending
from .interruption import Interruption, Stopped, describe_reason, exit_status
from .optimizer import prepared
from .previews import draw_chain, draw_preview, track_image
from .scoring import Scorer
from .watch import Watch


class Trainer:
    """One training run: build it, then call `train`.

    Args:
        plan: settings, data, network and process, all checked.
        accelerator: from `make_accelerator`, for the same settings.
        output: the open output folder.
        summary: the folder's summary of the run so far.
        page: where to push the model, if anywhere.
        scorer: scores the model during and after training, if there are held-out images.
        is_last: whether no other training follows in these processes.
    """

    def __init__(
        self,
        plan: Plan,
        accelerator: Accelerator,
        output: OutputFolder,
        summary: dict,
        page: Page | None = None,
        scorer: Scorer | None = None,
        is_last: bool = True,
    ):
        self.plan, self.accelerator, self.output, self.summary = plan, accelerator, output, summary
        self.scorer, self.is_last = scorer, is_last
        self.options, self.run = plan.config.optimization, plan.config.run
        self.step, self.saved_step = 0, 0
        self.picture, self.drawn = None, None  # the newest preview, and its facts for the card
        self.finished = None, None  # the newest step after which a network was finished, and that network
        self.bookkeeper = Bookkeeper(plan, accelerator, output, summary)
        self.publisher = Publisher(plan.config, output, page, tqdm.write) if accelerator.is_main_process else None
        self.ema = None
        if self.options.use_ema:
            inv_gamma = self.options.ema_inv_gamma if self.options.ema_warmup else None
            self.ema = EMA(plan.system.network, self.options.ema_decay, inv_gamma, self.options.ema_power)
            self.ema.model.to(accelerator.device)
        self.draws = StepDraws(plan)
        self.model, self.optimizer, self.fused = prepared(plan, accelerator)
        self.bar, self.interruption = None, None  # while it trains
        # Of the newest optimizer step.
        self.grad_norm = torch.zeros((), device=accelerator.device)
        self.is_bad = torch.zeros((), dtype=torch.bool, device=accelerator.device)

    # The run as a whole

    def train(self) -> None:
        """Train to the last step, from the newest checkpoint if there is one, and write all results.

        Raises:
            Stopped: before the last step, after saving, by a signal or the end of `--max_train_time`.
        """
        try:
            self._train()
        finally:
            self.output.unlock()

    def _train(self) -> None:
        self._resume()
        start_trackers(self.accelerator, self.plan.config, self.summary["tracker_run"], self.step)
        watch = Watch(self.plan, self.accelerator, self.ema, self.accelerator.unwrap_model(self.model))
        self.bookkeeper.start(self.step, watch)
        if self.scorer is not None:
            self.scorer.resume(self.output, self.step)
        limit = self.options.max_train_time
        bar = progress_bar(
            total=self.plan.clock.steps,
            initial=self.step,
            desc="training",
            unit=" steps",
            dynamic_ncols=True,
            disable=not self.accelerator.is_local_main_process,
        )
        with bar as self.bar, Interruption(None if limit is None else parse_duration(limit)) as self.interruption:
            for micro_step in self._micro_steps():
                self._micro_step(*micro_step)
                if self.accelerator.sync_gradients:
                    self._after_step()
                    self._stop_if_asked()
        self._finish()

    def _stop_if_asked(self) -> None:
        """Save and raise `Stopped` if any process has to stop; all of them must agree on the step."""
        reason = self.interruption.reason()
        if self.accelerator.num_processes > 1:
            reason = int(self.accelerator.gather(torch.tensor([reason], device=self.accelerator.device)).max())
        if not reason or self.step == self.plan.clock.steps:
            return
        if self.step > self.bookkeeper.step:
            self._report()
        self._checkpoint()
        self.bar.close()
        where = f"checkpoint-{self.saved_step}" if self.saved_step else "the start, as no checkpoint was saved"
        told = (
            f"stopped by {describe_reason(reason)} at step {self.step} of {self.plan.clock.steps}. "
            f"Run the same command again to continue from {where}."
        )
        self.accelerator.print(told)
        self._leave(is_last=True)
        raise Stopped(told, exit_status(reason))

    def _leave(self, is_last: bool) -> None:
        """Close the trackers, and at last the process group, to which nothing here may keep a reference.

        If DistributedDataParallel held the last one, its destructor would join gloo's threads while holding the GIL,
        and a gloo thread that is still releasing its last collective waits for the GIL: a deadlock of torch 2.13, seen
        in one of twenty exits of two processes on a busy machine.
        """
        self.model = self.accelerator.unwrap_model(self.model)
        self.accelerator.free_memory()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        if is_last:
            self.accelerator.state.destroy_process_group()

    def _resume(self) -> None:
        if self.accelerator.is_main_process:
            checkpoints.remove_partial_checkpoints(self.output.path)
        self.accelerator.wait_for_everyone()
        checkpoint = checkpoints.find_checkpoint(self.output.path, self.run.resume_from_checkpoint)
        if checkpoint is not None:
            progress, tensors = checkpoints.load_checkpoint(self.accelerator, checkpoint)
            for name, holder in self._holders().items():
                holder.load_state_dict(tensors[name])
            self.step = self.saved_step = progress["step"]
            self.bookkeeper.load_state(progress)
            self.plan.images.add_skipped(progress["unreadable"])
            self.summary["tracker_run"] = progress["tracker_run"]
            self.accelerator.print(f"resuming from {checkpoint} at step {self.step} of {self.plan.clock.steps}")

    def _holders(self) -> dict[str, EMA | SecondMomentSampler]:
        """State beside model and optimizer, by the name of its checkpoint file."""
        holders = {"ema": self.ema, "timestep_sampler": self.draws.sampler}
        return {name: holder for name, holder in holders.items() if holder is not None}

    def _micro_steps(self) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """From the current step to the last: number within the step, and this process's batch, with its positions."""
        sampler = PositionSampler(
            self.options.train_batch_size,
            start_step=self.step,
            num_steps=self.plan.clock.steps - self.step,
            gradient_accumulation_steps=self.options.gradient_accumulation_steps,
            num_processes=self.accelerator.num_processes,
            process_index=self.accelerator.process_index,
        )
        workers, on_cuda = self.plan.config.data.dataloader_num_workers, self.accelerator.device.type == "cuda"
        loader = self.plan.images.loader(sampler, num_workers=workers, pin_memory=on_cuda)
        for number, batch in enumerate(loader):
            micro_step = number % self.options.gradient_accumulation_steps
            batch = {
                name: to_device(value, self.accelerator.device) if torch.is_tensor(value) else value
                for name, value in batch.items()
            }
            yield micro_step, batch | {"positions": sampler.positions(self.step, micro_step)}

    def _finish(self) -> None:
        # Save first: the rest takes time, and the run may be killed meanwhile.
        self._checkpoint()
        self.bookkeeper.write_curves()
        self.save_pipeline()
        summary = {"status": "finished", **self._look_back()}
        if self.publisher is not None:
            self.output.write_summary(self._summary_so_far() | summary)
        if unreadable := self.plan.images.unreadable:
            heading = f"{len(unreadable)} images could not be read and were left out:"
            self.accelerator.print(heading, *unreadable, sep="\n")
        self.accelerator.wait_for_everyone()  # a later stage looks for that summary
        self._leave(self.is_last)
        # In the main process alone: the others have ended.
        if self.publisher is not None:
            self.publisher.finish()

    def _look_back(self) -> dict:
        """Measure and draw what there is time for; returns entries for the summary."""
        ending, facts = Ending(self.plan, self.accelerator, self.scorer, self.bookkeeper.seconds), {}
        ending.measure(self.pipeline(is_kept=True), self.step, self.output)
        steps = ending.preview_steps(self.pipeline())
        if steps:
            self._preview(SAMPLES_FILE, steps)
        else:
            self.drawn = None
        if ending.has_time_for_chain(self.pipeline(), steps):
            folder = self.output.path if self.publisher is not None else None
            with self.accelerator.autocast():
                facts["chain"] = self.drawn | draw_chain(self.pipeline(CHAIN_FILE), self.plan, steps, folder)
        return facts | {"left_out": ending.left_out}

    def _summary_so_far(self) -> dict:
        return self.bookkeeper.summary_at(self.step) | {"samples": self.drawn}

    # One optimizer step

    def _micro_step(self, micro_step: int, batch: dict[str, torch.Tensor]) -> None:
        """Algorithm 1, lines 2 to 5, for this process's share of the images."""
        positions = batch["positions"]
        # Before the backward pass, in which DeepSpeed takes its step.
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * self.plan.clock.learning_rate_at(self.step)
        with training_attention(self.accelerator), self.accelerator.accumulate(self.model):
            # 1. x_0, t and eps, in float32 whatever the precision of the network
            x_0 = self.plan.system.codec.encode(batch)
            noise = self.draws.noise(positions, x_0)
            timesteps, weights = self.draws.timesteps(self.step, positions, x_0.device)
            told = self.draws.told(self.step, positions, batch)
            # 2. One loss per image: how far the network's output for x_t is from its target
            torch.manual_seed(self.draws.dropout_seed(self.step, micro_step, self.accelerator.process_index))
            losses = self.plan.system.loss(self.model, x_0, noise, timesteps, **told)
            # 3. Gradient descent on their mean
            loss = (losses * weights).mean()
            self.accelerator.backward(loss)
            self.bookkeeper.see(batch["rows"], timesteps, losses.detach(), loss.detach())
            if self.accelerator.sync_gradients:
                norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.options.max_grad_norm)
                self.grad_norm = whole(torch.as_tensor(norm, device=self.accelerator.device))
                self.is_bad = ~self.grad_norm.isfinite()
                if self.fused:  # found_inf = 1 makes it leave weights and moments alone
                    self.optimizer.optimizer.found_inf = self.is_bad.float()
                # In fp16 the gradient scaler skips a bad step itself, and lowers its scale.
                if self.fused or self.accelerator.scaler is not None or not self.is_bad:
                    self.optimizer.step()
            self.optimizer.zero_grad()

    def _after_step(self) -> None:
        """Everything that depends on the step count, after the optimizer step."""
        self.step += 1
        self.bookkeeper.end_step(self.is_bad)
        if self.draws.sampler is not None and not self.is_bad:
            for _, *seen in self.bookkeeper.step_record:
                timesteps, losses = self.accelerator.gather(torch.stack(seen, dim=1)).cpu().unbind(1)
                self.draws.sampler.update(timesteps.long(), losses)
        if self.ema is not None:
            self.ema.update(self.accelerator.unwrap_model(self.model), self.step)
        self.bar.update()
        last = self.step == self.plan.clock.steps
        if self.step % self.run.logging_steps == 0 or last:
            self.bookkeeper.stop_if_bad(self.step)
            self._report()
        self.bookkeeper.step_record.clear()
        if self.scorer is not None and self.scorer.is_due(self.step) and not self.bookkeeper.bad_in_a_row:
            with self.bookkeeper.pause():
                # Finishing may take long.
                self.scorer.score(self.pipeline(is_kept=last or self.run.save_best_by is not None), self.step)
        if last:
            return
        if self.plan.clock.preview_steps and self.step % self.plan.clock.preview_steps == 0:
            name = f"{PREVIEWS_FOLDER}/step-{self.step:07d}.png"
            self._preview(name, self.plan.preview_inference_steps)
            self.bookkeeper.write_curves()
        if self.plan.clock.pipeline_steps and self.step % self.plan.clock.pipeline_steps == 0:
            with self.output.sparing_the_run("the pipeline"):
                self.save_pipeline()
        if self.step % self.run.checkpointing_steps == 0:
            self._checkpoint()
            if self.publisher is not None and self.saved_step == self.step and self.bookkeeper.table.rows:
                summary = self._summary_so_far()
                self.publisher.checkpoint(lambda: self.pipeline(is_kept=True), summary, self.picture)

    def _report(self) -> None:
        row = self.bookkeeper.write_row(self.step, self.grad_norm)
        shown = {"loss": f"{row['loss']:.4f}", "images/s": f"{row['images_per_second']:.0f}"}
        self.bar.set_postfix(shown, refresh=False)

    def pipeline(self, what: str = "sampling", is_kept: bool = False) -> DDPMPipeline:
        """The pipeline of the averaged weights, if there are any; `what` labels its bar.

        One that is kept, or measured as such, has the network that the system finishes.
        """
        network = self.ema.model if self.ema is not None else self.accelerator.unwrap_model(self.model)
        if is_kept and self.plan.system.finish is not None:
            if self.finished[0] != self.step:
                self.finished = self.step, self.plan.system.finish(network)
            network = self.finished[1]
        pipeline = self.plan.system.pipeline(network)
        hidden = not self.accelerator.is_local_main_process
        pipeline.set_progress_bar_config(desc=what, leave=False, disable=hidden)
        return pipeline

    def _preview(self, name: str, steps: int) -> None:
        """A labelled grid of images with fixed seeds, drawn by all processes together."""
        conditions = self.plan.shown if name == SAMPLES_FILE else self.plan.system.conditions
        with self.bookkeeper.pause():
            grid, facts = draw_preview(self.pipeline(name), self.plan, self.accelerator, steps, conditions)
            if self.accelerator.is_main_process:
                with self.output.sparing_the_run(name):
                    (self.output / name).parent.mkdir(exist_ok=True)
                    grid.save(self.output / name)
                track_image(self.accelerator, grid, self.step)
        self.picture, self.drawn = self.output / name, {**facts, "step": self.step}

    def save_pipeline(self) -> None:
        """Write the pipeline into the output folder itself, where diffusers' own example puts it."""
        try:
            if self.accelerator.is_main_process:
                self.pipeline(is_kept=True).save_pretrained(self.output.path)
        finally:
            self.accelerator.wait_for_everyone()

    def _checkpoint(self) -> None:
        """Save what a later session needs; `saved_step` says whether it worked."""
        # After a bad step the weights may be spoilt, and would push out good ones.
        if self.step == self.saved_step or self.bookkeeper.bad_in_a_row:
            return
        with self.bookkeeper.pause():
            progress = {
                "step": self.step,
                **self.bookkeeper.state(),
                "unreadable": self.plan.images.gather_skipped(),
                "tracker_run": self.summary["tracker_run"],
            }
            tensors = {name: holder.state_dict() for name, holder in self._holders().items()}
            limit = self.run.checkpoints_total_limit
            if checkpoints.save_checkpoint(self.accelerator, self.output.path, progress, tensors, limit):
                self.saved_step = self.step
