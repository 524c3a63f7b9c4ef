"""Sampling at quality: the Fréchet distance of few network calls and of the full chain, and how much faster they are.

    python benchmarks/sampling.py --size quick|normal|full [--pipeline FOLDER] [--calls 20]

Without --pipeline the demo's model is trained first. Stock `DDPMPipeline` samples with its default, all 1,000 steps,
and in few calls with every grid of timesteps that diffusers' solvers offer. Distances are in the features of the
digits classifier, to the training images; the floor is the distance of held-out images. All chains start from the same
noise. Drawn images are kept, so an interrupted benchmark resumes. Speed is measured separately: stock's full chain and
`scripts/sample.py --fast`, in turns.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import diffusers
import measuring
import numpy as np
import torch
from judging import Judge

from ddpm_hf import DDPMPipeline
from ddpm_hf.pipelines.fingerprint import weights_fingerprint
from ddpm_hf.sampling.samplers import FAST_CALLS, make_fast_sampler
from ddpm_hf.seeds import image_generators

COUNT = {"quick": 100, "normal": 500, "full": 5000}
TURNS = {"quick": 1, "normal": 2, "full": 5}
BATCH = 50
FULL = "stock, all 1,000"
SOLVER, SINGLE = diffusers.DPMSolverMultistepScheduler, diffusers.DPMSolverSinglestepScheduler
SDE = {"algorithm_type": "sde-dpmsolver++"}
# What diffusers offers for few calls: solver, order and the grids that a config can name, by default the pipeline's.
GRIDS = {
    "DDPM": (diffusers.DDPMScheduler, {}),
    "DDPM, trailing": (diffusers.DDPMScheduler, {"timestep_spacing": "trailing"}),
    "DDIM": (diffusers.DDIMScheduler, {}),
    "DPM++ 2M": (SOLVER, {}),
    "DPM++ 2M, leading": (SOLVER, {"timestep_spacing": "leading"}),
    "DPM++ 2M, trailing": (SOLVER, {"timestep_spacing": "trailing"}),
    "DPM++ 2M, karras": (SOLVER, {"use_karras_sigmas": True}),
    "DPM++ 2M, lu": (SOLVER, {"use_lu_lambdas": True}),
    "DPM++ 3M": (SOLVER, {"solver_order": 3}),
    "DPM++ single": (SINGLE, {}),
    "SDE-DPM++ 2M": (SOLVER, SDE),
    "SDE-DPM++ 2M, leading": (SOLVER, SDE | {"timestep_spacing": "leading"}),
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
    parser.add_argument("--pipeline", type=Path, help="An output folder of train.py on the bundled digits.")
    parser.add_argument("--calls", type=int, default=FAST_CALLS, help="Network calls of the short chains.")
    options = parser.parse_args()
    facts = measuring.start(options)
    folder = options.pipeline or train(options.output.parent / "sampling" / "model")
    count = COUNT[options.size]
    judge = Judge(folder)
    draws = contenders(folder, options.size, options.calls)
    weights = weights_fingerprint(diffusers.UNet2DModel.from_pretrained(folder / "unet"))
    rows = []
    # The full chain takes most of the time, so it runs last.
    for name, draw in reversed(draws.items()):
        images = options.output.parent / "sampling" / weights / measuring.slug(name)
        try:
            distance, error = judge.distance_and_error(draw_images(draw, count, images))
            rows.insert(0, {"sampler": name, "frechet": distance, "±": error})
        except (IndexError, AssertionError, ValueError) as problem:
            # Some grids of diffusers fail on some schedules, which is a result too.
            rows.insert(0, {"sampler": name, "failed": repr(problem)})
        print(f"{name}: {rows[0].get('frechet', 'diffusers fails')}", flush=True)
    for row in rows:
        row["of the full chain's"] = row["frechet"] / rows[0]["frechet"] if "frechet" in row else None
    speed = compare_speed(draws[FULL], fast_draw(folder), TURNS[options.size])
    floor = judge.floor(count)
    print(f"\n{count} images each; floor (held-out images) {floor:.3g}\n")
    measuring.print_table(rows)
    print()
    measuring.print_table([speed.row()])
    settings = vars(options) | {"floor": floor, "n": count, "speed": asdict(speed)}
    measuring.write_report(options.output, rows, settings, facts)
    print(f"\nwritten to {options.output}")


def compare_speed(full: Draw, fast: Draw, turns: int) -> measuring.Comparison:
    """Seconds of a batch by stock's full chain and by ours, in turns."""
    generators = image_generators(0, list(range(BATCH)))
    return measuring.paired(
        f"{BATCH} images", lambda: full(generators), lambda: fast(generators), turns, calls=1, goal=25
    )


def draw_images(draw: Draw, count: int, folder: Path) -> np.ndarray:
    """`count` images, uint8 (N, C, H, W); batches already in the folder are not drawn again."""
    folder.mkdir(parents=True, exist_ok=True)
    batches = []
    for start in range(0, count, BATCH):
        numbers = list(range(start, min(start + BATCH, count)))
        file = folder / f"{start:05}-{len(numbers)}.npy"
        if not file.is_file():
            drawn = draw(image_generators(0, numbers)).transpose(0, 3, 1, 2)
            np.save(file.with_suffix(".part.npy"), (drawn * 255).round().astype(np.uint8))
            file.with_suffix(".part.npy").rename(file)
        batches.append(np.load(file))
    return np.concatenate(batches)


def train(folder: Path) -> Path:
    """The demo's model, unless it was trained before."""
    script = Path(__file__).parents[1] / "scripts" / "train.py"
    subprocess.run([sys.executable, script, "--output_dir", folder, "--preview_steps", "0"], check=True)
    return folder


def contenders(folder: Path, size: str, calls: int) -> dict[str, Draw]:
    """Name -> what draws images for a list of generators; the first is the full chain."""
    stock = diffusers.DDPMPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    trained = stock.scheduler.config
    draws = {FULL: stock_draw(stock, stock.scheduler, trained.num_train_timesteps)}
    for name, (solver, settings) in GRIDS.items():
        if size != "quick" or name in QUICK:
            scheduler = solver.from_config({**trained, **settings})
            draws[f"stock, {name}, {calls}"] = stock_draw(stock, scheduler, calls)
    return draws


def fast_draw(folder: Path) -> Draw:
    """Ours, as `scripts/sample.py --fast` draws."""
    ours = DDPMPipeline.from_pretrained(folder)
    ours.set_progress_bar_config(disable=True)
    ours.scheduler, steps = make_fast_sampler(ours.scheduler)
    return lambda generators: ours(len(generators), generators, steps, "np").images


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


if __name__ == "__main__":
    main()
