"""Evaluation from request to report: load, measure, write, print."""

import re
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..pipelines.ddpm import DDPMPipeline
from ..pipelines.fingerprint import weights_fingerprint
from ..pipelines.loading import check_whole, load_pipeline
from ..sampling.samplers import SAMPLER_NAMES
from ..steps.guidance import check_noise_level, check_prior
from .comparison import write_comparison
from .exams import exams_for, model_exams_for
from .image_sets import SOURCE_SETTINGS, find_images
from .measurements import measure_memorization, measure_nll, measure_quality
from .plots import save_grid
from .prompt_exam import PromptExam
from .quality import QUALITY_METRICS, check_quality, extractor_for, few_images
from .reconstruction import check_kind, measure_reconstruction, usual_metric
from .record import EVALUATION_FILE, metrics_of, summary_table, update_report
from .request import Request
from .samples import Samples, draw_samples, prepared, read_samples, words_for

# Images in the picture of samples, and per contender in the comparison.
_GRID, _ROW = 64, 10
# Flags of what is drawn that are also for embeddings.
_OF_PRIOR = {"--num_inference_steps", "--scheduler", "--guidance_scale", "--prior_candidates"}


class Evaluator:
    """Carries out a request on all processes.

    Raises:
        ValueError: the request cannot be carried out. Checked before anything is measured.
    """

    def __init__(self, request: Request):
        request.check()
        self.request = request
        self.accelerator = Accelerator()
        self.pipeline: DDPMPipeline | None = None
        self.is_autoencoder, kind, draws_pictures = False, "a diffusion model", True
        if request.of_samples:
            request.metrics = request.metrics or ["nll"]
            self.samples = read_samples(request.model, request.num_images)
            of_pipelines = {"nll", "prompt", "clip", "reconstruction", "retrieval"}
            if of_pipelines & set(request.metrics) or request.compare is not None:
                raise ValueError(
                    "--metrics nll, prompt, clip, reconstruction or retrieval and --compare need a pipeline, but "
                    f"{request.model} holds samples"
                )
            shape = self.samples.images.shape[1:]
            recorded = tuple(request.settings.get("recorded", {}).get("image_shape", shape))
            if shape != recorded:
                raise ValueError(
                    f"samples in {request.model} must have the run's (channels, height, width) {recorded}, got {shape}"
                )
        else:
            self.pipeline, self.samples = self._load(request.model), None
            kind, draws_pictures = self.pipeline.kind, self.pipeline.draws_pictures
            self.is_autoencoder = draws_pictures and self.pipeline.scheduler is None
            request.metrics = request.metrics or [usual_metric(kind)]
            draws = draws_pictures and not self.is_autoencoder and set(request.metrics) != {"nll"}
            takes_steps = set() if self.pipeline.scheduler is None else _OF_PRIOR
            if not draws_pictures and (given := sorted({*request.asked_of_samples} - takes_steps)):
                raise ValueError(f"{request.model} is {kind}, which draws no pictures; leave out {', '.join(given)}")
            if request.asked_thresholding and not draws:
                given = ", ".join(f"--{name}" for name in request.asked_thresholding)
                raise ValueError(f"{given} must be left out with --metrics {request.metrics[0]}, which draws nothing")
            shape = self.pipeline.stages[-1].image_shape
            if "nll" in request.metrics and self.pipeline.stages[1:]:
                raise ValueError("--metrics nll is of one network: measure it alone, or add --stage base")
            # What cannot be drawn is refused before images are decoded.
            if draws:
                prepared(self.pipeline, request.scheduler, request.num_inference_steps, request.guidance_scale)
        check_kind(request.metrics, "--metrics", kind, draws_pictures)
        self.contenders = [self._contender(word) for word in request.compare or ()]
        told = {condition.name for condition in self.pipeline.conditions} if self.pipeline is not None else set()
        self.weights = None if self.pipeline is None else weights_fingerprint(self.pipeline)
        self.report = request.folder / EVALUATION_FILE
        # Also fails early if the existing report is unreadable.
        self.is_new = not metrics_of(self.report, self.weights)
        self.reference = find_images(
            shape[1:],
            shape[0],
            run=request.settings or None,
            split=request.split,
            labelled="class_labels" in told,
            captioned=self.pipeline is not None and self.pipeline.is_told_captions,
            most=request.max_images,
            **{name: getattr(request, name, None) for name in SOURCE_SETTINGS},
        )
        if "memorization" in request.metrics and self.reference.training() is None:
            raise ValueError(
                "--metrics memorization needs held-out images and the training images they were held out from, which "
                f"are unknown for the split {self.reference.split!r}"
            )
        self.quality_metrics = [name for name in request.metrics if name in QUALITY_METRICS]
        choice = (request.extractor, self.reference.name, self.accelerator.device, request.cache_dir)
        self.extractor = extractor_for(request.metrics, *choice)
        self._common = {"seed": request.seed, "batch_size": request.batch_size}
        self.count, self._captions, self.exams = self._count_samples(), {}, []
        if self.pipeline is not None and self.count is not None:
            prompts = [condition for condition in self.pipeline.conditions if condition.name == "prompt"]
            self._captions = words_for(prompts, self.reference, self.count)
            judges = {name: getattr(request, name) for name in ("cache_dir", "clip_model")}
            asked, device = self._asked(self.pipeline), self.accelerator.device
            self.exams = exams_for(request.metrics, "--metrics", asked, self.reference, device=device, **judges)
        draws = {name: getattr(request, name) for name in ("seed", "guidance_scale")}
        draws |= {"count": request.num_images, "sampler": request.scheduler}
        draws |= {"num_inference_steps": request.num_inference_steps or 25}
        draws |= {"num_candidates": request.prior_candidates or 1}
        self.model_exams = model_exams_for(request.metrics, "--metrics", self.reference, **draws)

    @property
    def details(self) -> Path:
        """Folder for tables and pictures."""
        return self.request.folder / "evaluation"

    def evaluate(self) -> list[dict[str, Any]]:
        """Measure, update the report and print it. Returns the new entries on the main process."""
        # A report on other weights is replaced, so their pictures and tables are removed too.
        if self.accelerator.is_main_process and self.is_new:
            for pattern in ("samples.png", "nll_*", "closest_*", "comparison*"):
                for file in self.details.glob(pattern):
                    file.unlink()
        entries = self._compare() if self.request.compare is not None else self._measure()
        if not self.accelerator.is_main_process:
            return []
        own = [entry for entry in entries if entry.pop("weights", self.weights) == self.weights]
        self.request.folder.mkdir(parents=True, exist_ok=True)
        everything = update_report(self.report, self.weights, own)
        print(summary_table(everything))
        print(f"report: {self.report}")
        return entries

    def _measure(self) -> list[dict[str, Any]]:
        request, entries = self.request, []
        if "nll" in request.metrics:
            options = {"num_terms": request.nll_timesteps, "clip": request.nll_clip, "cdf": request.nll_cdf}
            options |= {"per_image": request.per_image, "noise_level": request.aug_level, **self._common}
            entries.append(measure_nll(self.pipeline, self.reference, self.details, **options))
        for exam in self.model_exams:
            entries += exam.measure(self.pipeline)
        if self.count is None:
            return entries
        samples = self.samples
        if samples is None:
            samples = self._draw(self.pipeline, request.scheduler, request.num_inference_steps)
        if self.accelerator.is_main_process:
            save_grid([samples.images[:_GRID]], self.details / "samples.png")
        entries += self._judge(samples)
        if "reconstruction" in request.metrics:
            pictures = self._asked(self.pipeline)["image"]
            entries += measure_reconstruction(self.pipeline, samples, pictures, self.reference)
        for exam in self.exams:
            entries += exam.measure(samples)
            if samples.small is not None and isinstance(exam, PromptExam):
                entries += exam.measure(samples.small)
        if "memorization" in request.metrics:
            training = self.reference.training()
            entries += measure_memorization(
                samples, self.reference, training, self.extractor, self.details, batch_size=request.batch_size
            )
        return entries

    def _judge(self, samples: Samples) -> list[dict[str, Any]]:
        if not self.quality_metrics:
            return []
        training = self.reference.training(most=len(samples.images))
        options = {"resamples": self.request.resamples, **self._common}
        return measure_quality(samples, self.reference, training, self.extractor, self.quality_metrics, **options)

    def _compare(self) -> list[dict[str, Any]]:
        """Measure all contenders and write one table and one plot."""
        rows, grids = [], []
        for word, pipeline, sampler, steps in self.contenders:
            self.accelerator.print(f"{word}:")
            weights = weights_fingerprint(pipeline)
            samples = self._draw(pipeline, sampler, steps)
            grids.append(samples.images[:_ROW])
            rows += [{"contender": word, "weights": weights} | entry for entry in self._judge(samples)]
        if self.accelerator.is_main_process:
            print(write_comparison(rows, self.details))
            save_grid(grids, self.details / "comparison_samples.png", [word for word, *_ in self.contenders])
        return [{name: value for name, value in row.items() if name != "contender"} for row in rows]

    def _contender(self, word: str) -> tuple[str, DDPMPipeline, str | None, int | None]:
        """Parse SAMPLER:STEPS, a pipeline, or PIPELINE@SAMPLER:STEPS to (word, pipeline, sampler, steps)."""
        name, _, setting = word.rpartition("@")
        if not name and not re.fullmatch(rf"({'|'.join(SAMPLER_NAMES)}):\d+", word):
            name, setting = word, ""
        pipeline = self.pipeline
        if name:
            pipeline = self._load(name)
            shape, expected = (each.stages[-1].image_shape for each in (pipeline, self.pipeline))
            if shape != expected:
                raise ValueError(
                    f"--compare {word} must have (channels, height, width) {expected} like {self.request.model}, got "
                    f"{shape}"
                )
            if "prompt" in {c.name for c in pipeline.conditions} - {c.name for c in self.pipeline.conditions}:
                raise ValueError(f"--compare {word} is told captions, but {self.request.model} is not")
        sampler, steps = self.request.scheduler, self.request.num_inference_steps
        if setting:
            sampler, _, number = setting.partition(":")
            if sampler not in SAMPLER_NAMES or not number.isdecimal() or int(number) < 1:
                raise ValueError(
                    f"--compare must be SAMPLER:STEPS with a sampler among {', '.join(SAMPLER_NAMES)}, got {setting!r}"
                )
            steps = int(number)
        prepared(pipeline, sampler, steps, self.request.guidance_scale)
        return word, pipeline, sampler, steps

    def _load(self, name: str) -> DDPMPipeline:
        pipeline = load_pipeline(name).to(self.accelerator.device)
        if pipeline.scheduler is not None:
            pipeline.threshold(self.request.asked_thresholding)
        if not self.request.is_of_base:
            check_whole(name)
        level, enlarges = self.request.aug_level, bool(pipeline.stages[1:])
        pipeline = pipeline.alone() if self.request.is_of_base else pipeline
        if self.request.stage == "decoder":
            if not hasattr(pipeline, "looking_at_pictures"):
                raise ValueError(f"--stage decoder is for a model with a prior, got {name}")
            pipeline = pipeline.looking_at_pictures()
        check_prior(self.request.of_prior, pipeline)
        if level is not None and enlarges and not pipeline.stages[1:]:
            raise ValueError(
                f"--aug_level must be left out with --stage base or --metrics nll, which measure the base alone, got "
                f"{level}"
            )
        check_noise_level(level, pipeline.stages[-1].noise_levels, "--aug_level")
        return pipeline

    def _draw(self, pipeline: DDPMPipeline, sampler: str | None, steps: int | None) -> Samples:
        request = self.request
        guidance = {"guidance_scale": request.guidance_scale, **request.finer_guidance, **request.of_prior}
        if request.aug_level is not None:
            guidance["noise_level"] = request.aug_level
        options = {"num_inference_steps": steps, **guidance, **self._common}
        return draw_samples(pipeline, self.count, asked=self._asked(pipeline), sampler=sampler, **options)

    def _asked(self, pipeline: DDPMPipeline) -> dict[str, list[Any]]:
        """What to ask of a pipeline. The captions of the real images have been read, once for all contenders."""
        others = [condition for condition in pipeline.conditions if condition.name != "prompt"]
        captions = self._captions if len(others) < len(pipeline.conditions) else {}
        return captions | words_for(others, self.reference, self.count)

    def _count_samples(self) -> int | None:
        """The number of samples, checked to be enough for the metrics; None if no metric needs samples."""
        request = self.request
        if set(request.metrics) == {"nll"} or self.pipeline is not None and not self.pipeline.draws_pictures:
            return None
        real = self.reference.count
        count = request.num_images or real if self.samples is None else len(self.samples.images)
        if count is None:
            raise ValueError("--num_images must be given, because the length of a streamed data set is unknown")
        fewest = count if real is None else min(count, real)
        count = fewest if self.is_autoencoder else count
        if self.quality_metrics:
            check_quality(self.extractor, self.quality_metrics, fewest, request.resamples)
        if "frechet" in self.quality_metrics and (warning := few_images(self.extractor, fewest)):
            self.accelerator.print(f"warning: {warning}")
        return count
