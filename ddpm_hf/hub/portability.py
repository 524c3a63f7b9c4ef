"""Convert pipelines so that stock diffusers can load them."""

import json
import os
from pathlib import Path
from typing import overload

import diffusers

from ..files import write_json
from ..pipelines.ddpm import DDPMPipeline
from ..pipelines.loading import PIPELINES, check_index, config_file
from ..portable import INDEX_FILE, STOCK_CLASS_NAMES, components, stock_component
from .folder import ModelFolder


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
        The folder, or the same components in the class of `pipelines.loading.PIPELINES`.

    Raises:
        ValueError: the class is unknown, or the components are not those it has, or from elsewhere.
    """
    if isinstance(folder_or_pipeline, diffusers.DiffusionPipeline):
        index = json.loads(folder_or_pipeline.to_json_string())
        own_class = check_index(index, type(folder_or_pipeline).__name__)
        is_own = isinstance(folder_or_pipeline, own_class)
        return folder_or_pipeline if is_own else own_class(**folder_or_pipeline.components)
    if not isinstance(folder_or_pipeline, str | os.PathLike):
        kind = type(folder_or_pipeline).__name__
        raise ValueError(f"`folder_or_pipeline` must be a folder or a {' or '.join(PIPELINES)}, got {kind}.")
    model = ModelFolder.read(folder_or_pipeline)
    for component, config in model.configs.items():
        if config.get("_class_name") in STOCK_CLASS_NAMES:
            stock = {"_class_name": STOCK_CLASS_NAMES[config["_class_name"]]}
            write_json(config_file(model.path, component), config | stock)
    stock = {component: stock_component(*pair) for component, pair in components(model.index).items()}
    write_json(model.path / INDEX_FILE, model.index | stock)
    return model.path
