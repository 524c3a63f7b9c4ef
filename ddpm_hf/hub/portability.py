"""Convert pipelines so that stock diffusers can load them."""

import json
import os
from pathlib import Path
from typing import overload

import diffusers

from ..files import write_json
from ..pipelines.ddpm import DDPMPipeline
from ..pipelines.loading import check_index
from ..portable import STOCK_CLASS_NAMES, stock_component
from .folder import INDEX_FILE, component_folder


@overload
def make_portable(folder_or_pipeline: diffusers.DDPMPipeline) -> DDPMPipeline: ...
@overload
def make_portable(folder_or_pipeline: str | os.PathLike) -> Path: ...
def make_portable(folder_or_pipeline):
    """Make a pipeline with our components loadable with stock diffusers.

    Needed only for a `diffusers.DDPMPipeline` built with our components, or a folder it was saved to: a
    `ddpm_hf.DDPMPipeline` is always saved and pushed in stock form.

    Args:
        folder_or_pipeline: a pipeline, or a folder with a `model_index.json`, which is rewritten in place.

    Returns:
        A `ddpm_hf.DDPMPipeline` with the same components, or the folder.

    Raises:
        ValueError: it is not a DDPM pipeline, or a component is from neither diffusers nor this package.
    """
    if isinstance(folder_or_pipeline, DDPMPipeline):
        return folder_or_pipeline
    if isinstance(folder_or_pipeline, diffusers.DDPMPipeline):
        pipeline = DDPMPipeline(folder_or_pipeline.unet, folder_or_pipeline.scheduler)
        check_index(json.loads(pipeline.to_json_string()), type(folder_or_pipeline).__name__)
        return pipeline
    if not isinstance(folder_or_pipeline, str | os.PathLike):
        kind = type(folder_or_pipeline).__name__
        raise ValueError(f"`folder_or_pipeline` must be a folder or a DDPMPipeline, got {kind}.")
    folder = Path(folder_or_pipeline)
    if not (folder / INDEX_FILE).is_file():
        raise ValueError(f"`folder_or_pipeline` {folder} has no {INDEX_FILE}.")
    index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    check_index(index, str(folder))
    for component, config_name in (("unet", "config.json"), ("scheduler", "scheduler_config.json")):
        index[component] = stock_component(*index[component])
        file = component_folder(folder, component) / config_name
        config = json.loads(file.read_text(encoding="utf-8"))
        config["_class_name"] = STOCK_CLASS_NAMES.get(config["_class_name"], config["_class_name"])
        write_json(file, config)
    write_json(folder / INDEX_FILE, index)
    return folder
