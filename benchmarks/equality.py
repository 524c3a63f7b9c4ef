"""Do two revisions of this project train the same weights and draw the same pixels, to the last bit?

    python benchmarks/equality.py main

Runs the same five short trainings of scripts/train.py in both, side by side on one thread each, and scripts/sample.py
on what they made. Only files whose names Accelerate, diffusers or the README give are compared, and nothing of the
package is imported here, so its inside may differ. The exit status is 1 if anything differs or is missing.
"""

import argparse
import csv
import hashlib
import importlib
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
STEPS = 24
TRAIN = (
    f"--max_train_steps {STEPS} --checkpointing_steps {STEPS} --num_train_timesteps 20 --lr_warmup_steps 5 "
    f"--mixed_precision no --logging_steps 1 --preview_images 4 --preview_inference_steps 4 --eval_steps {STEPS} "
    "--eval_num_images 20 --eval_inference_steps 5 --cache_dir cache --output_dir out"
)
TINY = (
    "--resolution 8 --base_channels 8 --channel_multipliers 1 2 --blocks_per_level 1 --attention_resolutions 4 "
    "--train_batch_size 6 --learning_rate 1e-3"
)
FOLDER = f"{TINY} --train_data_dir ../pictures"
TWO = "two processes"
LAUNCHER = (
    "accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0 --dynamo_backend no "
    "--mixed_precision no"
)
TRAININGS = {
    "digits": "--preset digits",
    "classes, guidance, dropout": f"{FOLDER} --class_conditional --condition_dropout 0.3 --dropout 0.1 --random_flip "
    "--gradient_accumulation_steps 2",
    "stream": f"{FOLDER} --streaming --shuffle_buffer 16 --dataloader_num_workers 1 --holdout 8",
    # Few timesteps and many images, because importance sampling begins when it has ten losses of every timestep.
    "learned variance, importance": f"{FOLDER} --class_conditional --variance_type learned_range --loss hybrid "
    "--timestep_sampling importance --num_train_timesteps 8 --train_batch_size 12",
    TWO: f"{TINY} --gradient_accumulation_steps 2",
}
# Every call of sample.py on what a training made.
DRAWINGS = {
    "digits": [
        "--denoising_strip --progressive --num_inference_steps 10",
        "--interpolate samples/00000.png samples/00005.png --num_inference_steps 8",
    ],
    "classes, guidance, dropout": ["--guidance_scale 2 --scheduler dpm --num_inference_steps 6"],
    "stream": ["--fast"],
    "learned variance, importance": ["--guidance_scale 3"],
    TWO: ["--scheduler ddim"],
}
NOT_COMPARED = ("seconds", "images_per_second")  # columns of loss.csv
# Imported once, by the process that is forked for each command: they take longer than the trainings.
SLOW_IMPORTS = (
    *("accelerate", "datasets", "matplotlib.figure", "transformers.hf_argparser", "diffusers.loaders"),
    *("diffusers.models.unets.unet_2d", "diffusers.optimization", "diffusers.pipelines.ddpm.pipeline_ddpm"),
)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", help="A git revision.")
    parser.add_argument("after", nargs="?", help="Another; by default the files as they are now.")
    options = parser.parse_args(argv)
    os.environ |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    for name in SLOW_IMPORTS:
        importlib.import_module(name)
    rows = []
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        trees = [stack.enter_context(tree_of(options.before, folder / "before"))]
        trees.append(stack.enter_context(tree_of(options.after, folder / "after")))
        for side in ("b", "a"):
            write_pictures(folder / side / "pictures")
        for name, flags in TRAININGS.items():
            places = [folder / side / name for side in ("b", "a")]
            run(trees, places, "train", f"{TRAIN} {flags}", LAUNCHER if name == TWO else "")
            for number, drawing in enumerate(DRAWINGS[name]):
                count = "" if "--interpolate" in drawing else "--num_images 6"
                run(trees, places, "sample", f"out {drawing} {count} --output_dir samples{number or ''}")
            rows.append({"run": name} | compare(*map(results, places)))
            print(f"{name}: done", flush=True)
    print()
    for line in [rows[0].keys(), ["---"] * len(rows[0]), *(row.values() for row in rows)]:
        print("| " + " | ".join(line) + " |")
    equal = all(value.startswith("equal") for row in rows for key, value in row.items() if key != "run")
    print(f"\n{options.before} and {options.after or 'the files here'} are {'equal' if equal else 'NOT EQUAL'}")
    return 0 if equal else 1


@contextmanager
def tree_of(revision: str | None, place: Path) -> Iterator[Path]:
    """A work tree of the revision, for as long as it is needed; without one the files as they are now."""
    if revision is None:
        yield ROOT
        return
    subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", place, revision], check=True)
    try:
        yield place
    finally:
        subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", place], check=True)


def write_pictures(folder: Path) -> None:
    """Noise of 10x12 pixels in three classes."""
    draw = np.random.default_rng(0)
    for name in ("bird", "cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(24):
            Image.fromarray(draw.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(folder / name / f"{number}.png")


def run(trees: list[Path], places: list[Path], name: str, flags: str, launcher: str = "") -> None:
    """The same command with the files of each tree, at once; RuntimeError with the end of its output if one fails."""
    started = []
    for tree, place in zip(trees, places, strict=True):
        place.mkdir(exist_ok=True)
        process = os.fork()
        if process == 0:
            become(tree, place, name, flags.split(), launcher.split())
        started.append((process, place / "log"))
    ended = [(os.waitpid(process, 0)[1], log) for process, log in started]
    for status, log in ended:
        if status != 0:
            raise RuntimeError(f"{name} {flags} failed:\n{log.read_text()[-3000:]}")


def become(tree: Path, place: Path, name: str, flags: list[str], launcher: list[str]) -> None:
    """In a forked process: as if Python, or the launcher, had been started with these words. Never returns."""
    status = 1
    try:
        output = os.open(place / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.chdir(place)
        os.environ["PYTHONPATH"] = sys.path[0] = str(tree)
        script = tree / "scripts" / f"{name}.py"
        words = [str(script)] if script.is_file() else ["-m", f"ddpm_hf.cli.{name}"]
        if launcher:
            os.execv(Path(sys.executable).with_name(launcher[0]), [*launcher, *words, *flags])
        sys.argv = [words[-1], *flags]
        (runpy.run_path if script.is_file() else runpy.run_module)(words[-1], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def results(place: Path) -> dict[str, Counter[str]]:
    """What a run made -> its parts. Tensors have no names there: wrapping a network changes them."""
    out, found = place / "out", {}
    for name, pattern in (("weights", f"checkpoint-{STEPS}/model*.safetensors"), ("average", "unet/*.safetensors")):
        tensors = (tensor for file in out.glob(pattern) for tensor in load_file(file).values())
        found[name] = Counter(map(digest, tensors))
    for name, file in (("loss table", "loss.csv"), ("scores", "scores.csv")):
        rows = csv.DictReader((out / file).read_text().splitlines())
        cells = (f"{row['step']} {key} {row[key]}" for row in rows for key in row if key not in NOT_COMPARED)
        found[name] = Counter(cells)
    files = [*place.glob("samples*/**/*.png"), *out.glob("previews/*.png"), out / "samples.png", out / "denoising.png"]
    pictures = ((file, np.asarray(Image.open(file))) for file in files if file.is_file())
    return found | {"pictures": Counter(f"{file.relative_to(place)} {digest(image)}" for file, image in pictures)}


def digest(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"


def compare(before: dict[str, Counter[str]], after: dict[str, Counter[str]]) -> dict[str, str]:
    """What was made -> "equal (of how many parts)", "n of m differ" or "missing"."""
    found = {}
    for name, parts in before.items():
        different = max((parts - after[name]).total(), (after[name] - parts).total())
        found[name] = f"{different} of {parts.total()} differ" if different else f"equal ({parts.total()})"
        if not parts:
            found[name] = "missing"
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
