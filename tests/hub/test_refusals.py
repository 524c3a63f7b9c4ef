"""What is loaded fits entirely or not at all, and no code of a repository runs; an index of ours can be repaired."""

import json

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

import ddpm_hf
from ddpm_hf import DDPMPipeline, DDPMUNet2D, LinearDDPMScheduler, make_portable
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.pipelines.loading import load_pipeline


@pytest.fixture
def folder(tiny_pipeline, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def weights_file(folder):
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


def edit_json(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("how", [DDPMPipeline.from_pretrained, lambda path: load_pipeline(str(path))])
def test_weights_that_do_not_fit_are_listed_and_never_filled_in(folder, how):
    weights = load_file(weights_file(folder))
    weights["strange"] = weights.pop("conv_norm_out.weight")
    weights["conv_in.bias"] = torch.zeros(5)
    save_file(weights, weights_file(folder), metadata={"format": "pt"})
    with pytest.raises(ValueError) as problem:
        how(folder)
    words = ("missing: conv_norm_out.weight", "unknown: strange", "conv_in.bias ([5], not [8])", str(folder))
    assert all(word in str(problem.value) for word in words), problem.value


def test_other_shapes_are_allowed_only_on_request(folder):
    weights = load_file(weights_file(folder)) | {"conv_in.bias": torch.zeros(5)}
    save_file(weights, weights_file(folder), metadata={"format": "pt"})
    with pytest.raises(ValueError, match="conv_in.bias"):
        DDPMUNet2D.from_pretrained(folder, subfolder="unet")
    unet, info = DDPMUNet2D.from_pretrained(
        folder, subfolder="unet", ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert [key for key, *_ in info["mismatched_keys"]] == ["conv_in.bias"]
    assert torch.equal(unet.conv_in.weight, weights["conv_in.weight"])


def test_a_config_of_another_class_is_refused_by_name(folder):
    edit_json(folder / "unet" / "config.json", _class_name="UNet2DConditionModel")
    for load in (DDPMPipeline.from_pretrained, lambda path: DDPMUNet2D.load_config(path / "unet")):
        with pytest.raises(ValueError, match="a config that DDPMUNet2D can load, got UNet2DConditionModel"):
            load(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": ["pipeline", "Evil"]}, "the pipeline is Evil from 'pipeline'"),
        ({"unet": ["evil", "EvilUNet"]}, "unet is EvilUNet from 'evil'"),
        ({"scheduler": ["evil", "EvilScheduler"]}, "scheduler is EvilScheduler from 'evil'"),
        (
            {"_class_name": "LDMPipeline"},
            "must be a DDPMPipeline or .*IFSuperResolutionPipeline.*, got LDMPipeline",
        ),
        ({"unet": None}, "no unet"),
        ({"vae": ["diffusers", "AutoencoderKL"]}, "has a vae in model_index.json, which no DDPMPipeline has"),
    ],
)
def test_an_index_of_another_kind_or_with_code_of_its_own_is_refused(folder, changes, words):
    trace = folder.parent / "trace"
    code = f"from pathlib import Path\nPath({str(trace)!r}).touch()\n"
    for place in ("pipeline.py", "unet/evil.py", "scheduler/evil.py"):
        (folder / place).write_text(code)
    edit_json(folder / "model_index.json", **changes)
    for load in (lambda: load_pipeline(str(folder)), lambda: ModelFolder.read(folder), lambda: make_portable(folder)):
        with pytest.raises(ValueError, match=words):
            load()
    if "from" in words:
        with pytest.raises(ValueError, match="trust_remote_code"):
            DDPMPipeline.from_pretrained(folder)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("scheduler/scheduler_config.json", {"variance_type": "learned_range"}, "unet must have 6 output .* got 3"),
        ("unet/config.json", {"sample_size": None}, "unet has no sample_size"),
        ("model_index.json", {"id2label": {"0": "cat"}}, "unet must have an embedding for each of 1 classes.* None"),
    ],
)
def test_components_that_do_not_fit_each_other_are_refused(folder, file, changes, words):
    edit_json(folder / file, **changes)
    with pytest.raises(ValueError, match=f"{folder}' has components that do not fit each other: {words}"):
        load_pipeline(str(folder))


@pytest.mark.parametrize("files", [[], ["config.json"]])
def test_a_folder_that_is_no_pipeline_is_named(tmp_path, files):
    for name in files:
        (tmp_path / name).write_text("{}")
    for load in (load_pipeline, ModelFolder.read, make_portable):
        with pytest.raises(ValueError, match=f"{tmp_path}.*no model_index.json"):
            load(str(tmp_path))


def test_the_layout_of_the_first_repositories_loads(tiny_pipeline, tmp_path):
    """google/ddpm-*: all files beside the index, pickled weights, attention layers under their first names."""
    pipeline = tiny_pipeline()
    index = {"_class_name": "DDPMPipeline", "_diffusers_version": "0.1.1"}
    index |= {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    keys = (
        "act_fn block_out_channels center_input_sample down_block_types downsample_padding flip_sin_to_cos freq_shift "
    )
    keys += "in_channels layers_per_block mid_block_scale_factor norm_eps norm_num_groups out_channels sample_size "
    keys += "time_embedding_type up_block_types attention_head_dim"
    unet = {key: pipeline.unet.config[key] for key in keys.split()} | {"_class_name": "UNet2DModel"}
    scheduler = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02}
    scheduler |= {
        "beta_schedule": "linear",
        "clip_sample": True,
        "variance_type": "fixed_large",
        "trained_betas": None,
    }
    for name, content in (("model_index", index), ("config", unet), ("scheduler_config", scheduler)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    first_names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    weights = pipeline.unet.state_dict()
    for now, then in first_names.items():
        weights = {key.replace(now, then): value for key, value in weights.items()}
    assert any(".proj_attn." in key for key in weights)
    torch.save(weights, tmp_path / "diffusion_pytorch_model.bin")

    loaded = DDPMPipeline.from_pretrained(tmp_path)
    assert type(loaded.unet) is DDPMUNet2D and type(loaded.scheduler) is LinearDDPMScheduler
    assert loaded.scheduler.config.variance_type == "fixed_large"
    there = loaded.unet.state_dict()
    assert all(torch.equal(value, there[key]) for key, value in pipeline.unet.state_dict().items())
    assert ModelFolder.read(tmp_path).configs == json.loads(json.dumps({"scheduler": scheduler, "unet": unet}))


def stock_index(folder) -> bool:
    index = json.loads((folder / "model_index.json").read_text())
    return [index["unet"], index["scheduler"]] == [["diffusers", "UNet2DModel"], ["diffusers", "DDPMScheduler"]]


@pytest.mark.parametrize("spelling", ["ddpm_hf", "full path"])
def test_a_folder_that_names_the_package_is_made_portable(tiny_pipeline, tmp_path, spelling):
    pipeline = tiny_pipeline()
    diffusers.DDPMPipeline(pipeline.unet, pipeline.scheduler).save_pretrained(tmp_path)
    assert not stock_index(tmp_path)
    if spelling == "full path":  # what diffusers writes where the package was not registered
        unet, scheduler = ["ddpm_hf.models.unet", "DDPMUNet2D"], ["ddpm_hf.diffusion.scheduler", "LinearDDPMScheduler"]
        edit_json(tmp_path / "model_index.json", unet=unet, scheduler=scheduler)
        edit_json(tmp_path / "unet" / "config.json", _class_name="DDPMUNet2D")
    assert make_portable(tmp_path) == tmp_path and stock_index(tmp_path)
    assert json.loads((tmp_path / "unet" / "config.json").read_text())["_class_name"] == "UNet2DModel"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    make_portable(str(tmp_path))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert type(diffusers.DDPMPipeline.from_pretrained(tmp_path).unet) is diffusers.UNet2DModel


def test_a_pipeline_is_made_portable(tiny_pipeline, tmp_path):
    ours = tiny_pipeline()
    stock = diffusers.DDPMPipeline(ours.unet, ours.scheduler)
    portable = make_portable(stock)
    assert portable.unet is ours.unet and portable.scheduler is ours.scheduler and make_portable(ours) is ours
    portable.save_pretrained(tmp_path)
    assert stock_index(tmp_path)


def test_what_cannot_be_made_portable_is_refused(tiny_pipeline):
    class Mine(LinearDDPMScheduler):
        pass

    Mine.__module__ = "somewhere.else"
    with pytest.raises(ValueError, match="scheduler is Mine from 'somewhere.else'"):
        make_portable(diffusers.DDPMPipeline(tiny_pipeline().unet, Mine()))
    with pytest.raises(
        ValueError, match="`folder_or_pipeline` must be a folder or a DDPMPipeline or IFPipeline or .*, got int"
    ):
        make_portable(3)
    assert ddpm_hf.make_portable is make_portable
