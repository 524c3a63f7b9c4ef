"""Pictures for captions by way of latents: the pixels of stock diffusers, from the same files."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from texts import write_encoder

from ddpm_hf.codecs.latents import LatentCodec
from ddpm_hf.pipelines.loading import load_pipeline
from ddpm_hf.sampling.generation import generate
from ddpm_hf.seeds import derive_seed

PROMPTS = ["a red apple", "🍎 Красное Яблоко", "  Ein GRÜNER Käse "]
CALLS = {
    "one": {"prompt": PROMPTS[0], "guidance_scale": 1.0},
    "one, guided": {"prompt": PROMPTS[1], "guidance_scale": 3.0},
    "three": {"prompt": PROMPTS, "guidance_scale": 1.0},
    "three, guided": {"prompt": PROMPTS, "guidance_scale": 3.0, "guidance_rescale": 0.5},
    "guided away": {"prompt": PROMPTS, "guidance_scale": 3.0, "negative_prompt": ["りんご", "", "apple"]},
}
# Its mask is of whole latents: inside one, stock draws what its corner says, and ours all of it.
HOLE = np.kron(np.eye(8, dtype=np.uint8) * 255, np.ones((2, 2), np.uint8))

STOCK = """
import json, os, sys
for name in [name for name in sys.modules if name.partition(".")[0] == "ddpm_hf"]:
    del sys.modules[name]  # those of the process from which this one is forked
sys.modules["ddpm_hf"] = None  # importing it raises ImportError
import numpy, torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image
from PIL import Image

calls, here = json.loads(sys.argv[1]), os.path.dirname(sys.argv[0])
photo, mask = (Image.open(f"{here}/{name}.png") for name in ("photo", "mask"))
for name, asked in calls.items():
    folder = f"{here}/{name}"
    whole = AutoPipelineForText2Image.from_pretrained(folder)
    again, part = (auto.from_pipe(whole) for auto in (AutoPipelineForImage2Image, AutoPipelineForInpainting))
    names = [type(pipe).__name__.removeprefix("StableDiffusion") for pipe in (whole, again, part)]
    assert names == ["Pipeline", "Img2ImgPipeline", "InpaintPipeline"], names
    drawn = {}
    for pipe in (whole, again, part):
        pipe.set_progress_bar_config(disable=True)
    for name, call in asked.items():
        more = {"num_inference_steps": 5, "output_type": "np"}
        drawn[name] = whole(**call, **more, generator=torch.Generator().manual_seed(7)).images
        call = {key: value for key, value in call.items() if key != "guidance_rescale"}
        count = len(drawn[name])
        given = {"image": [photo] * count, "generator": torch.Generator().manual_seed(8)}
        drawn[name + ", anew"] = again(**call, **more, **given, strength=0.61).images
        given["generator"] = torch.Generator().manual_seed(9)
        drawn[name + ", a part"] = part(**call, **more, **given, mask_image=[mask] * count).images
        for what, hole, strength in (("all", Image.new("L", (16, 16), 255), 1.0), ("half anew", mask, 0.61)):
            given = {"image": photo, "mask_image": hole, "generator": torch.Generator().manual_seed(10)}
            drawn[f"{name}, {what} of one"] = part(**call, **more, **given, strength=strength).images
    numpy.savez(folder + "/drawn.npz", **drawn)
"""


@pytest.mark.processes
def test_stock_draws_the_same_pixels_without_this_package(command, tiny_latent_pipeline, tmp_path):
    v = {"prediction_type": "v_prediction"}  # where rounding is not multiplied by 160 at the first step, as of epsilon
    of_encoders = {name: CALLS[name] for name in ("three", "three, guided")}
    calls = {name: CALLS for name in ("small", "large")} | dict.fromkeys(("bert", "clip", "t5"), of_encoders)
    for variance in ("small", "large"):
        tiny_latent_pipeline(variance_type=f"fixed_{variance}", **v).save_pretrained(tmp_path / variance)
    for kind in ("bert", "clip", "t5"):
        encoder = write_encoder(tmp_path / f"{kind} alone", kind)
        tiny_latent_pipeline(encoder=encoder, **v).save_pretrained(tmp_path / kind)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    photo.save(tmp_path / "photo.png")
    mask = Image.fromarray(HOLE)
    mask.save(tmp_path / "mask.png")
    (tmp_path / "stock.py").write_text(STOCK)
    stock = command(tmp_path / "stock.py", json.dumps(calls))
    assert stock.wait() == 0, stock.err
    for frightening in ("safety", "deprecat", "not expected", "outdated"):
        assert frightening not in stock.err.lower(), stock.err
    for name, asked in calls.items():
        pipeline = load_pipeline(str(tmp_path / name))
        pipeline.set_progress_bar_config(disable=True)
        with np.load(tmp_path / name / "drawn.npz") as drawn:
            assert drawn["three"].std() > 0.05
            assert np.abs(drawn["three"] - drawn["three, guided"]).max() > 0.01, "captions matter"
            for what, call in asked.items():
                more = {"num_inference_steps": 5, "output_type": "np"}
                seven, eight, nine = (torch.Generator().manual_seed(seed) for seed in (7, 8, 9))
                plain = {key: value for key, value in call.items() if key != "guidance_rescale"}
                count = 1 if isinstance(call["prompt"], str) else 3
                given = {"image": [photo] * count}
                ours = {
                    what: pipeline(**call, **more, generator=seven),
                    f"{what}, anew": pipeline(**plain, **more, **given, strength=0.61, generator=eight),
                    f"{what}, a part": pipeline(**plain, **more, **given, mask_image=mask, generator=nine),
                }
                for one, hole, strength in (("all", Image.new("L", (16, 16), 255), 1.0), ("half anew", mask, 0.61)):
                    given = {"image": photo, "mask_image": hole, "generator": torch.Generator().manual_seed(10)}
                    ours[f"{what}, {one} of one"] = pipeline(**plain, **more, **given, strength=strength)
                for which, result in ours.items():
                    np.testing.assert_allclose(
                        result.images, drawn[which], atol=1e-4, rtol=0, err_msg=f"{name}, {which}"
                    )


def test_the_codec_is_the_autoencoder_and_a_draw_is_that_of_seed_and_position(tiny_latent_pipeline):
    pipeline = tiny_latent_pipeline()
    pipeline.vae.register_to_config(scaling_factor=0.5)
    codec = LatentCodec((4, 8, 8), pipeline.vae, seed=3)
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        posterior = pipeline.vae.encode(images / 127.5 - 1).latent_dist
        decoded = pipeline.vae.decode(posterior.mean).sample
    torch.testing.assert_close(codec.encode({"images": images}), 0.5 * posterior.mean)
    torch.testing.assert_close(codec.decode(0.5 * posterior.mean), (decoded / 2 + 0.5).clamp(0, 1))
    drawn = codec.encode({"images": images, "positions": range(40, 43)})
    for k, position in enumerate(range(40, 43)):
        generator = torch.Generator().manual_seed(derive_seed(3, "latent", position))
        noise = torch.randn((4, 8, 8), generator=generator)
        torch.testing.assert_close(drawn[k], 0.5 * (posterior.mean + posterior.std * noise)[k])
    assert posterior.std.min() > 0.01


def test_the_same_picture_for_the_same_seed_and_prompt_at_any_batch_size(tiny_latent_pipeline):
    pipeline = tiny_latent_pipeline()
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    asked = {"prompt": [PROMPTS[k % 3] for k in range(5)]}
    for given in ({}, {"image": photo, "strength": 0.5}, {"image": photo, "mask_image": Image.fromarray(HOLE)}):
        call = {"guidance_scale": 3.0, "num_inference_steps": 4, **given}
        drawn = [
            np.concatenate([images for _, images in generate(pipeline, range(5), 0, size, asked, **call)]).astype(int)
            for size in (1, 5)
        ]
        assert np.abs(drawn[0] - drawn[1]).max() <= 1 and drawn[0].std() > 10
        assert np.abs(drawn[0][0] - drawn[0][3]).max() > 1, "another draw of the same words"


def test_what_cannot_be_asked_for(tiny_latent_pipeline):
    pipeline = tiny_latent_pipeline()
    photo = Image.new("RGB", (16, 16))
    for call, words in (
        ({"strength": 0.5}, "`strength` must be left out without `image`, got 0.5"),
        ({"image": photo, "strength": 0.1}, "`strength` must be at most 1 and leave one of 4 steps, got 0.1"),
        ({"image": photo, "strength": 1.5}, "`strength` must be at most 1"),
        ({"image": photo.resize((8, 8))}, "`image` must be a PIL image of the model's 16x16 pixels, got 8x8"),
    ):
        with pytest.raises(ValueError, match=words):
            pipeline("a red apple", num_inference_steps=4, **call)


def test_parts_that_do_not_fit_are_named(tiny_latent_pipeline, tmp_path):
    pipeline = tiny_latent_pipeline()
    for part, change, words in (
        ("vae", {"latent_channels": 3}, "vae must have latents of 4 channels, as the unet expects, got 3"),
        ("vae", {"out_channels": 1}, "vae must have as many outputs as its 3 inputs, got 1"),
        ("vae", {"shift_factor": 0.1}, "vae must have no shift_factor, which stock ignores, got 0.1"),
    ):
        before = {name: getattr(pipeline, part).config[name] for name in change}
        getattr(pipeline, part).register_to_config(**change)
        with pytest.raises(ValueError, match=words):
            pipeline.check_parts()
        getattr(pipeline, part).register_to_config(**before)
    pipeline.tokenizer.model_max_length = int(1e30)
    with pytest.raises(ValueError, match="tokenizer must have a model_max_length of at most 512"):
        pipeline.check_parts()


def test_its_sampler_may_be_any_of_diffusers_as_in_stock(tiny_latent_pipeline, tmp_path):
    ours = tiny_latent_pipeline()
    stock = StableDiffusionPipeline(**ours.components, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)
    ours.scheduler = stock.scheduler = DDIMScheduler.from_config(ours.scheduler.config, timestep_spacing="trailing")
    call = {"prompt": PROMPTS, "num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "np"}
    expected, found = (each(**call, generator=torch.Generator().manual_seed(1)).images for each in (stock, ours))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
