"""Push a model folder to its page on the Hub in one commit: pipeline, card and pictures."""

import sys
from pathlib import Path

from ..hub.card import write_card
from ..hub.folder import ModelFolder
from ..hub.push import PushFailed, push
from ..outputs.publish import page_for
from ..pipelines.loading import load_pipeline
from ..settings.hub_arguments import PageArguments
from .parser import OneLineParser, one_line_errors


def main(argv: list[str]) -> None:
    """Check the folder, write its card and push it; a bad request becomes one line and exit status 2."""
    parser = OneLineParser(PageArguments, prog="push.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="An output folder of train.py, or any saved DDPM pipeline.")
    parser.refuse_retired(argv)
    arguments, names = parser.parse(argv)
    with one_line_errors(parser):
        ModelFolder.read(names.folder)
        load_pipeline(str(names.folder))  # raises if the weights do not match their config
        page = page_for(arguments, names.folder)
        write_card(names.folder, page.repo_id, page.license)
        try:
            print(f"model page: {push(names.folder, page, 'Push with ddpm_hf')}")
        except PushFailed as problem:
            raise ValueError(f"the model was not pushed: {problem}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
