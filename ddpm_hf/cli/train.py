"""Train a DDPM on your own images, or, without arguments, on bundled handwritten digits."""

import sys

from ..training.interruption import Stopped
from ..training.start import train
from .parser import one_line_errors, parse_training_arguments, training_parser


def main(argv: list[str]) -> None:
    """Check everything, then train; exits with the status of a signal that stopped it, or 2 for a bad request."""
    parser = training_parser()
    config = parse_training_arguments(argv, parser)
    with one_line_errors(parser):
        try:
            train(config)
        except Stopped as stop:
            sys.exit(stop.status)


if __name__ == "__main__":
    main(sys.argv[1:])
