"""Time to quality: our shipped defaults against the recipe of diffusers' train_unconditional.py, on the same images.

    python benchmarks/time_to_quality.py --size quick|normal|full [--data mnist --dataset_name mnist]

Every arm trains the same network on the same images: ours with the preset's settings and in float32, stock with its
defaults and with its best flags (bf16, learning rate 1e-3, short warm-up, EMA 0.999), in batches of 32. Short pilot
runs in turns measure the speed of each arm; then each arm trains for a budget of seconds, and ours again for an eighth
and half of it. All models are sampled from the same noise with stock's ancestral sampler, and their bound is estimated
on the same held-out images. Finished parts are not repeated.
"""

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import measuring
import numpy as np
from judging import Judge

from ddpm_hf import DDPMPipeline
from ddpm_hf.sampling.generation import generate
from ddpm_hf.sampling.samplers import make_sampler

SCRIPTS, HERE = Path(__file__).parents[1] / "scripts", Path(__file__).parent
STOCK_BATCH, PILOT_STEPS = 32, 100
CALLS = 50  # of Algorithm 2, which favours no schedule and no prediction as a solver of higher order would
SHARES = (0.125, 0.5, 1.0)  # of the budget


@dataclass(frozen=True)
class Extent:
    """Size of the benchmark."""

    pilots: int  # of each arm
    seconds: float  # of a whole training
    seeds: int
    images: int  # behind a distance
    terms: int  # behind a bound, for each of
    held_out: int  # images


EXTENTS = {
    "quick": Extent(1, 20, 1, 250, 10, 100),
    "normal": Extent(1, 60, 1, 500, 20, 200),
    "full": Extent(2, 100, 3, 500, 30, 300),
}
BEST_FLAGS = "--mixed_precision bf16 --learning_rate 1e-3 --lr_warmup_steps 50 --use_ema --ema_max_decay 0.999"
# Goal: the stock arm whose final distance ours must reach, within this share of its budget.
GOALS = {"stock, defaults": 0.125, "stock, best flags": 0.5}
DATA = {
    "digits": ["--train_batch_size", "64"],  # the preset's
    # Of its own: the network of the digits preset would take four times as long at this size.
    "mnist": (
        "--resolution 32 --channels 1 --base_channels 16 --channel_multipliers 1 2 4 4 --blocks_per_level 1 "
        "--attention_resolutions 4 --dropout 0 --learning_rate 2e-3 --lr_warmup_steps 100 --adam_beta2 0.95 "
        "--ema_decay 0.995 --train_batch_size 32"
    ).split(),
}


@dataclass
class Arm:
    """One side of the comparison.

    Attributes:
        name: for the table.
        flags: of scripts/train.py, or of stock_recipe.py.
        shares: shares of the budget to train for.
        rates: images per second of each pilot.
    """

    name: str
    flags: list[str]
    shares: tuple[float, ...]
    rates: list[float] = field(default_factory=list)

    @property
    def folder(self) -> str:
        return measuring.slug(self.name)

    @property
    def is_ours(self) -> bool:
        return self.name.startswith("ours")

    @property
    def batch(self) -> int:
        return int(self.flags[self.flags.index("--train_batch_size") + 1])

    def steps(self, seconds: float) -> int:
        """The number of steps that fit into a time."""
        return max(2, round(seconds * statistics.median(self.rates) / self.batch))


def make_arms(data: list[str]) -> list[Arm]:
    """The arms. Ours gets flags for the images, stock an array."""
    stock = ["--train_batch_size", str(STOCK_BATCH)]
    return [
        Arm("ours", data, SHARES),
        Arm("ours, float32", [*data, "--mixed_precision", "no"], SHARES[-1:]),
        Arm("stock, defaults", stock, SHARES[1:]),
        Arm("stock, best flags", [*stock, *BEST_FLAGS.split()], SHARES[1:]),
    ]


def main() -> None:
    parser = measuring.make_parser(__doc__, "time_to_quality")
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--dataset_name", help="Folder or Hub name of MNIST, for --data mnist.")
    parser.add_argument("--budget", type=float, help="Seconds of a whole training.")
    parser.add_argument("--seeds", type=int, help="Trainings of each kind.")
    options = parser.parse_args()
    options.benchmark += "" if options.data == "digits" else f"_{options.data}"
    facts = measuring.start(options)
    extent = EXTENTS[options.size]
    budget, seeds = options.budget or extent.seconds, options.seeds or extent.seeds
    work = options.output.parent / options.benchmark
    arms = make_arms(DATA[options.data] + (["--dataset_name", options.dataset_name] if options.dataset_name else []))
    judge = pilots(arms, extent.pilots, work)
    rows = []
    for seed in range(seeds):
        for arm in arms if seed % 2 == 0 else arms[::-1]:
            for share, (folder, seconds, step) in zip(arm.shares, train(arm, work, budget, seed), strict=True):
                row = {"arm": arm.name, "share": share, "seed": seed, "seconds": seconds, "images": step * arm.batch}
                rows.append(row | measure(folder, judge, extent, work))
    table, goals = summary(rows, arms), verdicts(rows)
    print(f"\n{extent.images} images each; floor (held-out images) {judge.floor(extent.images):.3g}\n")
    measuring.print_table(table)
    print()
    measuring.print_table(goals)
    measuring.write_report(options.output, rows, vars(options) | {"table": table, "goals": goals}, facts)
    plot(rows, arms, options.output.with_suffix(".png"))
    print(f"\nwritten to {options.output} and {options.output.with_suffix('.png')}")


def pilots(arms: list[Arm], turns: int, work: Path) -> Judge:
    """Measure the images per second of each arm in turns; the first, ours, finds the images for all."""
    judge = None
    for turn in range(turns):
        for arm in arms:
            folder = work / "pilots" / f"{arm.folder}-{turn}"
            ((folder, seconds, _),) = run(arm, folder, PILOT_STEPS, [], 0, work)
            arm.rates.append(PILOT_STEPS * arm.batch / seconds)
            if judge is None:
                judge = Judge(folder)
                batches = [batch["images"].permute(0, 2, 3, 1).numpy() for batch in judge.training.batches(1000)]
                np.save(work / "images.npy", np.concatenate(batches))
    return judge


def train(arm: Arm, work: Path, budget: float, seed: int) -> list[tuple[Path, float, int]]:
    """Train an arm for its shares of a budget; its pipelines as (folder, seconds of training, step)."""
    steps = [arm.steps(share * budget) for share in arm.shares]
    if not arm.is_ours:
        return run(arm, work / f"{arm.folder}-{seed}", steps[-1], steps[:-1], seed, work)
    # A schedule is made for the length of a run: a shorter time is another run.
    return [part for count in steps for part in run(arm, work / f"{arm.folder}-{seed}-{count}", count, [], seed, work)]


def run(
    arm: Arm, folder: Path, steps: int, save_steps: list[int], seed: int, work: Path
) -> list[tuple[Path, float, int]]:
    """Train once, unless already done."""
    shared = ["--seed", seed, "--output_dir", folder, *arm.flags]
    if arm.is_ours:
        command(SCRIPTS / "train.py", *shared, "--max_train_steps", steps, "--preview_steps", "0")
        summary = json.loads((folder / "training_summary.json").read_text())
        return [(folder, summary["training_seconds"], steps)]
    if not (folder / f"step-{steps}").is_dir():
        network = ["--network", work / "pilots" / "ours-0" / "unet", "--train_steps", steps]
        saves = ["--save_steps", *save_steps] if save_steps else []
        command(HERE / "stock_recipe.py", work / "images.npy", *network, *saves, *shared)
    parts = [folder / f"step-{step}" for step in (*save_steps, steps)]
    costs = [json.loads((part / "cost.json").read_text()) for part in parts]
    return [(part, cost["seconds"], cost["step"]) for part, cost in zip(parts, costs, strict=True)]


def measure(folder: Path, judge: Judge, extent: Extent, work: Path) -> dict[str, float]:
    """Fréchet distance to the training images, and bits/dim of held-out images."""
    report = folder / "measured.json"
    if not report.is_file():
        bound = ["--metrics", "nll", "--nll_timesteps", extent.terms, "--max_images", extent.held_out]
        command(SCRIPTS / "evaluate.py", folder, "--run", work / "pilots" / "ours-0", *bound)
        entries = json.loads((folder / "evaluation.json").read_text())["metrics"]
        values = {"frechet": judge.distance(draw(folder, extent.images)), "bits_per_dim": entries[0]["value"]}
        report.write_text(json.dumps(values))
    return json.loads(report.read_text())


def draw(folder: Path, count: int) -> np.ndarray:
    """Images, uint8 (N, C, H, W)."""
    pipeline = DDPMPipeline.from_pretrained(folder)
    pipeline.scheduler = make_sampler("ddpm", pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    batches = generate(pipeline, range(count), seed=0, batch_size=64, num_inference_steps=CALLS)
    return np.concatenate([images for _, images in batches]).transpose(0, 3, 1, 2)


def summary(rows: list[dict], arms: list[Arm]) -> list[dict[str, str]]:
    """One row per arm and share of the budget: median and range over the seeds."""
    lines = []
    for arm in arms:
        for share in arm.shares:
            mine = chosen(rows, arm.name, share)
            line = {"arm": arm.name, "of the budget": f"{share:g}"}
            for name in ("seconds", "images", "frechet", "bits_per_dim"):
                line[name] = median_and_range([row[name] for row in mine])
            lines.append(line)
    return lines


def verdicts(rows: list[dict]) -> list[dict[str, str]]:
    """Whether ours reaches a stock arm's final quality in a share of the time, and whether it ends better."""
    lines = []
    for arm, goal in GOALS.items():
        for share in (goal, 1.0):
            pairs = list(zip(chosen(rows, "ours", share), chosen(rows, arm, 1.0), strict=True))
            times = median_and_range([ours["seconds"] / stock["seconds"] for ours, stock in pairs])
            for name in ("frechet", "bits_per_dim"):
                better = [ours[name] <= stock[name] for ours, stock in pairs]
                lines.append(
                    {
                        "what": f"{name} of {arm}",
                        "in": f"{share:g} of its time",
                        "time needed": times,
                        "seeds at least as good": f"{sum(better)} of {len(better)}",
                        "goal": "met" if all(better) else "missed",
                    }
                )
    return lines


def chosen(rows: list[dict], arm: str, share: float) -> list[dict]:
    """The results of an arm for a share of the budget, in the order of seeds."""
    found = [row for row in rows if (row["arm"], row["share"]) == (arm, share)]
    return sorted(found, key=lambda row: row["seed"])


def plot(rows: list[dict], arms: list[Arm], file: Path) -> None:
    """Plot distance and bits/dim against seconds and images; a line through the medians, a dot per seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    panels = figure.subplots(2, 2, sharey="row", sharex="col")
    quantities = {"frechet": "Fréchet distance", "bits_per_dim": "bits/dim, held-out"}
    costs = {"seconds": "seconds of training", "images": "images seen"}
    for (name, quantity), line in zip(quantities.items(), panels, strict=True):
        line[0].set_ylabel(quantity)
        for cost, panel in zip(costs, line, strict=True):
            panel.grid(alpha=0.3)
            for number, arm in enumerate(arms):
                parts = [chosen(rows, arm.name, share) for share in arm.shares]
                medians = [[statistics.median(row[key] for row in part) for part in parts] for key in (cost, name)]
                panel.plot(*medians, color=f"C{number}", label=arm.name)
                for row in sum(parts, []):
                    panel.plot(row[cost], row[name], ".", color=f"C{number}")
    for panel, unit in zip(panels[1], costs.values(), strict=True):
        panel.set_xlabel(unit)
    panels[0, 0].set_yscale("log")
    panels[0, 0].legend()
    figure.savefig(file, dpi=100)


def median_and_range(values: list[float]) -> str:
    """The median and range as text, or one number if all are equal."""
    median, low, high = (
        f"{value:,.0f}" if value >= 1e4 else f"{value:.4g}"
        for value in (statistics.median(values), min(values), max(values))
    )
    return median if low == high else f"{median} [{low}..{high}]"


def command(script: Path, *arguments: object) -> None:
    """Run a script of this repository and show its output."""
    subprocess.run([sys.executable, str(script), *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
