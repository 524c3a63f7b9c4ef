"""The commands of diffusers' examples/text_to_image run on a Stable Diffusion 1.x as they are, but for its size."""

import shlex

import pytest
import torch
import yaml
from diffusers import PNDMScheduler, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from running import forget_accelerator, killed_at
from safetensors.torch import load_file
from stable_diffusion import make_pipeline
from transformers import CLIPConfig, CLIPImageProcessorPil

from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.hub.push import page_files
from ddpm_hf.settings.config import Config
from ddpm_hf.systems.plan import make_plan, stages_of
from ddpm_hf.training.device import make_accelerator
from ddpm_hf.training.start import train

# In README.md there, after `accelerate launch --mixed_precision="fp16" train_text_to_image.py`.
COMMAND = """
  --pretrained_model_name_or_path={base}
  --dataset_name={images}
  --use_ema
  --resolution=512 --center_crop --random_flip
  --train_batch_size=1
  --gradient_accumulation_steps=4
  --gradient_checkpointing
  --max_train_steps=15000
  --learning_rate=1e-05
  --max_grad_norm=1
  --lr_scheduler="constant" --lr_warmup_steps=0
  --output_dir={out}
"""
# What is given again wins.
SMALLER = "--resolution 16 --max_train_steps 2 --init_caption_from_labels 'a {}' --preview_inference_steps 2"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with all that CompVis/stable-diffusion-v1-4 has, tiny."""
    folder, pipeline = tmp_path_factory.mktemp("base"), make_pipeline(layers=3)
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    pipeline.scheduler = PNDMScheduler(**betas, set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1)
    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    pipeline.safety_checker = StableDiffusionSafetyChecker(
        CLIPConfig(text_config=tiny, vision_config={**tiny, "image_size": 16, "patch_size": 16}, projection_dim=8)
    )
    pipeline.feature_extractor = CLIPImageProcessorPil()
    pipeline.register_to_config(requires_safety_checker=True)
    pipeline.save_pretrained(folder)
    return folder


def settings(base, images, out, *flags: str) -> Config:
    forget_accelerator()
    command = COMMAND.format(base=base, images=images, out=out)
    return parse_training_arguments(["--system", "stable-diffusion", *shlex.split(f"{command} {SMALLER}"), *flags])


def test_train_text_to_image(base, image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as the launcher does, and CPUs have no fp16
    out = tmp_path / "out"
    train(settings(base, image_folder, out, "--noise_offset", "0.1", "--validation_prompts", "a cat", "two dogs"))
    for name in ("vae/diffusion_pytorch_model", "text_encoder/model"):
        before, after = (load_file(folder / f"{name}.safetensors") for folder in (base, out))
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before), name
    before, after = (load_file(folder / "unet/diffusion_pytorch_model.safetensors") for folder in (base, out))
    assert before.keys() == after.keys() and not torch.equal(before["conv_in.weight"], after["conv_in.weight"])
    pipe = StableDiffusionPipeline.from_pretrained(out)
    assert pipe.vae.config.scaling_factor == 0.18215 and pipe.scheduler.config.prediction_type == "epsilon"
    assert (pipe.scheduler.config.beta_start, pipe.scheduler.config.beta_schedule) == (0.00085, "scaled_linear")
    assert pipe("a cat", num_inference_steps=2).images[0].size == (16, 16)
    assert yaml.safe_load((out / "training_config.yaml").read_text())["mixed_precision"] == "bf16"
    card = (out / "README.md").read_text()
    assert "two dogs" in card, "the pictures drawn last"
    (finding,) = (each for each in ModelFolder.read(out).summary["doctor"] if each["name"] == "terminal-signal")
    assert "--init_from" in finding["change"] and "--beta" not in finding["change"], "what was not given"


def test_what_a_model_does_not_have_is_refused(base, image_folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`clip_skip` must be below the 3 layers of this text encoder, got 3"):
        train(settings(base, image_folder, tmp_path, "--clip_skip", "3"))
    with pytest.raises(ValueError, match="--text_rate is for --text_encoder train, got --text_encoder frozen"):
        train(settings(base, image_folder, tmp_path, "--text_rate", "1"))
    monkeypatch.delattr("peft.LoraConfig")
    with pytest.raises(ValueError, match="`lora_rank` needs an extra: pip install peft"):
        train(settings(base, image_folder, tmp_path, "--rank", "4"))


def test_clip_skip_is_that_of_stock(base, image_folder, tmp_path):
    config = settings(base, image_folder, tmp_path / "out", "--clip_skip", "2")
    system = make_plan(config, make_accelerator(config), *stages_of(config)).system
    system.pipeline(system.network).save_pretrained(tmp_path / "saved")
    saved = StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    whole = StableDiffusionPipeline.from_pretrained(base, scheduler=saved.scheduler, safety_checker=None)
    # Stock's `clip_skip` looks for the final norm where older versions of transformers had it.
    object.__setattr__(whole.text_encoder, "text_model", whole.text_encoder)
    # Without guidance, since stock skips no layers of the empty caption.
    call = {"prompt": "a cat", "num_inference_steps": 2, "guidance_scale": 1, "output_type": "np"}
    ours, theirs, unskipped = (
        pipe(**call, **more, generator=torch.Generator().manual_seed(0)).images
        for pipe, more in ((saved, {}), (whole, {"clip_skip": 2}), (whole, {}))
    )
    assert abs(ours - theirs).max() < 1e-5 < abs(ours - unskipped).max()


LORA = ("--rank", "2", "--learning_rate", "0.1", "--checkpointing_steps", "1", "--mixed_precision", "no")


def test_adapters_do_for_stock_what_the_saved_model_does(base, image_folder, tmp_path):
    out, killed = tmp_path / "out", tmp_path / "killed"
    train(settings(base, image_folder, out, *LORA))
    stock = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    fused = StableDiffusionPipeline.from_pretrained(out)
    stock.scheduler = fused.scheduler

    def drawn(pipe):
        generator = torch.Generator().manual_seed(0)
        return pipe("a cat", num_inference_steps=2, output_type="np", generator=generator).images

    plain = drawn(stock)
    stock.load_lora_weights(out)
    assert abs(drawn(stock) - drawn(fused)).max() < 1e-4 < 1e-2 < abs(drawn(stock) - plain).max()
    assert "pytorch_lora_weights.safetensors" in page_files(ModelFolder.read(out))
    adapters = load_file(out / "pytorch_lora_weights.safetensors")
    places = {name.partition(".lora.")[0].rpartition("attn")[2][2:] for name in adapters}
    assert places == {"to_q", "to_k", "to_v", "to_out.0"}

    with killed_at(2):
        train(settings(base, image_folder, killed, *LORA))
    for name in ("model", "ema"):
        state = load_file(killed / "checkpoint-1" / f"{name}.safetensors")
        assert len(state) == len(adapters) and all("lora_" in key for key in state), "nothing but adapters"
    train(settings(base, image_folder, killed, *LORA))
    again = load_file(killed / "pytorch_lora_weights.safetensors")
    assert adapters.keys() == again.keys() and all(torch.equal(adapters[name], again[name]) for name in adapters)
