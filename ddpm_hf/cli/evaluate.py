"""Evaluate a DDPM pipeline, or existing samples, against images held out of training."""

import sys
from pathlib import Path

from ..cores import check_processes, use_cores
from ..evaluation.evaluator import Evaluator
from ..evaluation.request import ImageArguments, MeasureArguments, Request, SampleArguments
from ..hub.folder import INDEX_FILE, ModelFolder
from ..settings.arguments import MachineArguments
from .parser import OneLineParser, one_line_errors


def main(argv: list[str]) -> None:
    """Parse, check and measure; a bad request becomes one line and exit status 2."""
    groups = (ImageArguments, SampleArguments, MeasureArguments, MachineArguments)
    parser = OneLineParser(groups, prog="evaluate.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("model", help="A pipeline's folder or Hub name, or samples: a folder of images or an .npz.")
    images, samples, measure, machine, names = parser.parse(argv)
    with one_line_errors(parser):
        name = images.run or names.model
        known = (Path(name) / INDEX_FILE).is_file()
        if images.run is not None and not known:
            raise ValueError(f"--run must be an output folder of train.py, but {name} has no {INDEX_FILE}")
        request = Request(model=names.model, **(vars(images) | vars(samples) | vars(measure)))
        if known:
            folder = ModelFolder.read(name)
            # The data that samples are compared with are those of the run that trained what draws them.
            request.settings = (folder if request.is_of_base else folder.upsampler or folder).settings
        evaluator = Evaluator(request)
        check_processes()
        use_cores(evaluator.accelerator.device, machine.num_cpu_threads)
        evaluator.evaluate()


if __name__ == "__main__":
    main(sys.argv[1:])
