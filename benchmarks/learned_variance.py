"""Does a learned variance pay in bits/dim? Three runs on the embedded digits, alike but for the variance.

    python benchmarks/learned_variance.py --steps 1300 --output_dir benchmarks/out/learned_variance

Each is trained by scripts/train.py from the same seed and evaluated by scripts/evaluate.py on the same held-out images
with the bound over all timesteps. Prints one table and writes it as JSON. A finished part is not done again.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"
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
    results = []
    for name, flags in VARIANTS.items():
        folder = options.output_dir / name.replace(", ", "_")
        if not (folder / "evaluation.json").is_file():
            shared = ["--preview_steps", "0", "--max_train_steps", options.steps, "--output_dir", folder]
            run("train.py", *shared, *flags)
            terms = [] if options.nll_timesteps is None else ["--nll_timesteps", options.nll_timesteps]
            run("evaluate.py", folder, "--metrics", "nll", *terms)
        metrics = json.loads((folder / "evaluation.json").read_text())["metrics"]
        results.append({"variance": name, **next(metric for metric in metrics if metric["name"] == "bits_per_dim")})
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} threads, torch {torch.__version__}"
    report = {"machine": machine, "steps": options.steps, "results": results}
    (options.output_dir / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"{'variance':24} {'bits/dim':>9} {'± (standard error)':>19} {'images':>7}")
    for row in results:
        print(f"{row['variance']:24} {row['value']:9.4f} {row['standard_error']:19.4f} {row['n']:7}")


def run(script: str, *arguments: object) -> None:
    subprocess.run([sys.executable, str(SCRIPTS / script), *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
