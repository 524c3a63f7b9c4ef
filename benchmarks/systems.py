"""Five systems on the same captioned digits, after the same minutes of training.

    python benchmarks/systems.py --size quick|normal|full [--minutes 8] [--systems ddpm glide] [any flags of train.py]

A class-conditional DDPM, the bases of GLIDE and Imagen, Stable Diffusion and DALL·E 2, with the settings of their
presets, on captions that name digit, colour and ground: 16x16 pixels, and 32x32 for Stable Diffusion, whose
autoencoder makes 8x8 latents of them. A short pilot measures how fast each stage of a system is; then its stages share
the minutes as their presets share the steps. A picture is drawn for each held-out caption, and a program reads it. The
DDPM is told the digit alone. In the table are the share of pictures as captioned (of the DDPM, of digits), the Fréchet
distance of the digits, in grey, beside its floor, parameters, and what a picture costs. The same command goes on where
it was interrupted.
"""

import json
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ddpm_hf.data.captioned_digits import captioned_digits, understand
from ddpm_hf.evaluation.image_sets import find_images
from ddpm_hf.evaluation.measurements import measure_quality
from ddpm_hf.evaluation.prompt_exam import PromptExam
from ddpm_hf.evaluation.samples import Samples
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.judges.features import load_extractor
from ddpm_hf.models.preset import Preset
from ddpm_hf.models.presets import PRESETS
from ddpm_hf.pipelines.loading import load_pipeline
from ddpm_hf.portable import AUTOENCODER_FOLDER, CLIP_FOLDER, PRIOR_FOLDER
from ddpm_hf.sampling.generation import generate
from ddpm_hf.sampling.pictures import image_grid
from ddpm_hf.sampling.samplers import make_fast_sampler

SCRIPTS, DOCS = Path(__file__).parents[1] / "scripts", Path(__file__).parents[1] / "docs"
PILOT_STEPS, GUIDANCE, SHOWN = 50, 3.0, 8
GROUPS = ("seen", "unseen")  # combinations of digit and colour
# Of each system its flags, and its stages in their order: name, folder below that of the system, preset.
_LATENT, _UNCLIP = PRESETS["stable-diffusion-digits"], PRESETS["dalle2-digits"]
SYSTEMS: dict[str, tuple[str, list[tuple[str | None, str, Preset]]]] = {
    "ddpm": (
        "--preset digits --channels 3 --class_conditional --label_column digit",
        [(None, ".", PRESETS["digits"])],
    ),
    "glide": ("--system glide", [("base", ".", PRESETS["glide-digits"])]),
    "imagen": ("--system imagen", [("base", ".", PRESETS["imagen-digits"])]),
    "stable-diffusion": (
        "--system stable-diffusion --dataset_config_name coloured",
        [("autoencoder", AUTOENCODER_FOLDER, _LATENT.autoencoder), ("unet", ".", _LATENT)],
    ),
    "dalle2": (
        "--system dalle2",
        [("clip", CLIP_FOLDER, _UNCLIP.clip), ("prior", PRIOR_FOLDER, _UNCLIP.prior), ("decoder", ".", _UNCLIP)],
    ),
}
EXTENTS = {"quick": (0.5, 200, 1), "normal": (8, 1000, 1), "full": (8, 1000, 3)}  # minutes, pictures, seeds


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.make_parser(__doc__, "systems")
    parser.add_argument("--systems", nargs="+", choices=[*SYSTEMS], default=[*SYSTEMS], help="What is trained.")
    parser.add_argument("--minutes", type=float, help="Of training, of all stages of a system together.")
    parser.add_argument("--images", type=int, help="Pictures to judge of each.")
    options, flags = parser.parse_known_args(arguments)
    facts = measuring.start(options)
    minutes, images, seeds = EXTENTS[options.size]
    minutes, images = options.minutes or minutes, options.images or images
    work, rows, shown = options.output.parent / options.benchmark, [], {}
    for seed, system in product(range(seeds), options.systems):
        folder = work / f"{system}-{minutes:g}-minutes-{seed}"
        steps = train(system, folder, minutes, seed, flags)
        row, drawn = measure(system, folder, images)
        rows.append({"system": system, "seed": seed, "steps": steps, **row})
        shown.setdefault(system, drawn)
    print()
    measuring.print_table([line(row) for row in rows])
    measuring.write_report(options.output, rows, vars(options) | {"train_flags": flags}, facts)
    plot(rows, options.output.with_suffix(".png"))
    side = max(drawn.shape[1] for drawn in shown.values())
    alike = [drawn.repeat(side // len(drawn[0]), 1).repeat(side // len(drawn[0]), 2) for drawn in shown.values()]
    pictures = options.output.with_name(f"{options.output.stem}_pictures.png")
    image_grid(np.concatenate(alike), SHOWN, list(shown)).save(pictures)
    print(f"\nwritten to {options.output}, {options.output.with_suffix('.png')} and {pictures}")


def train(system: str, folder: Path, minutes: float, seed: int, flags: list[str]) -> list[int]:
    """Train the stages of a system, which share the minutes; returns the steps of each."""
    fixed, stages = SYSTEMS[system]
    fixed = [*fixed.split(), "--seed", seed, "--preview_steps", 0, *flags]
    if system == "ddpm":
        fixed += ["--train_data_dir", captioned_digits("coloured")]
    asked = [name for name, *_ in stages if name is not None]
    pilot = folder.with_name(f"{system}-pilot-{seed}")
    command(*fixed, *(["--stage", *asked] if asked else []), "--max_train_steps", PILOT_STEPS, "--output_dir", pilot)
    taken = [seconds(pilot / place) / PILOT_STEPS * preset.training["max_train_steps"] for _, place, preset in stages]
    share, steps = 60 * minutes / sum(taken), []
    for name, _, preset in stages:
        steps.append(max(2, round(share * preset.training["max_train_steps"])))
        stage = ["--stage", name] if name is not None else []
        command(*fixed, *stage, "--max_train_steps", steps[-1], "--output_dir", folder)
    return steps


def seconds(folder: Path) -> float:
    return json.loads((folder / "training_summary.json").read_text())["training_seconds"]


def measure(system: str, folder: Path, count: int) -> tuple[dict[str, Any], np.ndarray]:
    """A row of the table, and pictures of the prompts in docs/."""
    pipeline = load_pipeline(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler, calls = make_fast_sampler(pipeline.scheduler)
    channels, *size = pipeline.image_shape
    columns = {"captioned": True, "caption_column": "caption"}
    images = find_images(tuple(size), channels, run=ModelFolder.read(folder).settings, most=count, **columns)
    captions = [str(caption) for batch in images.batches(256) for caption in batch["captions"]]
    asked = {"num_inference_steps": calls, "guidance_scale": GUIDANCE}

    def draw(words: list[str]) -> np.ndarray:
        digits = {"class_labels": understand(words)[1]["digit"].tolist()}
        told = digits if system == "ddpm" else {"prompt": words}
        return np.concatenate([drawn for _, drawn in generate(pipeline, range(len(words)), 0, 64, told, **asked)])

    with FlopCounterMode(display=False) as counter:
        draw(captions[:1])
    start = time.perf_counter()
    samples = Samples(images=np.ascontiguousarray(draw(captions).transpose(0, 3, 1, 2)))
    took = (time.perf_counter() - start) / count
    said = {entry["name"]: entry for entry in PromptExam("systems", {"prompt": captions}, images).measure(samples)}
    told = "digit" if system == "ddpm" else "accuracy"
    training, extractor = images.training(most=count), load_extractor("digits")
    (frechet,) = measure_quality(samples, images, training, extractor, ["frechet"], resamples=0)
    networks = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    row = {group: said[f"prompt_{told}_{group}"] for group in GROUPS} | {"frechet": frechet, "side": size[0]}
    row["parameters"] = sum(weight.numel() for network in networks for weight in network.parameters())
    row |= {"gflop_a_picture": counter.get_total_flops() / 1e9, "seconds_a_picture": took}
    row["training_seconds"] = [seconds(folder / place) for _, place, _ in SYSTEMS[system][1]]
    prompts = (DOCS / "prompts.txt").read_text(encoding="utf-8").splitlines()
    return row, draw(prompts[:SHOWN])


def line(row: dict[str, Any]) -> dict[str, str]:
    """A row of the table."""
    cells = {"system": row["system"], "side": str(row["side"]), "seed": str(row["seed"])}
    cells["steps"] = " + ".join(f"{steps:,}" for steps in row["steps"])
    cells["minutes"] = f"{sum(row['training_seconds']) / 60:.1f}"
    for group in GROUPS:
        entry = row[group]
        ends = f"[{100 * entry['interval_low']:.1f}..{100 * entry['interval_high']:.1f}]"
        cells[f"{group}, %"] = f"{100 * entry['value']:.1f} {ends}, n = {entry['n']}"
    cells["ceiling, %"] = f"{100 * row['unseen']['ceiling']:.1f}"
    cells["frechet (floor)"] = f"{row['frechet']['value']:.1f} ({row['frechet']['floor']:.1f})"
    cells["parameters"] = f"{row['parameters'] / 1e6:.1f} M"
    return cells | {"a picture": f"{row['gflop_a_picture']:.1f} GFLOP, {1000 * row['seconds_a_picture']:.0f} ms"}


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Pictures as captioned, with 95 % intervals and the ceiling, a bar for each run and kind of combination."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    panel = figure.subplots()
    for number, group in enumerate(GROUPS):
        places = np.arange(len(rows)) + 0.4 * number
        values = np.array([row[group]["value"] for row in rows])
        ends = np.array([[row[group][f"interval_{end}"] for row in rows] for end in ("low", "high")])
        panel.bar(places, values, 0.38, yerr=abs(ends - values), capsize=3, label=f"{group} combinations")
    panel.axhline(rows[0]["unseen"]["ceiling"], color="black", linewidth=0.8, linestyle="--", label="real pictures")
    panel.set_xticks(np.arange(len(rows)) + 0.2, [row["system"] for row in rows])
    panel.set(ylabel="pictures as captioned", ylim=(0, 1))
    panel.legend(loc="lower right")
    figure.savefig(file, dpi=100)


def command(*arguments: object) -> None:
    """Run train.py and show its output."""
    subprocess.run([sys.executable, str(SCRIPTS / "train.py"), *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
