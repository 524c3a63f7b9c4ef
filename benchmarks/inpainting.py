"""How well holes are filled: by a base into which known pixels are put back, and by what was fine-tuned for it.

    python benchmarks/inpainting.py OUT [--images 500] [--guidance_scale 3]

OUT holds GLIDE on captioned digits, with its base and inpainting/. Held-out pictures get random holes, and both models
fill them from the same noise, in 20 steps of dpm-sde. The table has the error in the hole against the real picture
(root of the mean square over pixels, of 255 levels, averaged over pictures), and how many pictures a program reads as
their captions say; `real` are the pictures themselves.
"""

import argparse

import measuring
import numpy as np

from ddpm_hf.conditions.hole import Hole, pictures
from ddpm_hf.evaluation.image_sets import find_images
from ddpm_hf.evaluation.prompt_exam import PromptExam
from ddpm_hf.evaluation.samples import Samples
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.pipelines.loading import for_inpainting, load_pipeline
from ddpm_hf.sampling.generation import generate
from ddpm_hf.sampling.samplers import make_fast_sampler


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    told = "Held-out pictures; those of which nothing is known, about a fifth, are left out."
    parser.add_argument("--images", type=int, default=500, help=told)
    parser.add_argument("--guidance_scale", type=float, default=3.0)
    options = parser.parse_args(arguments)
    base = load_pipeline(options.folder)
    tuned = for_inpainting(base, options.folder)
    channels, *size = base.image_shape
    settings = ModelFolder.read(options.folder).settings
    images = find_images(tuple(size), channels, run=settings, most=options.images)
    (batch,) = images.batches(options.images)
    masks = list(Hole().words_of([batch]))
    partly = [k for k, mask in enumerate(masks) if not np.asarray(mask).all()]
    real, masks = batch["images"][partly], [masks[k] for k in partly]
    holes = np.array([np.asarray(mask) for mask in masks])[:, None]
    asked = {"prompt": [batch["captions"][k] for k in partly], "image": pictures(real), "mask_image": masks}
    exam = PromptExam("--metrics", asked, images)
    sides = {"real": real.numpy()}
    for name, pipeline in (("base, known pixels put back", base.alone()), ("fine-tuned", tuned.alone())):
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler, steps = make_fast_sampler(pipeline.scheduler)
        call = {"num_inference_steps": steps, "guidance_scale": options.guidance_scale}
        batches = [drawn for _, drawn in generate(pipeline, range(len(real)), 0, 64, asked, **call)]
        sides[name] = np.concatenate(batches).transpose(0, 3, 1, 2)
    errors = {name: error_in(holes, drawn, sides["real"]) for name, drawn in sides.items()}
    measuring.print_table([line(name, drawn, errors[name], exam) for name, drawn in sides.items()])
    _, before, after = errors.values()
    gain = before - after
    print(f"difference: {gain.mean():.1f} ± {gain.std() / len(gain) ** 0.5:.1f} levels, of {len(gain)} pictures")


def error_in(holes: np.ndarray, drawn: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Root mean square of each picture's pixels in its hole, levels, (n,)."""
    squares = np.where(holes, drawn.astype(float) - real, 0) ** 2
    return np.sqrt(squares.sum((1, 2, 3)) / (real.shape[1] * holes.sum((1, 2, 3))))


def line(name: str, drawn: np.ndarray, errors: np.ndarray, exam: PromptExam) -> dict[str, str]:
    """A row of the table."""
    said = {entry["name"]: entry for entry in exam.measure(Samples(images=np.ascontiguousarray(drawn)))}
    cells = {"pictures": name, "error in the hole": f"{errors.mean():.1f} ± {errors.std() / len(errors) ** 0.5:.1f}"}
    for group in ("seen", "unseen"):
        entry = said[f"prompt_accuracy_{group}"]
        ends = f"{100 * entry['interval_low']:.1f}..{100 * entry['interval_high']:.1f}"
        cells[f"as captioned, {group}, %"] = f"{100 * entry['value']:.1f} [{ends}], n = {entry['n']}"
    return cells


if __name__ == "__main__":
    main()
