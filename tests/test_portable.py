"""Saved files name diffusers' classes; that a process without this package draws the same images: hub/test_push.py."""

import json

import diffusers
import pytest
import torch

import ddpm_hf
from ddpm_hf import DDPMPipeline, DDPMUNet2D, LinearDDPMScheduler


def index_of(folder) -> dict:
    return json.loads((folder / "model_index.json").read_text())


def class_name_in(file) -> str:
    return json.loads(file.read_text())["_class_name"]


def test_every_saved_file_names_stock_classes_and_no_key_of_ours(tiny_pipeline, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    assert index_of(tmp_path) == {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    assert class_name_in(tmp_path / "unet" / "config.json") == "UNet2DModel"
    assert class_name_in(tmp_path / "scheduler" / "scheduler_config.json") == "DDPMScheduler"
    with torch.device("meta"):
        stock_unet = diffusers.UNet2DModel()
    for component, stock in (("unet", stock_unet), ("scheduler", diffusers.DDPMScheduler())):
        file = next((tmp_path / component).glob("*config.json"))
        keys = {key for key in json.loads(file.read_text()) if not key.startswith("_")}
        assert keys == {key for key in stock.config if not key.startswith("_")}


def test_an_index_that_names_the_package_loads_in_stock_classes_once_imported(tiny_pipeline, tmp_path):
    ours = tiny_pipeline()
    stock = diffusers.DDPMPipeline(ours.unet, ours.scheduler)
    stock.save_pretrained(tmp_path)
    assert index_of(tmp_path)["unet"] == ["ddpm_hf", "DDPMUNet2D"]
    for loader in (diffusers.DDPMPipeline, diffusers.DiffusionPipeline, DDPMPipeline):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded.unet) is DDPMUNet2D and type(loaded.scheduler) is LinearDDPMScheduler


def test_class_names_are_the_one_extra_key_and_come_back_as_numbers(tiny_pipeline, tmp_path):
    tiny_pipeline(num_classes=2, id2label={0: "cat", 1: "dog"}).save_pretrained(tmp_path)
    extra = set(index_of(tmp_path)) - {"_class_name", "_diffusers_version", "scheduler", "unet"}
    assert extra == {"id2label"} and index_of(tmp_path)["id2label"] == {"0": "cat", "1": "dog"}
    assert DDPMPipeline.from_pretrained(tmp_path).id2label == {0: "cat", 1: "dog"}
    diffusers.DDPMPipeline.from_pretrained(tmp_path)


def test_a_users_subclass_keeps_its_own_name():
    class Mine(LinearDDPMScheduler):
        pass

    Mine.__module__ = "somewhere.else"
    assert json.loads(Mine().to_json_string())["_class_name"] == "Mine"
    assert json.loads(LinearDDPMScheduler().to_json_string())["_class_name"] == "DDPMScheduler"


def test_registration_can_be_repeated_and_refuses_a_strangers_name(monkeypatch):
    ddpm_hf.register()
    assert diffusers.DDPMUNet2D is DDPMUNet2D
    monkeypatch.setattr(diffusers, "DDPMUNet2D", object)
    with pytest.raises(RuntimeError, match="DDPMUNet2D"):
        ddpm_hf.register()
