"""Training steps of latent diffusion with posteriors that are kept on disk, against encoding in each step.

    OMP_NUM_THREADS=1 python benchmarks/kept_latents.py

The preset stable-diffusion-digits on captioned digits, with all that a step of scripts/train.py does. The autoencoder
is the preset's with random weights, which take as long as trained ones.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import compare, finish, interleaved, make_parser, readable_seconds, start
from training_sides import steps_of

from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.data.order import PositionSampler
from ddpm_hf.models.autoencoder import new_autoencoder
from ddpm_hf.models.presets import PRESETS
from ddpm_hf.training.loop import Trainer
from ddpm_hf.training.start import prepare

PRESET = "stable-diffusion-digits"
NETWORK = ("--system", "stable-diffusion", "--stage", "unet", "--text_warmup_steps", "0")
# size -> (turns, steps in a turn)
AMOUNTS = {"quick": (2, 1), "normal": (15, 2), "full": (30, 5)}


def main(argv: list[str]) -> None:
    options = make_parser(__doc__, "kept_latents").parse_args(argv)
    facts = start(options)
    with tempfile.TemporaryDirectory() as folder:
        model = dict(PRESETS[PRESET].autoencoder.model)
        side = model.pop("resolution")
        new_autoencoder((side, side), **model).save_pretrained(Path(folder) / "vae")
        computed = trainer_of(Path(folder), "computed", "--no_cache_latents")
        kept = trainer_of(Path(folder), "kept")
        rows = [throughput(computed, kept, *AMOUNTS[options.size]), encoding(kept), reading(kept)]
    finish(options, rows, facts)


def trainer_of(folder: Path, name: str, *flags: str) -> Trainer:
    flags += (*NETWORK, "--vae", str(folder / "vae"))
    flags += ("--max_train_steps", "1000000", "--preview_steps", "0", "--checkpointing_steps", "1000000")
    flags += ("--cache_dir", str(folder / "cache"), "--output_dir", str(folder / name))
    return prepare(parse_training_arguments(list(flags)))


def throughput(computed: Trainer, kept: Trainer, turns: int, steps: int) -> dict[str, Any]:
    seconds = interleaved({"computed": steps_of(computed), "kept": steps_of(kept)}, turns, steps)
    found = compare("", seconds["computed"], seconds["kept"])
    return {
        "what": f"a step of {kept.plan.facts.global_batch_size} images",
        "encoding in each step": readable_seconds(found.stock_seconds),
        "kept": readable_seconds(found.ours_seconds),
        "times faster": found.row()["times faster"],
        "n": turns,
    }


def encoding(trainer: Trainer) -> dict[str, Any]:
    """All pictures, once more."""
    codec = trainer.plan.system.codec
    for file in codec.kept.array.folder.iterdir():
        file.unlink()
    began = time.perf_counter()
    codec.prepare(trainer.accelerator.device)
    what = f"encoding {len(codec.kept.array):,} pictures once"
    return {"what": what, "kept": readable_seconds(time.perf_counter() - began), "n": 1}


def reading(trainer: Trainer) -> dict[str, Any]:
    """An epoch of batches, without training on them."""
    images, batch = trainer.plan.images, trainer.plan.facts.global_batch_size
    steps = images.count // batch
    began = time.perf_counter()
    for _ in images.loader(PositionSampler(batch, num_steps=steps)):
        pass
    what = f"reading {steps * batch:,} pictures with their latents"
    return {"what": what, "kept": readable_seconds(time.perf_counter() - began), "n": 1}


if __name__ == "__main__":
    main(sys.argv[1:])
