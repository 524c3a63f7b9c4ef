"""What guidance, dynamic thresholding and the noise on small pictures do to Imagen.

    python benchmarks/cascade.py OUT [--guidance_scale 1 3 8 15] [--aug_level 0 100 250 500] [--images 300]

OUT holds a base and super-resolution of captioned digits, which a program can read. The base draws a picture for each
of so many held-out captions, at each guidance scale: with x_0 clipped to [-1, 1], with dynamic thresholding, and as it
was trained to be sampled; the last are then enlarged at each level of noise. Each stage draws from noise of its own,
the same in all rows, in 20 steps of dpm-sde. The table
has the share of pictures that a program reads as their captions say, the share of their values at the ends of
the range (0 or 255), and the Fréchet distance of the digits to held-out ones, in grey. The last rows are of
super-resolution alone, which enlarges real pictures. A JSON file has all of it, and a picture the first of each row.
"""

import argparse
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import torch

from ddpm_hf.evaluation.image_sets import ImageSet, find_images
from ddpm_hf.evaluation.measurements import measure_quality
from ddpm_hf.evaluation.prompt_exam import PromptExam
from ddpm_hf.evaluation.samples import Samples, words_for
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.judges.features import Extractor, load_extractor
from ddpm_hf.pipelines.ddpm import DDPMPipeline
from ddpm_hf.pipelines.loading import load_pipeline
from ddpm_hf.pixels import normalize
from ddpm_hf.portable import UPSAMPLER_FOLDER
from ddpm_hf.sampling.generation import generate
from ddpm_hf.sampling.pictures import image_grid
from ddpm_hf.sampling.samplers import make_fast_sampler
from ddpm_hf.steps.guidance import check_noise_level

SHOWN = 8
DYNAMIC = {"thresholding": True, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 100.0}
CLIPPED = {**DYNAMIC, "sample_max_value": 1.0}  # with this cap, thresholding is clipping


class Judge:
    """Measures pictures of one size."""

    def __init__(self, images: ImageSet, captions: list[str], extractor: Extractor):
        self.images, self.extractor = images, extractor
        self.exam = PromptExam("the measure", {"prompt": captions}, images)

    def row(self, drawn: np.ndarray, **about: Any) -> dict[str, Any]:
        """The table's row of pictures, uint8 (n, H, W, C)."""
        samples = Samples(images=np.ascontiguousarray(drawn.transpose(0, 3, 1, 2)))
        said = {entry["name"]: entry for entry in self.exam.measure(samples)}
        options = {"resamples": 0, "seed": 0, "batch_size": 64}
        (frechet, *_) = measure_quality(samples, self.images, None, self.extractor, ["frechet"], **options)
        accuracy = {group: said[f"prompt_accuracy_{group}"] for group in ("seen", "unseen")}
        return {**about, **accuracy, "saturation": saturation(drawn), "frechet": frechet["value"]}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--guidance_scale", type=float, nargs="+", default=[1.0, 3.0, 8.0, 15.0])
    parser.add_argument("--aug_level", type=int, nargs="+", default=[0, 100, 250, 500])
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "out" / "cascade.json")
    options = parser.parse_args(arguments)
    facts = measuring.machine()
    try:
        base, upsampler, judges, asked = opened(options)
    except ValueError as problem:
        parser.exit(2, f"{parser.prog}: error: {problem}\n")
    trained, (upsampler.scheduler, steps) = base.scheduler, make_fast_sampler(upsampler.scheduler)
    prompts, real, rows, shown = asked["prompt"], asked["image"], [], {}

    def draw(pipeline: DDPMPipeline, scale: float, **told: Any) -> np.ndarray:
        call = {"num_inference_steps": steps, "guidance_scale": scale}
        images = {"image": told.pop("image")} if "image" in told else {}
        seed = int(pipeline is upsampler)
        batches = generate(pipeline, range(len(prompts)), seed, 64, {"prompt": prompts, **images}, **call, **told)
        return np.concatenate([drawn for _, drawn in batches])

    def note(pipeline: DDPMPipeline, drawn: np.ndarray, name: str, scale: float | None) -> None:
        rows.append(judges[pipeline is upsampler].row(drawn, pictures=name, guidance=scale))
        factor = upsampler.image_shape[1] // drawn.shape[1]
        shown[f"{name}, w = {scale:g}" if scale else name] = drawn[:SHOWN].repeat(factor, 1).repeat(factor, 2)
        print(f"drawn and judged: {name}" + (f", w = {scale:g}" if scale else ""), flush=True)

    for scale in options.guidance_scale:
        for name, changes in (("base, clipped", CLIPPED), ("base, dynamic thresholding", DYNAMIC), ("base", {})):
            base.scheduler = trained
            base.threshold(changes)
            base.scheduler, _ = make_fast_sampler(base.scheduler)
            small = draw(base, scale)
            note(base, small, name, scale)
        pictures = list(normalize(torch.from_numpy(small.transpose(0, 3, 1, 2))))
        for level in options.aug_level:
            large = draw(upsampler, 1.0, image=pictures, noise_level=level)
            note(upsampler, large, f"enlarged, level {level}", scale)
    for level in options.aug_level:
        note(upsampler, draw(upsampler, 1.0, image=real, noise_level=level), f"real, enlarged, level {level}", None)
    print()
    measuring.print_table([line(row) for row in rows])
    measuring.write_report(options.output, rows, {**vars(options), "output": str(options.output)}, facts)
    image_grid(np.concatenate(list(shown.values())), SHOWN, list(shown)).save(options.output.with_suffix(".png"))
    print(f"\nwritten to {options.output} and {options.output.with_suffix('.png')}")


def opened(options: argparse.Namespace) -> tuple[DDPMPipeline, DDPMPipeline, list[Judge], dict[str, list[Any]]]:
    """Base and super-resolution, a judge for each, and what to ask of super-resolution.

    Raises:
        ValueError: these are not two stages of captioned digits, or there is no such level of noise.
    """
    cascade, folder = load_pipeline(options.folder), ModelFolder.read(options.folder)
    if folder.upsampler is None:
        raise ValueError(f"{options.folder} must have super-resolution in it, but has no {UPSAMPLER_FOLDER}")
    for level in options.aug_level:
        check_noise_level(level, cascade.upsampler.noise_levels, "--aug_level")
    stages, extractor, judges = (cascade.alone(), cascade.upsampler), load_extractor("digits"), []
    for pipeline, of in zip(stages, (folder, folder.upsampler), strict=True):
        pipeline.set_progress_bar_config(disable=True)
        channels, *size = pipeline.image_shape
        images = find_images(tuple(size), channels, run=of.settings, captioned=True, most=options.images)
        asked = words_for(pipeline.conditions, images, options.images)
        judges.append(Judge(images, asked["prompt"], extractor))
    return *stages, judges, asked


def saturation(drawn: np.ndarray) -> float:
    """The share of uint8 values at an end of their range."""
    return float(np.mean((drawn == 0) | (drawn == 255)))


def line(row: dict[str, Any]) -> dict[str, str]:
    """A row of the table."""
    cells = {"pictures": row["pictures"], "guidance": f"{row['guidance']:g}" if row["guidance"] else ""}
    for group in ("seen", "unseen"):
        entry = row[group]
        ends = f"{100 * entry['interval_low']:.1f}..{100 * entry['interval_high']:.1f}"
        cells[f"as captioned, {group}, %"] = f"{100 * entry['value']:.1f} [{ends}], n = {entry['n']}"
    return cells | {"saturated, %": f"{100 * row['saturation']:.1f}", "frechet": f"{row['frechet']:.1f}"}


if __name__ == "__main__":
    main()
