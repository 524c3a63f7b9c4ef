"""A pipeline with other components than a DDPM's is read, made portable, carded and pushed by its index alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from loopback_hub import TOKEN
from safetensors.torch import load_file
from stable_diffusion import COMPONENTS, make_pipeline

from ddpm_hf import make_portable
from ddpm_hf.hub.card import write_card
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.hub.push import page_files
from ddpm_hf.pipelines.fingerprint import weights_fingerprint
from ddpm_hf.pipelines.loading import load_pipeline


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def edit_index(folder, **changes):
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_all_components_are_read_made_portable_and_loaded(folder):
    assert ModelFolder.read(folder).configs.keys() == COMPONENTS
    index = json.loads((folder / "model_index.json").read_text())
    assert index["scheduler"] == ["ddpm_hf", "LinearDDPMScheduler"] and index["safety_checker"] == [None, None]
    make_portable(folder)
    expected = index | {"scheduler": ["diffusers", "DDPMScheduler"]}
    assert json.loads((folder / "model_index.json").read_text()) == expected
    loaded = load_pipeline(str(folder))
    for name in ("vae", "text_encoder", "unet"):
        state = getattr(loaded, name).state_dict()
        weights = load_file(next((folder / name).glob("*.safetensors")))
        assert all(torch.equal(state[key], value) for key, value in weights.items()), name
    assert make_portable(loaded) is loaded


def test_the_page_has_what_was_saved_and_no_pickles_or_code(folder):
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in ("text_encoder/pytorch_model.bin", "unet/evil.py", "vae/notes.txt", "prior/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    card = ModelCard.load(write_card(folder, "alice/tiny"))
    assert card.data.pipeline_tag == "text-to-image" and "stable-diffusion" in card.data.tags
    assert "diffusion probabilistic model" not in card.text and "## Limits" in card.text
    assert page_files(ModelFolder.read(folder)).keys() == there | {"README.md"}
    (folder / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no safetensors weights of its text_encoder"):
        page_files(ModelFolder.read(folder))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vae": [None, None]}, "has no vae in model_index.json"),
        ({"prior": ["diffusers", "PriorTransformer"]}, "has a prior in model_index.json, which no StableDiff"),
        ({"tokenizer": ["evil", "Tokenizer"]}, "tokenizer is Tokenizer from 'evil'"),
        ({"_class_name": "Cascade"}, "must be a DDPMPipeline or IFPipeline or .*usionPipeline or .*, got Cascade"),
    ],
)
def test_an_index_with_other_components_than_its_class_is_refused(folder, changes, words):
    edit_index(folder, **changes)
    for use in (load_pipeline, ModelFolder.read, make_portable):
        with pytest.raises(ValueError, match=words):
            use(str(folder))


def test_a_component_without_files_is_named(folder):
    shutil.rmtree(folder / "vae")
    for use in (load_pipeline, ModelFolder.read, make_portable):
        with pytest.raises(ValueError, match="model has no config of its vae"):
            use(str(folder))


def test_parts_of_different_widths_are_refused(folder):
    make_pipeline(width=24).save_pretrained(folder)
    with pytest.raises(ValueError, match="do not fit each other: text_encoder must have states of 24 channels"):
        load_pipeline(str(folder))


def test_the_fingerprint_is_of_all_networks():
    pipeline = make_pipeline()
    prints = {weights_fingerprint(pipeline)}
    assert prints == {weights_fingerprint(make_pipeline())}
    for network in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        with torch.no_grad():
            next(network.parameters()).flatten()[0] += 1
        prints.add(weights_fingerprint(pipeline))
    assert len(prints) == 4


@pytest.mark.processes
def test_a_page_takes_another_kind_of_model(saved, tiny_pipeline, tmp_path, hub, run_python):
    """Both arrive whole, stock diffusers draws from the first, and nothing of it is left beside the second."""
    tiny_pipeline().save_pretrained(tmp_path / "ddpm")
    code = f"""
    del sys.modules["ddpm_hf"]
    import torch
    from diffusers import StableDiffusionPipeline
    from ddpm_hf import make_portable
    from ddpm_hf.hub.access import open_page
    from ddpm_hf.hub.card import write_card
    from ddpm_hf.hub.push import push

    page = open_page("tiny", private=False, license=None, token_file=None)
    shutil.copytree({str(saved)!r}, "model")
    for folder in (make_portable("model"), {str(tmp_path / "ddpm")!r}):
        write_card(folder, page.repo_id)
        push(folder, page, "another model")
        if folder != {str(tmp_path / "ddpm")!r}:
            for place in ("alice/tiny", "model"):
                pipeline = StableDiffusionPipeline.from_pretrained(place)
                pipeline.set_progress_bar_config(disable=True)
                drawn = pipeline("a", 16, 16, num_inference_steps=2, generator=torch.Generator().manual_seed(0))
                results[place] = torch.tensor(list(drawn.images[0].tobytes())).tolist()
    """
    (results,) = run_python(code, HF_TOKEN=TOKEN, PYTHONPATH=str(Path(__file__).parent))
    assert results["alice/tiny"] == results["model"] and len(set(results["model"])) > 10
    _, first, second = (set(commit) for commit in hub.repos["alice/tiny"].commits.values())
    assert {name.partition("/")[0] for name in first if "/" in name} == COMPONENTS
    assert {name.partition("/")[0] for name in second if "/" in name} == {"unet", "scheduler"}
    assert hub.surprises == []
