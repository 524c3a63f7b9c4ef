"""Train a DDPM on your own images, or, without arguments, on bundled handwritten digits.

    accelerate launch scripts/train.py --train_data_dir photos --resolution 64 --output_dir out

Running the same command again resumes the run. `--help` lists every setting.
"""

import sys

from ddpm_hf.cli.train import main

if __name__ == "__main__":
    main(sys.argv[1:])
