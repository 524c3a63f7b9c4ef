"""What the card says of stock diffusers is what stock diffusers does."""

import re

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_hf.hub.card import render_card, write_card
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.hub.push import page_files
from ddpm_hf.hub.stock import DDPM, betas_argument, fast_samplers, obstacles
from ddpm_hf.pipelines.text_to_image import InpaintingPipeline
from ddpm_hf.sampling.samplers import make_fast_sampler

KINDS = {
    "grey": {"channels": 1},
    "colour": {},
    "classes": {"num_classes": 3},
    "odd size": {"resolution": [7, 5]},
    "learned range, grey": {"channels": 1, "learned_variance": True},
    "learned range, colour": {"learned_variance": True},
    "learned range, v": {"learned_variance": True, "prediction_type": "v_prediction"},
    "learned range, transparent": {"channels": 4, "learned_variance": True},
    "learned, colour": {"learned_variance": True, "variance_type": "learned"},
    "log of the large variance": {"variance_type": "fixed_large_log"},
    "all of it": {"num_classes": 3, "resolution": [7, 5], "channels": 1, "learned_variance": True}
    | {"variance_type": "learned"},
}
CAN_DRAW = {"grey", "colour", *(kind for kind in KINDS if kind.startswith("learned range"))}
SAMPLERS = ["DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DDIMScheduler"]


def draws(pipeline) -> bool:
    """Whether a pipeline gives images at all: no exception, nothing but numbers."""
    try:
        images = pipeline(2, torch.Generator().manual_seed(0), 6, "np").images
    except (RuntimeError, ValueError, TypeError):
        return False
    return bool(np.isfinite(images).all())


def ddpm_in(folder) -> DDPM:
    model = ModelFolder.read(folder)
    return DDPM(model.index, **model.configs)


@pytest.fixture(scope="module")
def stock_pipeline():
    def load(folder) -> diffusers.DDPMPipeline:
        pipeline = diffusers.DDPMPipeline.from_pretrained(folder)
        assert type(pipeline.unet) is diffusers.UNet2DModel and type(pipeline.scheduler) is diffusers.DDPMScheduler
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return load


@pytest.mark.parametrize("kind", KINDS)
def test_obstacles_are_those_of_stock_diffusers(tiny_pipeline, tmp_path, stock_pipeline, kind):
    tiny_pipeline(**KINDS[kind]).save_pretrained(tmp_path)
    model = ddpm_in(tmp_path)
    assert draws(stock_pipeline(tmp_path)) == (not obstacles(model)) == (kind in CAN_DRAW)
    if kind in ("classes", "odd size", "all of it"):
        return  # no sampler helps there
    for name in SAMPLERS:
        pipeline = stock_pipeline(tmp_path)
        pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
        assert draws(pipeline) == (name in fast_samplers(model)), name


@pytest.mark.parametrize("beta_schedule", ["linear", "sigmoid"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_fewer_steps_in_stock_are_of_the_trained_process(
    tiny_pipeline, tmp_path, stock_pipeline, monkeypatch, beta_schedule, zero_snr
):
    process = {"beta_schedule": beta_schedule, "rescale_betas_zero_snr": zero_snr, "prediction_type": "v_prediction"}
    trained = tiny_pipeline(**process)
    trained.save_pretrained(tmp_path)
    expected, model = trained.scheduler.alphas_cumprod, ddpm_in(tmp_path)
    for name in SAMPLERS:
        pipeline = stock_pipeline(tmp_path)
        betas = {"trained_betas": pipeline.scheduler.betas.tolist()} if betas_argument(model) else {}
        pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **betas)
        same = torch.allclose(pipeline.scheduler.alphas_cumprod, expected, rtol=0, atol=1e-6)
        assert (same and draws(pipeline)) == (name in fast_samplers(model)), name

    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", render_card(ModelFolder.read(tmp_path)).text, flags=re.DOTALL)
    exec(next(code for code in examples if "pipe.scheduler = DPMSolver" in code), names := {})
    torch.testing.assert_close(names["pipe"].scheduler.alphas_cumprod, expected, rtol=0, atol=1e-6)
    assert np.asarray(names["image"]).std() > 10


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in CAN_DRAW])
def test_where_the_pipeline_of_stock_cannot_the_lines_of_the_card_draw_what_ours_draws(
    tiny_pipeline, tmp_path, monkeypatch, kind
):
    ours = tiny_pipeline(**KINDS[kind])
    ours.save_pretrained(tmp_path)
    text = render_card(ModelFolder.read(tmp_path)).text
    whole, _, *fewer = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    call = {"class_labels": [0, 1, 2], "guidance_scale": 2.0} if ours.conditions else {"batch_size": 4}

    def check(code: str, steps: int) -> None:
        torch.manual_seed(3)
        exec(code, names)
        torch.manual_seed(3)
        expected = ours(num_inference_steps=steps, output_type="pt", **call).images
        assert torch.isfinite(expected).all() and expected.std() > 0.1
        torch.testing.assert_close((names["x"] / 2 + 0.5).clamp(0, 1), expected, rtol=0, atol=1e-4)
        assert len(names["images"]) == len(expected)

    names = {}
    assert "ddpm_hf" not in whole and "scheduler.set_timesteps(1000)" in whole
    check(whole.replace("set_timesteps(1000)", "set_timesteps(8)"), 8)
    assert type(names["unet"]) is diffusers.UNet2DModel and type(names["scheduler"]) is diffusers.DDPMScheduler
    if kind == "all of it":
        assert not fewer  # diffusers' solvers cut the output at three channels
        return
    exec(fewer[0], names)
    ours.scheduler, steps = make_fast_sampler(ours.scheduler)
    check(whole[whole.index("x = torch.randn") :], steps)


@pytest.mark.parametrize("system", ["glide", "imagen"])
def test_the_lines_of_the_card_draw_with_an_upsampler_and_a_part_too(system, tiny_cascade, tmp_path, monkeypatch):
    ours = tiny_cascade(imagen=system == "imagen", prediction_type="v_prediction")
    ours.save_pretrained(tmp_path)
    for folder in (tmp_path, tmp_path / "upsampler"):
        (folder / "training_config.yaml").write_text(f"system: {system}\ntext_encoder: taught\n")
    tuned = InpaintingPipeline(**ours.components)
    tuned.save_pretrained(tmp_path / "inpainting")
    card = render_card(ModelFolder.read(tmp_path))
    _, both, part, own, _ = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    pictures = {"image": Image.effect_mandelbrot((8, 8), (-2, -1, 1, 1), 9), "mask_image": Image.new("1", (8, 8))}
    pictures["mask_image"].paste(1, (2, 2, 7, 5))
    for picture, file in zip(pictures.values(), ("photo.png", "mask.png"), strict=True):
        picture.save(file)
    call = {"num_inference_steps": 8, "guidance_scale": 3.0, "generator": torch.Generator().manual_seed(0)}
    expected = np.asarray(tuned("a red apple", **call, **pictures).images[0]).astype(int)
    code = part.replace(
        "num_inference_steps=1000", "num_inference_steps=8, generator=torch.Generator().manual_seed(0)"
    )
    exec(code, names := {"torch": torch})
    np.testing.assert_allclose(np.asarray(names["image"]).astype(int), expected, atol=1)
    assert type(names["pipe"]).__name__ == "IFInpaintingPipeline" and "ddpm_hf" not in part
    torch.manual_seed(0)
    expected = np.asarray(ours("a red apple", num_inference_steps=8, guidance_scale=3.0).images[0]).astype(int)
    code = both.replace("num_inference_steps=1000", "num_inference_steps=8")
    exec(code.replace("small = ", "torch.manual_seed(0)\nsmall = "), names := {"torch": torch})
    np.testing.assert_allclose(np.asarray(names["large"][0]).astype(int), expected, atol=1)
    assert expected.shape == (16, 16, 3) and "ddpm_hf" not in both
    exec(own.replace("num_inference_steps=1000", "num_inference_steps=2"), names := {})
    assert names["images"][0].size == (16, 16)
    large = render_card(ModelFolder.read(tmp_path / "upsampler"))
    assert "enlarges RGB images of 8x8 pixels, which have captions, to 16x16" in large.text
    assert "which was taught their wordings first and then left as it was" in card.text
    manner, paper = {"glide": ("GLIDE", "nichol2022glide"), "imagen": ("Imagen", "saharia2022photorealistic")}[system]
    for each in (card, large):
        assert f"in the manner of {manner} (" in each.text and paper in each.text and system in each.data.tags
    assert ("noise_level=250" in both) == ("with noise, and how much" in large.text) == (system == "imagen")
    assert large.data.pipeline_tag == "image-to-image" and "```python" not in large.text
    inpainting = render_card(ModelFolder.read(tmp_path / "inpainting"))
    assert "draws a part of RGB images of 8x8 pixels" in inpainting.text and "```python" not in inpainting.text
    tuned.save_pretrained(tmp_path / "no base" / "alone")
    alone = render_card(ModelFolder.read(tmp_path / "no base" / "alone"), "alice/parts")
    assert 'IFInpaintingPipeline.from_pretrained("alice/parts")' in alone.text, "no other card has the lines"
    for text in (card.text, large.text, inpainting.text, alone.text):
        assert "{{" not in text and "{%" not in text and "None" not in text
    (tmp_path / "training_summary.json").write_text('{"class_names": ["cat", "dog"]}')
    (tmp_path / "training_config.yaml").write_text(f"system: {system}\ninit_caption_from_labels: a photo of a {{}}\n")
    text = render_card(ModelFolder.read(tmp_path)).text
    assert 'upsampler("a photo of a cat", guidance_scale=1.0, ' in text and "apple" not in text


@pytest.mark.parametrize(
    ("variance_type", "prediction_type"),
    [
        ("fixed_small", "v_prediction"),
        ("learned_range", "v_prediction"),
        ("learned_range", "epsilon"),
        ("fixed_large_log", "epsilon"),
        ("learned", "v_prediction"),
    ],
)
def test_what_the_card_of_a_text_model_says_of_stock(
    tiny_text_pipeline, tmp_path, monkeypatch, variance_type, prediction_type
):
    ours = tiny_text_pipeline(variance_type=variance_type, prediction_type=prediction_type)
    ours.save_pretrained(tmp_path)
    card = render_card(ModelFolder.read(tmp_path))
    examples = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    assert card.data.pipeline_tag == "text-to-image" and "images of 8x8 pixels from a caption" in card.text
    assert "{{" not in card.text and "None" not in card.text

    def run(code: str) -> np.ndarray:
        code = code.replace("num_inference_steps=1000", "num_inference_steps=8")
        seeded = code.replace("image = ", "torch.manual_seed(0)\nimage = ")  # after loading, which draws numbers too
        exec(seeded, names := {"torch": torch})
        return np.asarray(names["images"][0] if "images" in names else names["image"]).astype(int)

    def draw(steps: int) -> np.ndarray:
        call = {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(0)}
        return np.asarray(ours("a red apple", guidance_scale=3.0, **call).images[0]).astype(int)

    if variance_type in ("fixed_large_log", "learned"):
        (own,) = examples
        assert "diffusers' own `IFPipeline` cannot sample from this model. Stock `DDPMScheduler` takes" in card.text
        stock = diffusers.IFPipeline.from_pretrained(tmp_path)
        images = stock("a red apple", num_inference_steps=8, clean_caption=False, output_type="np").images
        assert np.isnan(images).any()
    else:
        whole, own, *fewer = examples
        np.testing.assert_allclose(run(whole), draw(8), atol=1)
    np.testing.assert_array_equal(run(own), draw(8))
    if variance_type == "fixed_small" or (variance_type, prediction_type) == ("learned_range", "epsilon"):
        ours.scheduler, steps = make_fast_sampler(ours.scheduler)
        np.testing.assert_allclose(run(*fewer), draw(steps), atol=1)
    else:
        assert "In fewer steps" not in card.text


@pytest.mark.parametrize("system", ["glide", "dalle2"])
def test_a_card_has_no_line_for_an_upsampler_that_stock_cannot_run(
    tiny_cascade, tiny_unclip_pipeline, tmp_path, system
):
    """Whose pictures would be black."""
    ours = tiny_cascade() if system == "glide" else tiny_unclip_pipeline(enlarged=True)
    scheduler = ours.upsampler.scheduler
    ours.upsampler.scheduler = type(scheduler).from_config(scheduler.config, variance_type="learned")
    ours.save_pretrained(tmp_path)
    stock = diffusers.IFSuperResolutionPipeline.from_pretrained(tmp_path / "upsampler")
    call = {"num_inference_steps": 2, "clean_caption": False, "guidance_scale": 1.0, "output_type": "np"}
    assert np.isnan(stock("", image=torch.zeros(1, 3, 8, 8), **call).images).any()
    text = render_card(ModelFolder.read(tmp_path)).text
    assert "cannot sample from the upsampler. Stock `DDPMScheduler` takes the learned log-variance" in text
    assert "/upsampler" not in text and "One call draws and enlarges" in text


def test_the_lines_of_the_card_draw_and_vary_by_embeddings(tiny_unclip_pipeline, tmp_path, monkeypatch):
    ours = tiny_unclip_pipeline(enlarged=True, prediction_type="v_prediction")
    ours.save_pretrained(tmp_path)
    (tmp_path / "upsampler" / "training_config.yaml").write_text("system: dalle2")
    write_card(tmp_path / "upsampler")
    there = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    write_card(tmp_path)  # stock looks for other pipelines in it
    assert page_files(ModelFolder.read(tmp_path)).keys() == there | {"README.md"}
    card = render_card(ModelFolder.read(tmp_path))
    assert card.data.pipeline_tag == "text-to-image" and "dall-e-2" in card.data.tags
    assert "an embedding of 32 numbers" in card.text and "cut to 12 tokens" in card.text
    assert "An upsampler enlarges the picture to 16x16." in card.text
    of_upsampler = (tmp_path / "upsampler" / "README.md").read_text()
    assert "in the manner of DALL·E 2 (" in of_upsampler and "images of 8x8 pixels to 16x16" in of_upsampler
    assert "{{" not in card.text and "{%" not in card.text and "None" not in card.text
    photo = Image.effect_mandelbrot((8, 8), (-2, -1, 1, 1), 9).convert("RGB")
    photo.save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)

    def run(code: str) -> np.ndarray:
        code = code.replace("num_inference_steps=1000", "num_inference_steps=8")
        exec(re.sub("(image|small) = ", r"torch.manual_seed(0)\n\1 = ", code, count=1), names := {"torch": torch})
        pictures = [names[name][0] for name in ("images", "large") if name in names]
        return np.asarray(pictures[0] if pictures else names["image"]).astype(int)

    def draw(steps: int = 8, alone: bool = True, **asked) -> np.ndarray:
        call = {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(0)}
        pipeline = ours.alone() if alone else ours
        return np.asarray(pipeline(**asked, guidance_scale=3.0, **call).images[0]).astype(int)

    whole, enlarged, varied, own, fewer = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    assert not any("ddpm_hf" in code for code in (whole, enlarged, varied, fewer))
    np.testing.assert_allclose(run(whole), draw(prompt="a red apple"), atol=1)
    np.testing.assert_allclose(run(enlarged), draw(prompt="a red apple", alone=False), atol=1)
    np.testing.assert_array_equal(run(own), draw(prompt="a red apple", alone=False))
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]
    (embedding,) = ours.looking_at_pictures().conditions[0].words_of([{"images": pixels}])
    np.testing.assert_allclose(run(varied), draw(image_embeds=embedding[None]), atol=1)
    ours.scheduler, steps = make_fast_sampler(ours.scheduler)
    np.testing.assert_allclose(run(fewer), draw(steps, prompt="a red apple"), atol=1)
