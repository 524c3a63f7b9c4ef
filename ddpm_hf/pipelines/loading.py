"""A pipeline by folder or Hub name, or one sentence on why it cannot be had."""

from pathlib import Path

from .ddpm import DDPMPipeline


def load_pipeline(name: str) -> DDPMPipeline:
    """Load a DDPM pipeline in diffusers' format, with our classes.

    Args:
        name: a folder that holds `model_index.json`, or `user/repository` on the Hub.

    Raises:
        ValueError: if there is no such pipeline or it is of another kind.
    """
    if Path(name).is_dir() and not (Path(name) / DDPMPipeline.config_name).is_file():
        raise ValueError(f"pipeline {name!r} is no pipeline folder: it has no {DDPMPipeline.config_name}")
    try:
        class_name = DDPMPipeline.load_config(name).get("_class_name")
        if class_name != "DDPMPipeline":
            raise ValueError(f"pipeline {name!r} is a {class_name}; only a DDPMPipeline can be used here")
        return DDPMPipeline.from_pretrained(name)
    except OSError as problem:
        raise ValueError(f"pipeline {name!r} is neither a folder nor a repository within reach: {problem}") from None
