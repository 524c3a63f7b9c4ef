"""Pipelines that stock diffusers alone can load: made so after the fact."""

import json
import os
from pathlib import Path
from typing import Any, overload

import diffusers

from ..pipelines.ddpm import DDPMPipeline
from ..pipelines.loading import check_index
from ..portable import STOCK_CLASS_NAMES, stock_component
from .folder import INDEX_FILE, component_folder


@overload
def make_portable(folder_or_pipeline: diffusers.DDPMPipeline) -> DDPMPipeline: ...
@overload
def make_portable(folder_or_pipeline: str | os.PathLike) -> Path: ...
def make_portable(folder_or_pipeline):
    """Let a pipeline with our components be loaded by people who have diffusers alone.

    A `ddpm_hf.DDPMPipeline` is saved and pushed in that form anyway. This is for pipelines of diffusers' own class
    that were built with our components, and for the folders they were saved to.

    Args:
        folder_or_pipeline: a pipeline in memory, or a folder with a `model_index.json`, which is rewritten in place.

    Returns:
        A pipeline of ours with the same components, for a pipeline; the folder, for a folder.

    Raises:
        ValueError: if it is no DDPM pipeline, or has components that are neither diffusers' nor ours.
    """
    if isinstance(folder_or_pipeline, DDPMPipeline):
        return folder_or_pipeline
    if isinstance(folder_or_pipeline, diffusers.DDPMPipeline):
        pipeline = DDPMPipeline(folder_or_pipeline.unet, folder_or_pipeline.scheduler)
        check_index(json.loads(pipeline.to_json_string()), type(folder_or_pipeline).__name__)
        return pipeline
    if not isinstance(folder_or_pipeline, str | os.PathLike):
        raise ValueError(f"folder_or_pipeline is a {type(folder_or_pipeline).__name__}; give a folder or DDPMPipeline")
    folder = Path(folder_or_pipeline)
    if not (folder / INDEX_FILE).is_file():
        raise ValueError(f"{folder} is no pipeline folder: it has no {INDEX_FILE}")
    index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    check_index(index, str(folder))
    for component, config_name in (("unet", "config.json"), ("scheduler", "scheduler_config.json")):
        index[component] = stock_component(*index[component])
        file = component_folder(folder, component) / config_name
        config = json.loads(file.read_text(encoding="utf-8"))
        config["_class_name"] = STOCK_CLASS_NAMES.get(config["_class_name"], config["_class_name"])
        _replace(file, config)
    _replace(folder / INDEX_FILE, index)
    return folder


def _replace(file: Path, content: dict[str, Any]) -> None:
    beside = file.with_name(f".{file.name}.partial")
    beside.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(beside, file)
