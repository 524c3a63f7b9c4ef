"""Time to quality: our shipped defaults against the recipe of diffusers' train_unconditional.py, on the same images.

    python benchmarks/time_to_quality.py --size quick|normal|full [--data mnist]

Three arms train the same network in the same batches: ours, stock with its defaults, and stock with its best flags
(bf16, learning rate 1e-3, short warm-up, EMA 0.999). Short runs in turns tell how fast each arm is; then stock trains
for a budget of seconds, and ours for an eighth, a half and the whole of it. All models are measured by the same
samples and the same bound on the same held-out images. A part that is finished is not done again.
"""

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import measuring
import numpy as np

from ddpm_hf.evaluation.image_sets import find_images
from ddpm_hf.hub.folder import ModelFolder

SCRIPTS, HERE = Path(__file__).parents[1] / "scripts", Path(__file__).parent
BATCH, PILOT_STEPS = 32, 60
SHARES = (0.125, 0.5, 1.0)  # of the budget; ours trains anew for each, stock is saved on the way
# Seconds of each stock run, seeds, images behind a distance, sampled terms of the bound.
EXTENT = {"quick": (20, 1, 250, 10), "normal": (160, 1, 1000, 50), "full": (300, 3, 5000, 50)}
STOCK = {
    "stock, defaults": [],
    "stock, best flags": "--mixed_precision bf16 --learning_rate 1e-3 --lr_warmup_steps 50 --use_ema "
    "--ema_max_decay 0.999".split(),
}
DATA = {"digits": [], "mnist": ["--preset", "digits", "--resolution", "32", "--attention_resolutions", "8"]}


@dataclass
class Arm:
    """One way to train.

    Attributes:
        name: for the table.
        flags: of scripts/train.py, or of stock_recipe.py.
        rates: images a second of each pilot.
    """

    name: str
    flags: list[str]
    rates: list[float] = field(default_factory=list)

    @property
    def folder(self) -> str:
        return self.name.replace(", ", "-").replace(" ", "-")

    @property
    def is_ours(self) -> bool:
        return self.name == "ours"

    def steps(self, seconds: float) -> int:
        """How many steps of BATCH images fit into a time."""
        return max(2, round(seconds * statistics.median(self.rates) / BATCH))


def main() -> None:
    parser = measuring.make_parser(__doc__, "time_to_quality")
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--dataset_name", help="Folder or Hub name of MNIST, for --data mnist.")
    parser.add_argument("--budget", type=float, help="Seconds of a stock run.")
    parser.add_argument("--seeds", type=int, help="Trainings of each kind.")
    options = parser.parse_args()
    options.benchmark += "" if options.data == "digits" else f"_{options.data}"
    facts = measuring.start(options)
    budget, seeds, samples, terms = EXTENT[options.size]
    budget, seeds = options.budget or budget, options.seeds or seeds
    work = options.output.parent / options.benchmark
    data = DATA[options.data] + (["--dataset_name", options.dataset_name] if options.dataset_name else [])
    arms = [Arm("ours", data), *(Arm(name, flags) for name, flags in STOCK.items())]
    pilots(arms, work)
    rows = []
    for seed in range(seeds):
        for arm in arms if seed % 2 == 0 else arms[::-1]:
            for folder, seconds, step in train(arm, work, budget, seed):
                rows.append(measure(arm, folder, seconds, step, seed, work, samples, terms))
    table = summary(rows, arms)
    measuring.print_table(table)
    measuring.write_report(options.output, rows, vars(options) | {"table": table}, facts)
    print(f"\nwritten to {options.output}")


def pilots(arms: list[Arm], work: Path) -> None:
    """Find out how many images a second each arm trains on, in turns; and leave the images where stock finds them."""
    for turn in range(2):
        for arm in arms:
            folder = work / "pilots" / f"{arm.folder}-{turn}"
            ((folder, seconds, _),) = run(arm, folder, PILOT_STEPS, [], 0, work)
            arm.rates.append(PILOT_STEPS * BATCH / seconds)
            if arm.is_ours and not (work / "images.npy").is_file():
                save_images(folder, work / "images.npy")


def save_images(run_folder: Path, file: Path) -> None:
    """The training images of a run of ours, uint8 (N, H, W, C)."""
    pipeline = ModelFolder.read(run_folder)
    size = pipeline.unet["sample_size"]
    held_out = find_images((size, size), pipeline.unet["in_channels"], run=pipeline.settings)
    batches = [batch["images"].permute(0, 2, 3, 1).numpy() for batch in held_out.training().batches(1000)]
    np.save(file, np.concatenate(batches))


def train(arm: Arm, work: Path, budget: float, seed: int) -> list[tuple[Path, float, int]]:
    """The pipelines that an arm makes of a budget: (folder, seconds of training, step)."""
    steps = [arm.steps(share * budget) for share in SHARES]
    if not arm.is_ours:
        return run(arm, work / f"{arm.folder}-{seed}", steps[-1], steps[:-1], seed, work)
    # A schedule is made for the length of a run: a shorter time is another run.
    return [part for count in steps for part in run(arm, work / f"ours-{seed}-{count}", count, [], seed, work)]


def run(
    arm: Arm, folder: Path, steps: int, save_steps: list[int], seed: int, work: Path
) -> list[tuple[Path, float, int]]:
    """One training, unless it was done before."""
    shared = ["--train_batch_size", BATCH, "--seed", seed, "--output_dir", folder, *arm.flags]
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


def measure(
    arm: Arm, folder: Path, seconds: float, step: int, seed: int, work: Path, samples: int, terms: int
) -> dict[str, object]:
    """Fréchet distance in the digits' features and bits/dim, by scripts/evaluate.py with the same flags for all."""
    report = folder / "evaluation.json"
    if not report.is_file():
        real = ["--run", work / "pilots" / "ours-0", "--extractor", "digits"]
        sampling = ["--num_images", samples, "--scheduler", "dpm", "--num_inference_steps", 20]
        metrics = ["--metrics", "frechet", "nll", "--nll_timesteps", terms]
        command(SCRIPTS / "evaluate.py", folder, *real, *sampling, *metrics)
    values = {entry["name"]: entry for entry in json.loads(report.read_text())["metrics"]}
    distance = next(entry for name, entry in values.items() if name.startswith("frechet"))
    return {
        **{"arm": arm.name, "seed": seed, "seconds": seconds, "images": step * BATCH},
        **{"frechet": distance["value"], "floor": distance["floor"]},
        "bits_per_dim": values["bits_per_dim"]["value"],
    }


def summary(rows: list[dict], arms: list[Arm]) -> list[dict[str, str]]:
    """A line for each arm and share of the budget: median and range over the seeds."""
    lines = []
    for arm in arms:
        for index, share in enumerate(SHARES):
            seeds = sorted({row["seed"] for row in rows})
            mine = [[row for row in rows if row["arm"] == arm.name and row["seed"] == seed][index] for seed in seeds]
            line = {"arm": arm.name, "of the budget": f"{share:g}"}
            for name in ("seconds", "images", "frechet", "bits_per_dim"):
                values = [row[name] for row in mine]
                spread = f" [{min(values):.4g}..{max(values):.4g}]" if len(values) > 1 else ""
                line[name] = f"{statistics.median(values):.4g}{spread}"
            lines.append(line | {"floor": f"{mine[0]['floor']:.4g}"})
    return lines


def command(script: Path, *arguments: object) -> None:
    """Run a script of this repository; its own messages pass through."""
    subprocess.run([sys.executable, str(script), *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
