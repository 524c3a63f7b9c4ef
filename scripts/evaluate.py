"""Evaluate a DDPM pipeline, or existing samples, against images held out of training.

    python scripts/evaluate.py demo --metrics nll --nll_timesteps 50
    python scripts/evaluate.py demo --metrics frechet kid prdc memorization --num_inference_steps 50
    python scripts/evaluate.py samples --run demo --metrics frechet
    python scripts/evaluate.py demo --metrics frechet --compare ddpm:100 ddpm:20 dpm:20 other-model@dpm:20

Use several processes with: accelerate launch scripts/evaluate.py …. Scores are written to evaluation.json in the
model's folder, from which the model card takes them; tables and pictures to evaluation/ in the same folder.
"""

import sys

from ddpm_hf.cli.evaluate import main

if __name__ == "__main__":
    main(sys.argv[1:])
