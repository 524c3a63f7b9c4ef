"""scripts/train.py, whose main process publishes nothing before all others are gone: it hangs if they wait for it."""

import sys

import psutil

from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.outputs.publish import Publisher
from ddpm_hf.training.start import prepare

publish = Publisher.finish


def publish_last(self: Publisher) -> None:
    this = psutil.Process()
    others = [process for process in this.parent().children() if process != this]  # none if they are gone already
    _, waiting = psutil.wait_procs(others, timeout=60)
    if waiting:
        raise RuntimeError(f"{len(waiting)} processes wait for the main one")
    publish(self)


Publisher.finish = publish_last
prepare(parse_training_arguments(sys.argv[1:])).train()
