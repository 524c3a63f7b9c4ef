"""Scores while a model learns: how good its averaged weights are by held-out images, and which pipeline was best."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm.auto import tqdm

from ..data.examples import TrainingData
from ..evaluation.features import Extractor, load_extractor
from ..evaluation.image_sets import HELD_OUT, ImageSet
from ..evaluation.measurements import measure_nll, measure_quality
from ..evaluation.quality import HIGHER_IS_BETTER, QUALITY_METRICS, check_quality, figure_names
from ..evaluation.samples import draw_samples
from ..hub.folder import BEST_FOLDER, CONFIG_FILE, SCORES_CURVE, SCORES_FILE
from ..pipelines.ddpm import DDPMPipeline
from .output import OutputFolder, StepTable, write_text
from .plan import Plan

BEST_RECORD = "best.json"
# Figures that agree in these can be compared.
_CONDITIONS = (
    "name",
    "dataset",
    "split",
    "n",
    "reference_n",
    "seed",
    "sampler",
    "steps",
    "terms_per_image",
    "extractor",
)


class Scorer:
    """Measures a pipeline on all processes, every time in the same way.

    Figures go to `scores.csv`, `scores.png` and the trackers, the pipeline with the best of one of them to `best/`.

    Args:
        plan: of the run.
        accelerator: its processes.

    Raises:
        ValueError: for figures that these data, this extractor or this many images do not give.
    """

    def __init__(self, plan: Plan, accelerator: Accelerator):
        run, self.plan, self.accelerator = plan.config.run, plan, accelerator
        self.images = _held_out(plan, run.eval_num_images)
        count = self.images.count  # decodes a split now, since there is little time at the end of the run
        self.metrics = [name for name in run.eval_metrics if name in QUALITY_METRICS and run.eval_steps is not None]
        self.extractor = self._load_extractor() if self.metrics else None
        names = ["bits_per_dim"] * ("nll" in run.eval_metrics)
        if self.metrics:
            fewest = min(run.eval_num_images, count or run.eval_num_images)
            check_quality(self.extractor, self.metrics, fewest, resamples=0)
            names += figure_names(self.extractor, self.metrics, fewest)
        if run.save_best_by not in (None, *names):
            raise ValueError(
                f"--save_best_by is {run.save_best_by!r}; --eval_metrics {' '.join(run.eval_metrics)} gives "
                f"{', '.join(names)}: choose one"
            )
        self.names = names
        self.table: StepTable | None = None
        self.best: dict[str, Any] | None = None
        self.newest: tuple[int, list[dict[str, Any]]] | None = None  # a step, and what was measured after it

    def _load_extractor(self) -> Extractor:
        run, dataset = self.plan.config.run, self.images.name
        name = run.eval_extractor or ("digits" if dataset == "digits" else None)
        if name is None:
            raise ValueError(
                f"--eval_extractor must be given with --eval_metrics {' '.join(run.eval_metrics)}: inception for FID "
                "(pip install torch-fidelity), or another that scripts/evaluate.py names; nll needs none"
            )
        return load_extractor(name, self.accelerator.device, self.plan.config.data.cache_dir)

    def resume(self, output: OutputFolder, step: int) -> None:
        """Go on after this step, knowing what was best so far."""
        self.output = output
        if not self.accelerator.is_main_process:
            return
        floors = (_floor_of(name) for name in self.names if name != "bits_per_dim")
        self.table = StepTable(output / SCORES_FILE, step, ["step", *self.names, *floors])
        place, beside = output / BEST_FOLDER, output / f"{BEST_FOLDER}.partial"
        if not place.is_dir() and (beside / BEST_RECORD).is_file():  # killed between the two strokes of `_keep`
            beside.rename(place)
        shutil.rmtree(beside, ignore_errors=True)
        if (place / BEST_RECORD).is_file():
            self.best = json.loads((place / BEST_RECORD).read_text(encoding="utf-8"))

    def is_due(self, step: int) -> bool:
        """Whether there is a score after this step: every `--eval_steps` and at the end, if that is given at all."""
        every = self.plan.config.run.eval_steps
        return every is not None and (step % every == 0 or step == self.plan.steps)

    def figures_after(self, step: int) -> list[dict[str, Any]]:
        """What this session has measured after this step, as entries of a report."""
        return self.newest[1] if self.newest is not None and self.newest[0] == step else []

    def score(self, pipeline: DDPMPipeline, step: int) -> None:
        """Measure the pipeline, tell what was found, and keep it if it is the best; called by every process."""
        was_training = pipeline.unet.training
        try:
            figures = self._measure(pipeline)
        finally:
            pipeline.unet.train(was_training)
        self.newest = step, figures
        row = {figure["name"]: figure["value"] for figure in figures}
        row |= {_floor_of(figure["name"]): figure["floor"] for figure in figures if figure["floor"] is not None}
        self.accelerator.log({f"eval/{name}": value for name, value in row.items()}, step=step)
        if not self.accelerator.is_main_process:
            return
        with self.output.sparing_the_run(SCORES_FILE):
            self.table.append(step=step, **row)
            self._plot(self.output / SCORES_CURVE)
        told = ", ".join(f"{figure['name']} {figure['value']:.4g}" for figure in figures)
        tqdm.write(f"step {step}: {told}{self._keep_if_best(pipeline, figures, step)}")

    def _measure(self, pipeline: DDPMPipeline) -> list[dict[str, Any]]:
        run, figures = self.plan.config.run, []
        calls = min(run.eval_inference_steps, self.plan.scheduler.config.num_train_timesteps)
        if "nll" in run.eval_metrics:
            figures.append(measure_nll(pipeline, self.images, None, num_terms=calls, **self._common))
        if self.metrics:
            with self.accelerator.autocast():
                samples = draw_samples(pipeline, run.eval_num_images, num_inference_steps=calls, **self._common)
            training = self.images.training(most=run.eval_num_images)
            arguments = (samples, self.images, training, self.extractor, self.metrics)
            figures += measure_quality(*arguments, resamples=0, **self._common)
        return figures

    @property
    def _common(self) -> dict[str, int]:
        options = self.plan.config.optimization
        return {"seed": options.seed, "batch_size": options.train_batch_size}

    def bits_per_dim(
        self, pipeline: DDPMPipeline, count: int, num_terms: int, go_on: Callable[[], bool]
    ) -> dict[str, Any]:
        """Bits/dim of the first `count` held-out images, as an entry of a report.

        Unlike `score` it decodes no more images than it needs; `num_terms` and `go_on` as for `measure_nll`.
        """
        data = self.plan.images.data
        images = replace(self.images, most=count, decoded=data.store if isinstance(data, TrainingData) else None)
        return measure_nll(pipeline, images, None, num_terms=num_terms, go_on=go_on, **self._common)

    # The best pipeline

    def _keep_if_best(self, pipeline: DDPMPipeline, figures: list[dict[str, Any]], step: int) -> str:
        """What is to be said of it."""
        wanted = self.plan.config.run.save_best_by
        if wanted is None:
            return ""
        (figure,) = (figure for figure in figures if figure["name"] == wanted)
        best = self.best
        if best is not None and any(best.get(name) != figure.get(name) for name in _CONDITIONS):
            best = None  # it was measured in another way
        sign = 1 if wanted in HIGHER_IS_BETTER else -1
        if best is not None and not sign * figure["value"] > sign * best["value"]:
            return f"; the best {wanted} is {best['value']:.4g} of step {best['step']}"
        record = {"step": step, **figure}
        with self.output.sparing_the_run(BEST_FOLDER):
            self._keep(pipeline, record)
            self.best = record
        return f"; kept in {BEST_FOLDER}/"

    def _keep(self, pipeline: DDPMPipeline, record: dict[str, Any]) -> None:
        """Written beside and then given the name: a killed process leaves the old pipeline or the new one."""
        place, beside = self.output / BEST_FOLDER, self.output / f"{BEST_FOLDER}.partial"
        shutil.rmtree(beside, ignore_errors=True)
        pipeline.save_pretrained(beside)
        shutil.copy(self.output / CONFIG_FILE, beside)  # so that evaluate.py finds the data
        write_text(beside / BEST_RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        shutil.rmtree(place, ignore_errors=True)
        beside.rename(place)

    def _plot(self, file: Path) -> None:
        """A panel for each figure, its floor as a dashed line."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5 * len(self.names), 4), layout="constrained")
        for panel, name in enumerate(self.names):
            axes = figure.add_subplot(1, len(self.names), panel + 1, xlabel="optimizer step", ylabel=name)
            for column, style in ((name, "o-"), (_floor_of(name), "k--")):
                if points := [(row["step"], row[column]) for row in self.table.rows if column in row]:
                    axes.plot(*zip(*points, strict=True), style, markersize=3, linewidth=1, label=column)
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")
        figure.savefig(file, dpi=120)


def _floor_of(name: str) -> str:
    return f"{name}_floor"


def _held_out(plan: Plan, most: int) -> ImageSet:
    images = plan.images
    if not images.holdout.holds_out:
        raise ValueError("--eval_steps needs images to compare with, and --holdout 0 holds none out of training")
    channels, *size = images.shape
    return ImageSet(
        data=images.source,
        holdout=images.holdout,
        held_out=True,
        split=images.holdout.split or HELD_OUT,
        size=tuple(size),
        channels=channels,
        most=most,
        skip_unreadable=plan.config.data.skip_unreadable,
        cache_dir=plan.config.data.cache_dir,
    )
