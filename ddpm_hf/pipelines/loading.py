"""Load a pipeline from a folder or the Hub, or say in one line why it cannot be loaded."""

from pathlib import Path
from typing import Any

from diffusers.utils.logging import disable_progress_bar

from ..portable import stock_component
from .ddpm import DDPMPipeline


def load_pipeline(name: str) -> DDPMPipeline:
    """Load a DDPM pipeline in diffusers' format, with our classes. Never runs code from the repository.

    Args:
        name: a folder with a `model_index.json`, or `user/repository` on the Hub.

    Raises:
        ValueError: there is no such pipeline, it is not a DDPM, it requires custom code, or its weights do not match
            its config.
    """
    if Path(name).is_dir() and not (Path(name) / DDPMPipeline.config_name).is_file():
        raise ValueError(f"pipeline {name!r} has no {DDPMPipeline.config_name}")
    try:
        check_index(DDPMPipeline.load_config(name), name)
        disable_progress_bar()  # of two files
        return DDPMPipeline.from_pretrained(name)
    except OSError as problem:
        raise ValueError(f"cannot load pipeline {name!r} from a folder or the Hub: {problem}") from None


def check_index(index: dict[str, Any], name: str) -> None:
    """Raises ValueError if a `model_index.json` is not that of a DDPM pipeline, or requires code outside diffusers.

    Args:
        index: content of the file, or the result of `DDPMPipeline.load_config`.
        name: of the pipeline, for the message.
    """
    class_name = index.get("_class_name")
    if isinstance(class_name, list):
        _refuse_code(name, "the pipeline", class_name)
    if class_name != DDPMPipeline.__name__:
        raise ValueError(f"pipeline {name!r} must be a DDPMPipeline, got {class_name}")
    for component in ("unet", "scheduler"):
        pair = index.get(component)
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"pipeline {name!r} has no {component} in {DDPMPipeline.config_name}")
        if stock_component(*pair)[0] != "diffusers":
            _refuse_code(name, component, pair)


def _refuse_code(name: str, component: str, pair: list[str]) -> None:
    raise ValueError(
        f"pipeline {name!r} requires code outside diffusers, which is never run here: {component} is {pair[1]} from "
        f"{pair[0]!r}; if you trust it, load it in Python with trust_remote_code=True"
    )
