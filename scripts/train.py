"""Train a DDPM on your own images, or, without arguments, on bundled handwritten digits.

    accelerate launch scripts/train.py --train_data_dir photos --resolution 64 --output_dir out

Running the same command again resumes the run. `--help` lists every setting.
"""

import sys

from ddpm_hf.cli.parser import one_line_errors, parse_training_arguments, training_parser
from ddpm_hf.training.start import prepare


def main(argv: list[str]) -> None:
    parser = training_parser()
    config = parse_training_arguments(argv, parser)
    with one_line_errors(parser):
        trainer = prepare(config)
        if trainer is not None:
            trainer.train()


if __name__ == "__main__":
    main(sys.argv[1:])
