"""Preparing a run: every error that can be found in advance is found here, before anything is written."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState

from ..cores import describe_processes
from ..data.captions import CAPTIONS
from ..data.examples import TrainingImages
from ..hub.folder import (
    BEST_FOLDER,
    CARD_FILE,
    CHECKPOINTS,
    DIFFUSION_RUN,
    EVERY_RUN,
    PICTURES_RUN,
    PREVIEWS_FOLDER,
    RUN_FILES,
)
from ..outputs.checkpoint import find_checkpoint
from ..outputs.folder import OutputFolder
from ..outputs.publish import Publisher, page_for
from ..settings.checks import parse_duration
from ..settings.config import Config
from ..systems.forecast import Forecast, forecast
from ..systems.plan import Plan, all_stages, make_plan, stages_of
from ..systems.system import Stage
from .device import make_accelerator
from .doctor import examine, merged
from .loop import Trainer
from .optimizer import adam
from .scoring import Scorer


def train(config: Config, stages: Sequence[Stage] | None = None) -> None:
    """Train the stages of a system, each in its folder; one that is finished is left, one that is not goes on.

    Raises:
        ValueError: as in `prepare`.
        Stopped: before the last step, after saving, by a signal or the end of `--max_train_time`.
    """
    stages, limit, started = stages or stages_of(config), config.optimization.max_train_time, time.monotonic()
    for later in stages[1:]:  # a wrong setting is found now, not when the stages before it have been trained
        later.resolve(config, None)
    for stage in stages:
        changes = {"output_dir": str(Path(config.run.output_dir, stage.folder))}
        if not (config.run.dry_run and config.run.overwrite_output_dir):  # which must know what would be trained anew
            changes["stage"] = None if stage.name is None else [stage.name]  # what its recorded settings train again
        if limit is not None:  # for all stages together
            left = parse_duration(limit) - (time.monotonic() - started)
            changes["max_train_time"] = str(max(1, round(left)))
        trainer = prepare(config.with_values(changes), stage, stages)
        if trainer is not None:
            trainer.train()
            config = config.with_values({"resume_from_checkpoint": None})  # it named one of this stage
    PartialState().destroy_process_group()  # if the last stage was finished before


def prepare(config: Config, stage: Stage | None = None, stages: Sequence[Stage] = ()) -> Trainer | None:
    """A trainer at its first or next step; None if there is nothing to do (finished run, or `--dry_run`).

    Args:
        stage: what to train.
        stages: all that are trained by these processes; after the last one they end, and its model is pushed.

    Raises:
        ValueError: if settings, data and output folder do not fit together, naming the argument.
    """
    is_last = not stages or stage is stages[-1]
    output = OutputFolder(config.run.output_dir, "." if stage is None else stage.folder)
    output.check_is_ours(config.run.overwrite_output_dir, {other.folder for other in (*stages, *all_stages(config))})
    accelerator = make_accelerator(config)
    page = None
    if config.hub.push_to_hub and is_last and accelerator.is_main_process and not config.run.dry_run:
        page = page_for(config.hub, output.whole)
    plan = make_plan(config, accelerator, stage)
    cost = forecast(plan, accelerator)
    accelerator.print(describe(plan, accelerator, cost))
    if config.run.overwrite_output_dir and (left := output.left_by_run()):
        accelerator.print(f"  deletes: {', '.join(str(path.relative_to(output.path)) for path in left)}")
    findings = examine(plan, accelerator, cost)
    for finding in findings:
        if finding.severity == "error":
            raise ValueError(f"{finding.what}. {finding.why}. {finding.change}")
        accelerator.print(finding)
    is_scored = plan.config.run.eval_metrics and (plan.images.holdout.holds_out or config.run.eval_steps is not None)
    try:
        scorer = Scorer(plan, accelerator) if is_scored else None
    except ValueError as problem:
        if config.run.eval_metrics is not None or config.run.eval_steps is not None:
            raise
        accelerator.print(f"warning: the model will not be measured: {problem}. --holdout holds out more images.")
        scorer = None
    if config.run.dry_run:
        return None
    # The main process checks and changes the folder; the others then read it.
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            output.lock()
        overwrite = config.run.overwrite_output_dir and accelerator.is_main_process
        summary = output.open(plan.config, dataclasses.asdict(plan.facts), overwrite)
        summary["doctor"] = merged(findings, summary.get("doctor", []))
    if summary["status"] == "finished":
        accelerator.print(f"this run has finished its {summary['steps']} steps; the results are in {output.path}")
        if page is not None or not (output / CARD_FILE).is_file():  # if the run was killed at the very end
            Publisher(plan.config, output, page, print).finish()
        output.unlock()
        return None
    if plan.system.begin is not None and find_checkpoint(output.path, config.run.resume_from_checkpoint) is None:
        plan.system.begin()
    for part in (plan.system.codec, *plan.system.conditions):
        part.prepare(accelerator.device)
    return Trainer(plan, accelerator, output, summary, page, scorer, is_last)


def describe(plan: Plan, accelerator: Accelerator, cost: Forecast) -> str:
    """The run in a few lines; for `--dry_run` also its cost and the files it will write."""
    options, images, scheduler = plan.config.optimization, plan.images, plan.system.scheduler
    channels, height, width = images.shape
    levels = getattr(next(plan.system.network.children()).config, "block_out_channels", None)
    batch, on_cpu = plan.facts.global_batch_size, accelerator.device.type == "cpu"
    classes = f", {len(plan.facts.class_names)} classes" if plan.facts.class_names is not None else ""
    if any(condition.name == "prompt" for condition in plan.system.conditions):
        classes += f", {images.source.columns.get(CAPTIONS, 'no captions: pictures are learned as they are')}"
    epochs = "" if images.count is None else f" ({plan.clock.steps * batch / images.count:.1f} epochs)"
    lines = {
        "data": f"{images.source.name}, {images.count or 'a stream of'} images of {width}x{height}, "
        f"{channels} channel{'s' * (channels > 1)}{classes}; {_held_out(images)}"
        + (f"; {len(images.unreadable)} unreadable and left out" if images.unreadable else ""),
        "model": f"{plan.facts.parameters:,} parameters" + (f", channels {tuple(levels)}" if levels else ""),
        **({plan.system.codec.called: text} if (text := plan.system.codec.describe()) else {}),
        **{condition.name: text for condition in plan.system.conditions if (text := condition.describe())},
        **({"loss": str(plan.system.loss)} if scheduler is None else {"process": _process(scheduler.config)}),
        "training": f"{plan.clock.steps} steps of {batch} images{epochs}, "
        f"learning rate {options.learning_rate:g} {options.lr_scheduler}",
        "machine": f"{describe_processes(accelerator.device, accelerator.num_processes)}, precision "
        f"{options.mixed_precision}, {adam(options, accelerator.device)[0]}, "
        f"{'compiled' if plan.config.model.compile else 'not compiled'}",
        "output": plan.config.run.output_dir,
    }
    if plan.config.run.dry_run:
        lines |= {
            "images": f"{plan.clock.steps * batch:,} with repetitions",
            "learning": _course(plan),
            "work": f"{cost.flops / 1e9:,.4g} GFLOP a step, {cost.flops * plan.clock.steps / 1e12:,.4g} TFLOP in all",
            "memory": (f"about {_size(cost.total)}, within a quarter," if on_cpu else f"at least {_size(cost.total)}")
            + f" a process: weights {_size(cost.parameters)}, gradients {_size(cost.gradients)}, "
            f"Adam {_size(cost.optimizer)}, average {_size(cost.ema)}, "
            f"a micro-step of {options.train_batch_size} images {_size(cost.activations)}",
            "files": ", ".join(_files(plan)),
        }
    return "\n".join(f"{name:>9}: {text}" for name, text in lines.items())


def _process(process: Mapping[str, Any]) -> str:
    return f"T = {process.num_train_timesteps}, {process.beta_schedule}, predicts {process.prediction_type}"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _course(plan: Plan) -> str:
    """The learning rate at the start, after the warm-up, halfway and at the end."""
    last = plan.clock.steps - 1
    shown = sorted({0, min(plan.config.optimization.lr_warmup_steps, last), last // 2, last})
    return ", ".join(f"{plan.clock.learning_rate_at(step):.3g} at step {step}" for step in shown)


def _files(plan: Plan) -> list[str]:
    """The files the run leaves in its folder."""
    run, pipeline = plan.config.run, plan.system.pipeline(plan.system.network)
    writers = {
        EVERY_RUN: True,
        PICTURES_RUN: pipeline.draws_pictures,
        DIFFUSION_RUN: pipeline.draws_pictures and plan.system.scheduler is not None,
        "--holdout": plan.images.holdout.holds_out,
        "--preview_steps": 0 < plan.clock.preview_steps < plan.clock.steps,
        "--eval_steps": run.eval_steps is not None,
        "--save_best_by": run.save_best_by is not None,
        "--text_encoder taught": plan.config.model.text_encoder == "taught",
        "--lora_rank": plan.config.model.lora_rank is not None,
    }
    kept = "" if run.checkpoints_total_limit is None else f", the last {run.checkpoints_total_limit} kept"
    notes = {
        PREVIEWS_FOLDER: f" (every {plan.clock.preview_steps} steps)",
        BEST_FOLDER: f" (by {run.save_best_by})",
        CHECKPOINTS: f" (every {run.checkpointing_steps} steps and at the end{kept})",
    }
    names = [file.name + notes.get(file.name, "") for file in RUN_FILES if writers.get(file.writer)]
    parts = [name for name, part in pipeline.components.items() if part is not None]
    return parts + names + [run.logging_dir] * (run.report_to != "none")


def _held_out(images: TrainingImages) -> str:
    holdout = images.holdout
    if holdout.split is not None:
        return f"its {holdout.split} split is held out"
    if not holdout.holds_out:
        return "nothing held out"
    if images.count is None:
        return f"{holdout.threshold / 2**64:.1%} held out"
    return f"{images.source.num_rows - images.count - len(images.unreadable)} held out"
