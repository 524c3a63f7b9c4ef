"""A pipeline by folder or Hub name, or one sentence on why it cannot be had."""

from pathlib import Path
from typing import Any

from diffusers.utils.logging import disable_progress_bar

from ..portable import stock_component
from .ddpm import DDPMPipeline


def load_pipeline(name: str) -> DDPMPipeline:
    """Load a DDPM pipeline in diffusers' format, with our classes. No code of the repository is ever run.

    Args:
        name: a folder that holds `model_index.json`, or `user/repository` on the Hub.

    Raises:
        ValueError: if there is no such pipeline, it is of another kind, asks for code of its own, or has weights that
            do not fit.
    """
    if Path(name).is_dir() and not (Path(name) / DDPMPipeline.config_name).is_file():
        raise ValueError(f"pipeline {name!r} is no pipeline folder: it has no {DDPMPipeline.config_name}")
    try:
        check_index(DDPMPipeline.load_config(name), name)
        disable_progress_bar()  # of two files
        return DDPMPipeline.from_pretrained(name)
    except OSError as problem:
        raise ValueError(f"pipeline {name!r} is neither a folder nor a repository within reach: {problem}") from None


def check_index(index: dict[str, Any], name: str) -> None:
    """Raises ValueError if the content of a `model_index.json` is that of no DDPM, or asks for code beside diffusers'.

    Args:
        index: as `DDPMPipeline.load_config` gives it, or as it stands in the file.
        name: of the pipeline, for the message.
    """
    class_name = index.get("_class_name")
    if isinstance(class_name, list):
        _refuse_code(name, "the pipeline", class_name)
    if class_name != DDPMPipeline.__name__:
        raise ValueError(f"pipeline {name!r} is a {class_name}; only a DDPMPipeline can be used here")
    for component in ("unet", "scheduler"):
        pair = index.get(component)
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"pipeline {name!r} has no {component} in its {DDPMPipeline.config_name}")
        if stock_component(*pair)[0] != "diffusers":
            _refuse_code(name, component, pair)


def _refuse_code(name: str, component: str, pair: list[str]) -> None:
    raise ValueError(
        f"pipeline {name!r} asks for code that is not diffusers': {component} is {pair[1]} from {pair[0]!r}. No code "
        "of a repository is run here; if you trust it, load it in Python with trust_remote_code=True"
    )
