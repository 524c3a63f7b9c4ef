"""Train a DDPM on your own images, or, without arguments, on embedded handwritten digits.

    accelerate launch scripts/train.py --train_data_dir photos --resolution 64 --output_dir out

The same command run again goes on where it was stopped. `--help` lists every setting.
"""

import sys

from ddpm_hf.training.command_line import one_line_errors, parse_training_arguments
from ddpm_hf.training.start import prepare


def main(argv: list[str]) -> None:
    config = parse_training_arguments(argv)
    with one_line_errors("train.py"):
        trainer = prepare(config)
        if trainer is not None:
            trainer.train()


if __name__ == "__main__":
    main(sys.argv[1:])
