"""Sampling at quality: images a second at the Fréchet distance of the full chain, and the best distance at 20 calls.

    python benchmarks/sampling.py --size quick|normal|full [--pipeline FOLDER]

Without --pipeline the demo's model is trained first. Stock `DDPMPipeline` draws with its default, all 1,000 steps, and
at 20 calls with every parametric grid that its solvers offer; ours draws as `scripts/sample.py --fast` does. Distances
are in the features of the digits' classifier, against the training images; the floor is that of held-out images. The
same noise starts every chain.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import measuring
import numpy as np
import torch

from ddpm_hf import DDPMPipeline, FastSampling
from ddpm_hf.evaluation.features import Extractor, load_extractor
from ddpm_hf.evaluation.image_sets import ImageSet, find_images
from ddpm_hf.evaluation.metrics import GaussianStatistics, frechet_distance
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.seeds import image_generators

COUNT = {"quick": 100, "normal": 500, "full": 5000}
BATCH, CALLS = 250, 20
SOLVER, SINGLE = diffusers.DPMSolverMultistepScheduler, diffusers.DPMSolverSinglestepScheduler
SDE = {"algorithm_type": "sde-dpmsolver++"}
# What diffusers offers for few calls: solver, order and the grids that a config can name.
GRIDS = {
    "DDPM": (diffusers.DDPMScheduler, {}),
    "DDPM, trailing": (diffusers.DDPMScheduler, {"timestep_spacing": "trailing"}),
    "DDIM": (diffusers.DDIMScheduler, {}),
    "DPM++ 2M": (SOLVER, {}),
    "DPM++ 2M, trailing": (SOLVER, {"timestep_spacing": "trailing"}),
    "DPM++ 2M, karras": (SOLVER, {"use_karras_sigmas": True}),
    "DPM++ 2M, lu": (SOLVER, {"use_lu_lambdas": True}),
    "DPM++ 3M": (SOLVER, {"solver_order": 3}),
    "DPM++ single": (SINGLE, {}),
    "SDE-DPM++ 2M": (SOLVER, SDE),
    "SDE-DPM++ 2M, trailing": (SOLVER, SDE | {"timestep_spacing": "trailing"}),
    "SDE-DPM++ 2M, karras": (SOLVER, SDE | {"use_karras_sigmas": True}),
    "SDE-DPM++ 2M, lu": (SOLVER, SDE | {"use_lu_lambdas": True}),
    "UniPC": (diffusers.UniPCMultistepScheduler, {}),
    "DEIS": (diffusers.DEISMultistepScheduler, {}),
}
QUICK = ("DPM++ 2M", "SDE-DPM++ 2M")

Draw = Callable[[list[torch.Generator]], np.ndarray]


def main() -> None:
    parser = measuring.make_parser(__doc__, "sampling")
    parser.add_argument("--pipeline", type=Path, help="A folder of train.py on the embedded digits.")
    options = parser.parse_args()
    facts = measuring.start(options)
    folder = options.pipeline or train(options.output.parent / "sampling" / "model")
    count = COUNT[options.size]
    judge = Judge(folder)
    rows = []
    for name, draw in contenders(folder, options.size).items():
        try:
            rows.append({"sampler": name, **judge.measure(draw, count)})
        except (IndexError, AssertionError, ValueError) as problem:
            # Some grids of diffusers fail on some schedules; that is a result too.
            rows.append({"sampler": name, "frechet": None, "images_per_second": None, "failed": repr(problem)})
        print(f"{name}: {rows[-1]['frechet']}", flush=True)
    whole = rows[0]
    for row in rows:
        if row["frechet"] is not None:
            row["times_faster"] = row["images_per_second"] / whole["images_per_second"]
            row["distance_of_full"] = row["frechet"] / whole["frechet"]
    print(f"\n{count} images each; floor (held-out images) {judge.floor(count):.3g}\n")
    measuring.print_table(rows)
    measuring.write_report(options.output, rows, vars(options) | {"floor": judge.floor(count), "n": count}, facts)
    print(f"\nwritten to {options.output}")


def train(folder: Path) -> Path:
    """The demo's model, unless it was trained before."""
    script = Path(__file__).parents[1] / "scripts" / "train.py"
    subprocess.run([sys.executable, script, "--output_dir", folder, "--preview_steps", "0"], check=True)
    return folder


def contenders(folder: Path, size: str) -> dict[str, Draw]:
    """Name -> what draws images for a list of generators; the first is the full chain."""
    stock = diffusers.DDPMPipeline.from_pretrained(folder)
    ours = DDPMPipeline.from_pretrained(folder)
    for pipeline in (stock, ours):
        pipeline.set_progress_bar_config(disable=True)
    trained = stock.scheduler.config
    draws = {"stock, all 1,000": stock_draw(stock, stock.scheduler, trained.num_train_timesteps)}
    for name, (solver, settings) in GRIDS.items():
        if size != "quick" or name in QUICK:
            scheduler = solver.from_config({**trained, **settings})
            draws[f"stock, {name}, {CALLS}"] = stock_draw(stock, scheduler, CALLS)
    fast = FastSampling.read(str(folder))
    chain = fast.apply(ours)
    draws[f"ours, --fast, {len(fast.timesteps)}"] = lambda generators: (
        ours(len(generators), generators, output_type="np", **chain).images
    )
    return draws


def stock_draw(pipeline: diffusers.DDPMPipeline, scheduler: diffusers.SchedulerMixin, steps: int) -> Draw:
    """Stock's own call with a scheduler in place; solvers that take no generator draw no noise either."""

    def draw(generators: list[torch.Generator]) -> np.ndarray:
        pipeline.scheduler = scheduler
        step = scheduler.step
        if "generator" not in step.__code__.co_varnames:
            scheduler.step = lambda *arguments, generator, **more: step(*arguments, **more)
        try:
            return pipeline(len(generators), generators, steps, output_type="np").images
        finally:
            vars(scheduler).pop("step", None)

    return draw


class Judge:
    """Fréchet distances to the training images of a run of ours."""

    def __init__(self, folder: Path):
        model = ModelFolder.read(folder)
        self.held_out = find_images(model.size, model.channels, run=model.settings)
        self.extractor = load_extractor("digits")
        self.reference = statistics_of(self.extractor, pixels(self.held_out.training()))

    def floor(self, count: int) -> float:
        """The distance of held-out images, as many as there are up to `count`."""
        return self.distance(pixels(self.held_out)[:count])

    def distance(self, images: np.ndarray) -> float:
        return frechet_distance(statistics_of(self.extractor, images), self.reference)

    def measure(self, draw: Draw, count: int) -> dict[str, float]:
        """Distance and speed of `count` images; the speed is the median over the batches."""
        images, rates = [], []
        for start in range(0, count, BATCH):
            generators = image_generators(0, list(range(start, min(start + BATCH, count))))
            began = time.perf_counter()
            images.append(draw(generators))
            rates.append(len(generators) / (time.perf_counter() - began))
        drawn = (np.concatenate(images).transpose(0, 3, 1, 2) * 255).round().astype(np.uint8)
        return {"frechet": self.distance(drawn), "images_per_second": statistics.median(rates)}


def pixels(images: ImageSet) -> np.ndarray:
    return np.concatenate([batch["images"].numpy() for batch in images.batches(1000)])


def statistics_of(extractor: Extractor, images: np.ndarray) -> GaussianStatistics:
    found = GaussianStatistics(extractor.dimension)
    for start in range(0, len(images), 1000):
        found.add(extractor(torch.from_numpy(images[start : start + 1000])))
    return found


if __name__ == "__main__":
    main()
