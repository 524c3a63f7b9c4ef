"""Does a learned variance improve bits/dim? Three runs on the bundled digits that differ only in the variance.

    python benchmarks/learned_variance.py --steps 1300 --output_dir benchmarks/out/learned_variance

Each is trained by scripts/train.py with the same seed and evaluated by scripts/evaluate.py on the same held-out
images, with all terms of the bound or the same sample of them. Prints one table and writes it as JSON. Finished parts
are not repeated.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
from measuring import describe_machine, machine, print_table, write_report

SCRIPTS = Path(__file__).parents[1] / "scripts"
BASELINE = "fixed_small"
VARIANTS = {
    "fixed_small": ["--variance_type", "fixed_small"],
    "fixed_large": ["--variance_type", "fixed_large"],
    "learned_range, hybrid": ["--variance_type", "learned_range", "--loss", "hybrid"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1300, help="Optimizer steps of each run.")
    parser.add_argument("--nll_timesteps", type=int, default=None, help="Sampled terms of the bound; all by default.")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/out/learned_variance"))
    options = parser.parse_args()
    bits = {}
    for name, flags in VARIANTS.items():
        folder = options.output_dir / name.replace(", ", "_")
        per_image = folder / "evaluation" / "nll_per_image.csv"
        if not per_image.is_file():
            shared = ["--preview_steps", "0", "--max_train_steps", options.steps, "--output_dir", folder]
            run("train.py", *shared, *flags)
            terms = [] if options.nll_timesteps is None else ["--nll_timesteps", options.nll_timesteps]
            run("evaluate.py", folder, "--metrics", "nll", "--per_image", *terms)
        with per_image.open() as lines:
            bits[name] = np.array([float(row["bits_per_dim"]) for row in csv.DictReader(lines)])
    rows = [compare(name, values, bits[BASELINE]) for name, values in bits.items()]
    print(describe_machine(machine()) + "\n")
    print_table(rows)
    write_report(options.output_dir / "learned_variance.json", rows, vars(options))


def compare(name: str, bits: np.ndarray, baseline: np.ndarray) -> dict[str, float | str]:
    """Compare image by image, because images differ far more than models."""
    gain = baseline - bits
    return {
        "variance": name,
        "bits_per_dim": bits.mean(),
        "images": len(bits),
        f"less than {BASELINE} by": gain.mean(),
        "±": gain.std(ddof=1) / len(gain) ** 0.5,
    }


def run(script: str, *arguments: object) -> None:
    subprocess.run([sys.executable, str(SCRIPTS / script), *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
