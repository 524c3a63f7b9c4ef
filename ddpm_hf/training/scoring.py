"""Scores of the averaged weights on held-out images during training, and the best pipeline so far."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from accelerate import Accelerator
from tqdm.auto import tqdm

from ..evaluation.exams import exams_for, model_exams_for
from ..evaluation.image_sets import ImageSet
from ..evaluation.measurements import measure_nll, measure_quality
from ..evaluation.quality import HIGHER_IS_BETTER, QUALITY_METRICS, check_quality, extractor_for, figure_names
from ..evaluation.reconstruction import (
    RECONSTRUCTION_FIGURES,
    check_kind,
    measure_reconstruction,
    reconstruction_figures,
)
from ..evaluation.record import MARKS, update_report
from ..evaluation.samples import draw_samples, words_for
from ..files import partial_path, remove, replacing, write_json
from ..hub.folder import BEST_FOLDER, CONFIG_FILE, EVALUATION_FILE, SCORES_CURVE, SCORES_FILE
from ..outputs.folder import OutputFolder, StepTable
from ..pipelines.ddpm import DDPMPipeline
from ..pipelines.fingerprint import weights_fingerprint
from ..systems.plan import Plan

BEST_RECORD = "best.json"
# Figures can be compared if they agree in these.
_CONDITIONS = "name dataset split n reference_n seed sampler steps guidance_scale terms_per_image".split()
_CONDITIONS += ["extractor", "judge"]
_SHARES = ("prompt_", "retrieval_", "zero_shot_", "prior_")


class Scorer:
    """Measures a pipeline on all processes, in the same way every time.

    Figures go to `scores.csv`, `scores.png` and the trackers; the pipeline with the best `--save_best_by` to `best/`.

    Raises:
        ValueError: for metrics that are not available with these data, this extractor or this many images.
    """

    def __init__(self, plan: Plan, accelerator: Accelerator):
        run, self.plan, self.accelerator = plan.config.run, plan, accelerator
        self.images = _held_out(plan, run.eval_num_images)
        model = plan.system.pipeline(plan.system.network)
        check_kind(run.eval_metrics, "--eval_metrics", model.kind, model.draws_pictures)
        is_autoencoder = model.draws_pictures and plan.system.scheduler is None
        # Else only bits/dim, at the end.
        draws = plan.system.codec.decoder is None or is_autoencoder or run.eval_steps is not None
        draws &= model.draws_pictures
        self.metrics = [name for name in run.eval_metrics if name in QUALITY_METRICS and draws]
        choice = (run.eval_extractor, self.images.name, accelerator.device, plan.config.data.cache_dir)
        self.extractor = extractor_for(self.metrics, *choice, prefix="eval_")
        names = ["bits_per_dim"] * ("nll" in run.eval_metrics)
        if self.metrics:
            fewest = min(run.eval_num_images, self.images.count or run.eval_num_images)
            check_quality(self.extractor, self.metrics, fewest, resamples=0)
            names += figure_names(self.extractor, self.metrics, fewest)
        if is_autoencoder:
            names += reconstruction_figures(run.eval_metrics, self.images.size)
        self.asked, self.exams = {}, []
        if draws and set(run.eval_metrics) != {"nll"}:
            # What the pipeline itself is told, as in evaluate.py: one that fills holes draws whole pictures here, for
            # it would else be scored on pictures that are known but for a part.
            self.asked = words_for(model.conditions, self.images, run.eval_num_images)
            judges = {"cache_dir": plan.config.data.cache_dir, "clip_model": run.eval_clip_model}
            arguments = (run.eval_metrics, "--eval_metrics", self.asked, self.images)
            self.exams = exams_for(*arguments, device=accelerator.device, **judges)
            names += [name for exam in self.exams for name in exam.names]
        draws = {"seed": plan.config.optimization.seed, "guidance_scale": run.preview_guidance_scale}
        draws |= {"count": run.eval_num_images}
        draws |= {"num_inference_steps": min(run.eval_inference_steps, plan.system.num_timesteps)}
        every = replace(self.images, most=None) if "prior" in run.eval_metrics else self.images
        self.model_exams = model_exams_for(run.eval_metrics, "--eval_metrics", every, **draws)
        names += [name for exam in self.model_exams for name in exam.names]
        self.count = len(self.asked["image"]) if is_autoencoder else run.eval_num_images
        if run.save_best_by not in (None, *names):
            raise ValueError(
                f"--save_best_by must be one of {', '.join(names)} with --eval_metrics {' '.join(run.eval_metrics)}, "
                f"got {run.save_best_by!r}"
            )
        self.names = names
        self.table: StepTable | None = None
        self.best: dict[str, Any] | None = None
        self.newest: tuple[int, list[dict[str, Any]]] | None = None  # (step, figures)

    def resume(self, output: OutputFolder, step: int) -> None:
        """Continue after this step, with the best so far."""
        self.output = output
        if not self.accelerator.is_main_process:
            return
        marks = (mark for name in self.names for mark in _marks_of(name).values())
        self.table = StepTable(output / SCORES_FILE, step, ["step", *self.names, *marks])
        place, beside = output / BEST_FOLDER, partial_path(output / BEST_FOLDER)
        if (beside / BEST_RECORD).is_file():  # written last, so `_keep` was killed while it removed the old one
            remove(place)
            beside.rename(place)
        remove(beside)
        if (place / BEST_RECORD).is_file():
            self.best = json.loads((place / BEST_RECORD).read_text(encoding="utf-8"))

    def is_due(self, step: int) -> bool:
        """Whether to score after this step: every `--eval_steps` steps and at the end, if that is given."""
        every = self.plan.config.run.eval_steps
        return every is not None and (step % every == 0 or step == self.plan.clock.steps)

    def figures_after(self, step: int) -> list[dict[str, Any]]:
        """What this session measured after this step, as entries of a report."""
        return self.newest[1] if self.newest is not None and self.newest[0] == step else []

    def score(self, pipeline: DDPMPipeline, step: int) -> None:
        """Measure the pipeline, report the figures, and keep it if it is the best; called by every process."""
        modes = [(part, part.training) for part in pipeline.network.children()]
        try:
            figures = self.measure(pipeline)
        finally:
            for part, was_training in modes:
                part.train(was_training)
        self.newest = step, figures
        row = {figure["name"]: figure["value"] for figure in figures}
        for figure in figures:
            marks = _marks_of(figure["name"]).items()
            row |= {column: figure[mark] for mark, column in marks if figure.get(mark) is not None}
        self.accelerator.log({f"eval/{name}": value for name, value in row.items()}, step=step)
        if not self.accelerator.is_main_process:
            return
        with self.output.sparing_the_run(SCORES_FILE):
            self.table.append(step=step, **row)
            self.table.plot(self.output / SCORES_CURVE, *((name, *_marks_of(name).values()) for name in self.names))
        if step == self.plan.clock.steps:  # the scores of the model that is saved
            with self.output.sparing_the_run(EVALUATION_FILE):
                update_report(self.output / EVALUATION_FILE, weights_fingerprint(pipeline), figures)
        shown = ", ".join(_in_words(figure) for figure in figures if _is_whole(figure["name"]))
        tqdm.write(f"step {step}: {shown}{self._keep_if_best(pipeline, figures, step)}")

    def measure(self, pipeline: DDPMPipeline, count: int | None = None) -> list[dict[str, Any]]:
        """What `--eval_metrics` asks for, as entries of a report; called by every process.

        Args:
            count: of samples, fewer than `--eval_num_images`.
        """
        run, figures, count = self.plan.config.run, [], count or self.count
        calls = min(run.eval_inference_steps, self.plan.system.num_timesteps)
        if "nll" in run.eval_metrics:
            figures.append(measure_nll(pipeline, self.images, None, num_terms=calls, **self._common))
        if self.asked or self.metrics:
            with self.accelerator.autocast():
                samples = draw_samples(
                    pipeline,
                    count,
                    asked=self.asked,
                    num_inference_steps=calls,
                    guidance_scale=run.preview_guidance_scale,
                    **self._common,
                )
        if "reconstruction" in run.eval_metrics:
            figures += measure_reconstruction(pipeline, samples, self.asked["image"], self.images)
        if self.metrics:
            training = self.images.training(most=self.count)
            arguments = (samples, self.images, training, self.extractor, self.metrics)
            figures += measure_quality(*arguments, resamples=0, **self._common)
        for exam in self.exams:
            figures += exam.measure(samples)
        for exam in self.model_exams:
            figures += exam.measure(pipeline)
        return figures

    @property
    def _common(self) -> dict[str, int]:
        options = self.plan.config.optimization
        return {"seed": options.seed, "batch_size": options.train_batch_size}

    def bits_per_dim(
        self, pipeline: DDPMPipeline, count: int, num_terms: int, go_on: Callable[[], bool]
    ) -> dict[str, Any]:
        """Bits/dim of the first `count` held-out images, as an entry of a report.

        `num_terms` and `go_on` as in `measure_nll`.
        """
        images = replace(self.images, most=count)
        return measure_nll(pipeline, images, None, num_terms=num_terms, go_on=go_on, **self._common)

    # The best pipeline

    def _keep_if_best(self, pipeline: DDPMPipeline, figures: list[dict[str, Any]], step: int) -> str:
        """Keep the pipeline if it is the best; returns a remark for the printed line."""
        wanted = self.plan.config.run.save_best_by
        if wanted is None:
            return ""
        (figure,) = (figure for figure in figures if figure["name"] == wanted)
        best = self.best
        if best is not None and any(best.get(name) != figure.get(name) for name in _CONDITIONS):
            best = None  # measured differently
        sign = 1 if wanted in HIGHER_IS_BETTER or wanted.startswith(_SHARES) else -1
        if best is not None and not sign * figure["value"] > sign * best["value"]:
            return f"; the best {wanted} is {best['value']:.4g} of step {best['step']}"
        record = {"step": step, **figure}
        with self.output.sparing_the_run(BEST_FOLDER):
            self._keep(pipeline, record)
            self.best = record
        return f"; kept in {BEST_FOLDER}/"

    def _keep(self, pipeline: DDPMPipeline, record: dict[str, Any]) -> None:
        with replacing(self.output / BEST_FOLDER) as beside:
            pipeline.save_pretrained(beside)
            shutil.copy(self.output / CONFIG_FILE, beside)  # so that evaluate.py finds the data
            write_json(beside / BEST_RECORD, record)


def _marks_of(name: str) -> dict[str, str]:
    """Which of `MARKS` stand beside a figure -> their columns in the table."""
    if name == "bits_per_dim" or name in RECONSTRUCTION_FIGURES:
        return {}
    if name.startswith("prior_"):
        marks = MARKS
    elif name.startswith(("retrieval_", "zero_shot_")):
        marks = MARKS[2:]
    else:
        marks = MARKS[1:] if name.startswith(("prompt_", "clip_")) else MARKS[:1]
    return {mark: f"{name}_{mark}" for mark in marks}


def _is_whole(name: str) -> bool:
    """Whether a figure is not about one attribute of captions."""
    return not name.startswith(("prompt_", "zero_shot_")) or "_accuracy_" in name


def _in_words(figure: dict[str, Any]) -> str:
    marks = "".join(f", {mark} {figure[mark]:.4g}" for mark in MARKS[1:] if mark in figure)
    return f"{figure['name']} {figure['value']:.4g}" + (f" ({marks[2:]})" if marks else "")


def _held_out(plan: Plan, most: int) -> ImageSet:
    images, options = plan.images, plan.config.data
    if not images.holdout.holds_out:
        raise ValueError("--eval_steps needs held-out images, and --holdout 0 holds none out")
    return ImageSet(
        data=images.source,
        holdout=images.holdout,
        size=images.shape[1:],
        channels=images.shape[0],
        most=most,
        # A run that is scored only at its end must not fail there.
        skip_unreadable=options.skip_unreadable or plan.config.run.eval_steps is None,
        cache_dir=options.cache_dir,
        decoded=images.store,
    )
