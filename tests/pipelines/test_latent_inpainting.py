"""A part of a picture by a network of nine channels: stock's pixels, and what such a network is trained on."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from ddpm_hf.conditions.condition import tell
from ddpm_hf.conditions.hole import HoleBeside
from ddpm_hf.diffusion.losses import DiffusionLoss
from ddpm_hf.pipelines.latent_inpainting import LatentInpaintingPipeline
from ddpm_hf.pipelines.loading import for_inpainting, load_pipeline
from ddpm_hf.seeds import derive_seed
from ddpm_hf.systems.latent_inpainting import widened

PROMPTS = ["a red apple", "ein Käse", "🍎"]
CALLS = {
    "one": {"prompt": PROMPTS[0], "guidance_scale": 1.0},
    "three, guided": {"prompt": PROMPTS, "guidance_scale": 3.0},
}
STOCK = """
import json, os, sys
for name in [name for name in sys.modules if name.partition(".")[0] == "ddpm_hf"]:
    del sys.modules[name]  # those of the process from which this one is forked
sys.modules["ddpm_hf"] = None  # importing it raises ImportError
import numpy, torch
from diffusers import AutoPipelineForInpainting
from PIL import Image

folder, calls = sys.argv[1], json.loads(sys.argv[2])
photo, mask = (Image.open(f"{os.path.dirname(sys.argv[0])}/{name}.png") for name in ("photo", "mask"))
pipe = AutoPipelineForInpainting.from_pretrained(folder)
assert type(pipe).__name__ == "StableDiffusionInpaintPipeline"
pipe.set_progress_bar_config(disable=True)
drawn = {}
for name, call in calls.items():
    count = 1 if isinstance(call["prompt"], str) else len(call["prompt"])
    for what, image, hole in (("each", [photo] * count, [mask] * count), ("one for all", photo, mask)):
        given = {"image": image, "mask_image": hole, "num_inference_steps": 5, "output_type": "np"}
        drawn[f"{name}, {what}"] = pipe(**call, **given, generator=torch.Generator().manual_seed(7)).images
numpy.savez(folder + "/drawn.npz", **drawn)
"""


@pytest.fixture
def tuned(tiny_latent_pipeline):
    """Random, also in the channels that tell of the picture."""
    whole = tiny_latent_pipeline(prediction_type="v_prediction")
    whole.unet = widened(whole.unet).eval()
    torch.nn.init.normal_(whole.unet.conv_in.weight[:, 4:], std=0.3)
    pipeline = LatentInpaintingPipeline(**whole.components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))


@pytest.fixture
def mask():
    """Of which some corners of latents are white and some not."""
    return Image.fromarray(np.tril(np.full((16, 16), 255, np.uint8)))


@pytest.mark.processes
def test_stock_draws_the_same_pixels_without_this_package(command, tuned, photo, mask, tmp_path):
    tuned.save_pretrained(tmp_path / "tuned")
    photo.save(tmp_path / "photo.png")
    mask.save(tmp_path / "mask.png")
    (tmp_path / "stock.py").write_text(STOCK)
    stock = command(tmp_path / "stock.py", tmp_path / "tuned", json.dumps(CALLS))
    assert stock.wait() == 0, stock.err
    ours = load_pipeline(str(tmp_path / "tuned"))
    ours.set_progress_bar_config(disable=True)
    assert type(ours) is LatentInpaintingPipeline and ours.image_shape == (3, 16, 16)
    with np.load(tmp_path / "tuned" / "drawn.npz") as drawn:
        for name, call in CALLS.items():
            count = 1 if isinstance(call["prompt"], str) else 3
            for what, given in (
                ("each", {"image": [photo] * count, "mask_image": [mask] * count}),
                ("one for all", {"image": photo, "mask_image": mask}),
            ):
                more = {"num_inference_steps": 5, "output_type": "np", "generator": torch.Generator().manual_seed(7)}
                found, expected = ours(**call, **given, **more).images, drawn[f"{name}, {what}"]
                np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0, err_msg=f"{name}, {what}")
                other = ours(**call, image=photo, mask_image=Image.new("L", (16, 16), 255), **more).images
                assert np.abs(found - other).max() > 0.05, "what is known matters"


def test_new_channels_do_nothing_at_first(tiny_latent_pipeline):
    unet = tiny_latent_pipeline().unet
    generator = torch.Generator().manual_seed(0)
    x_t, known, states = (
        torch.randn(shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 5, 8, 8), (2, 7, 64))
    )
    with torch.no_grad():
        both = widened(unet).eval()(torch.cat([x_t, known], dim=1), 3, states).sample
        torch.testing.assert_close(both, unet(x_t, 3, states).sample)


def test_a_step_is_that_of_noise_on_the_whole_latent_beside_what_is_known(tuned):
    """Rombach et al. 2022, §4.5, with what stock's pipeline tells the network."""
    codec, scheduler = tuned.codec, tuned.scheduler
    hole = HoleBeside(seed=5, codec=codec)
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = {"images": images, "captions": PROMPTS, "positions": range(40, 43)}
    told = tell([*tuned.conditions, hole], batch)
    x_0 = codec.encode(batch)
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1))
    timesteps, network = torch.tensor([3, 400, 999]), tuned.network.eval()
    with torch.no_grad():
        found = DiffusionLoss(scheduler)(network, x_0, noise, timesteps, **told)

    holes = torch.stack(
        [torch.from_numpy(np.array(hole.drawn((16, 16), "hole", position)))[None] for position in range(40, 43)]
    )
    assert 0 < holes.float().mean() < 1
    stock = DDPMScheduler.from_config(scheduler.config)
    with torch.no_grad():
        posterior = tuned.vae.encode((images / 127.5 - 1) * ~holes).latent_dist
        draws = [
            torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(derive_seed(0, "known latent", position)))
            for position in range(40, 43)
        ]
        known = posterior.mean + posterior.std * torch.stack(draws)
        inputs = torch.cat([stock.add_noise(x_0, noise, timesteps), holes[:, :, ::2, ::2].float(), known], dim=1)
        states = tuned.text_encoder(told["input_ids"], told["attention_mask"])[0]
        predicted = tuned.unet(inputs, timesteps, states).sample
    expected = (predicted - stock.get_velocity(x_0, noise, timesteps)).square().mean((1, 2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_whole_pictures_and_what_cannot_be_asked_for(tuned, photo, mask, tiny_latent_pipeline, tmp_path):
    call = {"prompt": "a red apple", "num_inference_steps": 3, "output_type": "np"}
    white = {"image": Image.new("RGB", (16, 16)), "mask_image": Image.new("L", (16, 16), 255)}
    drawn = [tuned(**call, **given, generator=torch.Generator().manual_seed(2)).images for given in ({}, white)]
    np.testing.assert_allclose(*drawn, atol=1e-5)
    for given, words in (
        (
            {"image": photo, "mask_image": mask, "strength": 0.5},
            "`strength` must be 1 for a model that was fine-tuned",
        ),
        ({"image": photo}, "`mask_image` must be a PIL image"),
        ({"image": [photo] * 2, "mask_image": mask}, "`image` must be one per image, got 2 for 1 images"),
    ):
        with pytest.raises(ValueError, match=words):
            tuned(**call, **given)
    whole = tiny_latent_pipeline()
    whole.save_pretrained(tmp_path)
    assert for_inpainting(whole, str(tmp_path)) is whole
    tuned.save_pretrained(tmp_path / "inpainting")
    assert type(for_inpainting(whole, str(tmp_path))) is LatentInpaintingPipeline
    tuned.unet = whole.unet
    with pytest.raises(ValueError, match="unet must have 9 input channels, got 4"):
        tuned.check_parts()
