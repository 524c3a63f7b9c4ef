"""How well captions are followed after so many minutes of training, and what guidance does to that.

    python benchmarks/prompt_following.py --size quick|normal|full [--minutes 5 15 60] [any flags of train.py]
    python benchmarks/prompt_following.py --models pixels latents

GLIDE on captioned digits, with the settings of its preset, and with --models latent diffusion too, then both at 32x32
unless --resolution says otherwise. A short pilot
measures the speed; then a run of its own is trained for each time, because the learning rate falls over the length of
a run. All runs on latents share an autoencoder, whose time is told beside theirs. A picture is drawn for each held-out
caption, and a program reads it: evaluate.py says how. The longest run is drawn at several guidance scales. The same
command goes on where it was interrupted, also in the middle of a training.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import measuring

from ddpm_hf.evaluation.record import read_report

SCRIPTS = Path(__file__).parents[1] / "scripts"
PILOT_STEPS, GUIDANCE = 100, 3.0
GOAL, GOAL_MINUTES = 0.95, 8  # of unseen combinations, after at most this time
SAMPLER = "--scheduler dpm-sde --num_inference_steps 20".split()
GROUPS = ("unseen", "seen")  # combinations of digit and colour
MODELS = {"pixels": "--system glide --stage base", "latents": "--system stable-diffusion --stage unet"}


@dataclass(frozen=True)
class Extent:
    """Size of the benchmark: times of training, pictures of each model, guidance scales, runs for each time, and steps
    of an autoencoder, by default those of its preset."""

    minutes: tuple[float, ...]
    images: int
    scales: tuple[float, ...]
    seeds: int = 1
    autoencoder_steps: int | None = None


SCALES = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
EXTENTS = {
    "quick": Extent((0.5, 1), 200, (1.0, 3.0), autoencoder_steps=200),
    "normal": Extent((5, 15, 60), 2000, SCALES),  # all held-out captions, of which half are of unseen combinations
    "full": Extent((5, 15, 60), 2000, SCALES, seeds=3),
}


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.make_parser(__doc__, "prompt_following")
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=["pixels"], help="What is diffused.")
    parser.add_argument("--minutes", type=float, nargs="+", help="Times of training.")
    parser.add_argument("--images", type=int, help="Pictures to judge of each model and scale.")
    options, flags = parser.parse_known_args(arguments)
    if len(options.models) > 1:
        flags = ["--resolution", "32", *flags]  # the preset of pixels is for 16x16
    facts = measuring.start(options)
    extent = EXTENTS[options.size]
    times, images = sorted(options.minutes or extent.minutes), options.images or extent.images
    work, rows = options.output.parent / options.benchmark, []
    for model, seed in product(options.models, range(extent.seeds)):
        fixed, before = [*MODELS[model].split(), "--seed", seed], None
        if model == "latents":
            autoencoder = work / f"autoencoder-{seed}" / "autoencoder"
            before = train_autoencoder(autoencoder, extent.autoencoder_steps, seed)["training_seconds"]
            fixed += ["--vae", autoencoder]
        pilot = train(work / f"{model}-pilot-{seed}", PILOT_STEPS, fixed, flags)
        for minutes in times:
            folder = work / f"{model}-{minutes:g}-minutes-{seed}"
            steps = max(2, round(60 * minutes * PILOT_STEPS / pilot["training_seconds"]))
            trained = train(folder, steps, fixed, flags)
            about = {"model": model, "minutes": minutes, "took": trained["training_seconds"] / 60, "seed": seed}
            about |= {"steps": steps, "autoencoder_seconds": before}
            for scale in extent.scales if minutes == times[-1] else [GUIDANCE]:
                rows.append(about | {"guidance": scale} | measure(folder, scale, images))
    print()
    measuring.print_table([line(row) for row in rows])
    print(f"\n{verdict(rows)}")
    measuring.write_report(options.output, rows, vars(options) | {"train_flags": flags}, facts)
    plot(rows, options.output.with_suffix(".png"))
    print(f"\nwritten to {options.output} and {options.output.with_suffix('.png')}")


def train(folder: Path, steps: int, fixed: Sequence[object], flags: Sequence[str]) -> dict:
    """The summary of a run, which train.py begins, goes on with, or finds finished."""
    more = ["--max_train_steps", steps, "--preview_steps", 0, "--output_dir", folder]
    command(SCRIPTS / "train.py", *fixed, *more, *flags)
    return json.loads((folder / "training_summary.json").read_text())


def train_autoencoder(folder: Path, steps: int | None, seed: int) -> dict:
    """As `train`, in that folder of a run."""
    more = [] if steps is None else ["--max_train_steps", steps]
    fixed = ["--system", "stable-diffusion", "--stage", "autoencoder", "--seed", seed, "--preview_steps", 0]
    command(SCRIPTS / "train.py", *fixed, *more, "--output_dir", folder.parent)
    return json.loads((folder / "training_summary.json").read_text())


def measure(folder: Path, scale: float, images: int) -> dict:
    """What evaluate.py says of a model at this guidance scale, unless its report has it already.

    Returns:
        Entries of its report: one for each of `GROUPS`, and "frechet", in the features of the digits, which are grey.
    """
    names = {"unseen": "prompt_accuracy_unseen", "seen": "prompt_accuracy_seen", "frechet": "frechet_distance"}

    def found() -> dict[str, dict]:
        metrics = read_report(folder / "evaluation.json")["metrics"]
        return {entry["name"]: entry for entry in metrics if entry.get("guidance_scale") == scale}

    if found().get(names["frechet"], {}).get("n") != images:
        metrics = ["--metrics", "prompt", "frechet", "--extractor", "digits", "--guidance_scale", scale]
        command(SCRIPTS / "evaluate.py", folder, *metrics, *SAMPLER, "--num_images", images)
    return {key: found()[name] for key, name in names.items()}


def line(row: dict) -> dict[str, str]:
    """A row as a line of the table."""
    before = row["autoencoder_seconds"]
    cells = {"model": row["model"], "minutes": f"{row['took']:.1f}" + (f" + {before / 60:.1f}" if before else "")}
    cells |= {"steps": f"{row['steps']:,}", "guidance": f"{row['guidance']:g}"}
    for group in GROUPS:
        entry = row[group]
        ends = f"[{100 * entry['interval_low']:.1f}..{100 * entry['interval_high']:.1f}]"
        cells[f"{group}, %"] = f"{100 * entry['value']:.1f} {ends}, n = {entry['n']:,}"
        cells[f"{group}: ceiling, chance"] = f"{100 * entry['ceiling']:.1f}, {100 * entry['chance']:.2f}"
    frechet = row["frechet"]
    error = "" if frechet["standard_error"] is None else f" ± {frechet['standard_error']:.1f}"
    return cells | {"frechet": f"{frechet['value']:.1f}{error}", "floor": f"{frechet['floor']:.1f}"}


def verdict(rows: list[dict]) -> str:
    """Whether the goal of pixels was met, by the lower seed of the longest time within it."""
    pixels = [row for row in rows if row["model"] == "pixels" and row["guidance"] == GUIDANCE]
    within = [row for row in pixels if row["took"] <= GOAL_MINUTES]
    goal = f"goal: {100 * GOAL:g} % of unseen combinations after at most {GOAL_MINUTES} minutes"
    if not within:
        return f"{goal}: not measured"
    longest = max(row["minutes"] for row in within)
    lowest = min((row for row in within if row["minutes"] == longest), key=lambda row: row["unseen"]["value"])
    share = lowest["unseen"]["value"]
    return f"{goal}: {'met' if share >= GOAL else 'missed'}, {100 * share:.1f} % after {lowest['took']:.1f}"


def plot(rows: list[dict], file: Path) -> None:
    """Accuracy against minutes and against guidance, and Fréchet distance against guidance, a line for each seed and
    model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    by_time, by_scale, distances = figure.subplots(1, 3)
    longest = max(row["minutes"] for row in rows)
    curve = [row for row in rows if row["guidance"] == GUIDANCE]
    sweep = [row for row in rows if row["minutes"] == longest]
    for panel, shown, along, names in (
        (by_time, curve, "took", GROUPS),
        (by_scale, sweep, "guidance", GROUPS),
        (distances, sweep, "guidance", ["frechet"]),
    ):
        for model, line in zip(MODELS, ("-", "-."), strict=True):
            if mine := [row for row in shown if row["model"] == model]:
                draw(panel, mine, along, names, f"{model}, ", f"o{line}")
    by_time.set(xlabel="minutes of training", ylabel="pictures as asked for", xscale="log", ylim=(0, 1))
    took = {row["minutes"]: row["took"] for row in curve}  # of several runs one: labels would overlap
    by_time.set_xticks([*took.values()], [f"{minutes:.1f}" for minutes in took.values()])
    by_time.minorticks_off()
    after = f"guidance scale, after {took[longest]:.0f} minutes"
    by_scale.set(xlabel=after, ylim=(0, 1))
    distances.set(xlabel=after, ylabel="Fréchet distance", yscale="log")
    by_time.legend()
    figure.savefig(file, dpi=100)


def draw(panel, rows: list[dict], along: str, names, what: str, form: str) -> None:
    """A line for each figure and seed, with 95 % intervals, and what real pictures and chance get."""
    panel.grid(alpha=0.3)
    for number, name in enumerate(names):
        for seed in sorted({row["seed"] for row in rows}):
            mine = sorted((row for row in rows if row["seed"] == seed), key=lambda row: row[along])
            places, values = [row[along] for row in mine], [row[name]["value"] for row in mine]
            label = f"{what}{name} combinations" if seed == 0 else None
            panel.plot(places, values, form, color=f"C{number}", label=label, markersize=3)
            if mine[0][name]["interval_low"] is not None:
                ends = [[row[name][end] for row in mine] for end in ("interval_low", "interval_high")]
                panel.fill_between(places, *ends, color=f"C{number}", alpha=0.2)
        for mark, style in (("ceiling", "--"), ("chance", ":"), ("floor", "--")):
            if rows[0][name].get(mark) is not None:
                panel.axhline(rows[0][name][mark], color=f"C{number}", linewidth=0.8, linestyle=style)


def command(script: Path, *arguments: object) -> None:
    """Run a script of this repository and show its output."""
    subprocess.run([sys.executable, str(script), *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
