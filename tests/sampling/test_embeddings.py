"""What is done with the embedding of a picture: between two, towards a caption, and back from DDIM's noise."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from running import load_script

from ddpm_hf.evaluation.samples import read_samples
from ddpm_hf.pipelines.loading import load_pipeline
from ddpm_hf.sampling.embeddings import draw_between, embed, noise_of, redraw, slerp, towards
from ddpm_hf.seeds import generator_for, image_generators

CONSTANT = torch.tensor([0.3, -0.2, 0.1])  # what the network says the noise is


def picture(seed: int, side: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pipeline(tiny_unclip_pipeline):
    return tiny_unclip_pipeline(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")


def test_the_arc_keeps_the_norm_and_is_walked_evenly():
    a, b = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, b = (3 * each / each.norm(dim=1, keepdim=True) for each in (a, b))
    path = torch.stack([slerp(a, b, share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)])
    assert torch.allclose(path[0], a) and torch.allclose(path[-1], b)
    assert torch.allclose(path.norm(dim=-1), torch.full((5, 5), 3.0).double())
    # Rotated by share * angle in the plane of both, from a towards what of b is orthogonal to it.
    angle = np.arccos((a * b).sum(1).numpy() / 9)
    across = b - (a * b).sum(1, keepdim=True) / 9 * a
    across = (3 * across / across.norm(dim=1, keepdim=True)).numpy()
    for share, point in zip((0.25, 0.5, 0.75), path[1:-1], strict=True):
        turned = np.cos(share * angle)[:, None] * a.numpy() + np.sin(share * angle)[:, None] * across
        np.testing.assert_allclose(point.numpy(), turned, atol=1e-12)
    assert torch.allclose(slerp(a, a, 0.3), a) and torch.allclose(slerp(a, 2 * a, 0.5), 1.5 * a)


def test_a_text_difference_is_that_of_the_captions_embeddings(pipeline):
    z = torch.randn(32, generator=torch.Generator().manual_seed(1))
    goal = towards(pipeline, z, "a red apple", "a cat")
    tokens = pipeline.prior_tokenizer(
        ["a cat", "a red apple"], padding="max_length", max_length=12, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        cat, apple = pipeline.prior_text_encoder(tokens).text_embeds
    assert math.isclose(goal.norm(), z.norm(), rel_tol=1e-5)
    assert torch.allclose(torch.cosine_similarity(goal, cat - apple, dim=0), torch.ones(()))


def test_pictures_between_two_begin_and_end_with_theirs(pipeline):
    ends = embed(pipeline, picture(0)), embed(pipeline, picture(1, side=20))
    call = {"num_inference_steps": 4, "guidance_scale": 3.0}
    drawn = draw_between(pipeline, ends, [0.0, 0.5, 1.0], 2, 5, **call)
    assert drawn.shape == (2, 3, 8, 8, 3)
    for row in range(2):
        noise = [generator_for(5, "interpolation", row) for _ in ends]
        expected = pipeline(image_embeds=list(ends), generator=noise, output_type="np", **call).images
        assert np.abs(drawn[row, [0, 2]] / 255 - expected).max() < 1 / 255
    assert (drawn[0] != drawn[1]).any() and (drawn[:, 0] != drawn[:, 1]).any()


def test_ddim_goes_there_in_closed_form_and_comes_back(tiny_unclip_pipeline):
    """A network that says the same noise everywhere leads from x_0 to √ᾱ x_0 + √(1-ᾱ) eps, in any number of steps."""
    pipeline = tiny_unclip_pipeline(prediction_type="epsilon")
    torch.nn.init.zeros_(pipeline.unet.conv_out.weight)
    pipeline.unet.conv_out.bias.data.copy_(torch.cat([CONSTANT, torch.zeros(3)]))
    given, z = picture(2), torch.randn(32)
    x_T = noise_of(pipeline, given, z, 8)
    alpha_bar = pipeline.scheduler.alphas_cumprod[-1].double().numpy()
    x_0 = np.asarray(given).transpose(2, 0, 1) / 127.5 - 1
    expected = alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * CONSTANT.double().numpy()[:, None, None]
    np.testing.assert_allclose(x_T[0].numpy(), expected, atol=1e-4)
    assert (redraw(pipeline, x_T, [z, 2 * z], 8) == np.asarray(given)).all()


def test_more_steps_come_back_nearer(pipeline):
    given = picture(3)
    z = embed(pipeline, given)
    errors = [
        np.abs(
            redraw(pipeline, noise_of(pipeline, given, z, steps), [z], steps)[0].astype(int) - np.asarray(given)
        ).mean()
        for steps in (10, 100)
    ]
    assert errors[1] < errors[0] / 3, "the error of a step is of second order in its length"


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unclip")
    pipeline.save_pretrained(folder)
    picture(4, side=20).save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module")
def sample():
    main = load_script("sample.py").main
    return lambda *arguments: main([str(argument) for argument in arguments])


def test_the_command_draws_variations(sample, folder, tmp_path, capsys):
    flags = ["--num_images", 3, "--num_inference_steps", 4, "--batch_size", 2, "--output_dir", tmp_path / "out"]
    sample(folder, "--variations", folder / "photo.png", *flags)
    drawn = np.stack([np.asarray(Image.open(tmp_path / "out" / f"{k:05d}.png")) for k in range(3)])
    pipeline = load_pipeline(str(folder))
    pixels = pipeline.prior_image_processor(Image.open(folder / "photo.png"), return_tensors="pt").pixel_values
    with torch.no_grad():
        seen = pipeline.prior_image_encoder(pixels).image_embeds
    call = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "np"}
    expected = pipeline(image_embeds=seen.expand(3, -1), generator=image_generators(0, range(3)), **call).images
    assert np.abs(drawn / 255 - expected).max() < 1.01 / 255 and (drawn[0] != drawn[1]).any()
    assert read_samples(tmp_path / "out").about["guidance_scale"] == 3.0
    sample(folder, "--variations", folder / "photo.png", *flags)
    assert "to draw: 0 of 3 images" in capsys.readouterr().out
    picture(5).save(tmp_path / "other.png")
    with pytest.raises(SystemExit, match="2"):
        sample(folder, "--variations", tmp_path / "other.png", *flags)
    assert "has images drawn with other settings (image_embeds was" in capsys.readouterr().err


def test_the_command_draws_the_other_pictures(sample, folder, tmp_path):
    photo, few = folder / "photo.png", ("--num_inference_steps", 4)
    sample(folder, "--interpolate", photo, photo, *few, "--output_dir", tmp_path)
    sample(folder, "--text_difference", photo, "a red apple", "a cat", *few, "--output_dir", tmp_path)
    sample(folder, "--reconstruct", photo, *few, "--output_dir", tmp_path)
    sizes = {file.stem: Image.open(file).size for file in (tmp_path / "overview").iterdir()}
    assert sizes.keys() == {"interpolation", "text_difference", "reconstruct"}
    assert sizes["text_difference"][0] > 6 * 160 and sizes["interpolation"][0] > 11 * 64


def test_an_upsampler_enlarges_them_all(sample, folder, tiny_unclip_pipeline, tmp_path):
    pipeline = tiny_unclip_pipeline(enlarged=True, prediction_type="v_prediction")
    pipeline.save_pretrained(tmp_path)
    photo, few = folder / "photo.png", ("--num_inference_steps", 4)
    for flags in (["--interpolate", photo, photo], ["--reconstruct", photo]):
        sample(tmp_path, *flags, *few, "--output_dir", tmp_path / "out")
    sample(tmp_path, "--variations", photo, *few, "--num_images", 2, "--output_dir", tmp_path / "large")
    drawn = np.stack([np.asarray(Image.open(tmp_path / "large" / f"{k:05d}.png")) for k in range(2)])
    z, generators = embed(pipeline, Image.open(photo)), image_generators(0, range(2))
    call = {"num_inference_steps": 4, "output_type": "np"}
    expected = pipeline(image_embeds=[z, z], guidance_scale=3.0, generator=generators, **call).images
    assert drawn.shape == (2, 16, 16, 3) and np.abs(drawn / 255 - expected).max() < 1.01 / 255
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    one, same, other = redraw(pipeline, noise, [z, z, -z], 4)
    small = redraw(pipeline.alone(), noise, [z], 4)
    small = torch.from_numpy(small / 255).permute(0, 3, 1, 2).float()
    enlarged = pipeline(small=small, generator=generator_for(0, "enlarging"), **call).images[0]
    assert np.abs(one / 255 - enlarged).max() < 0.02, "but for the rounding of the small one"
    assert (one == same).all() and (one != other).any()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--variations", "/nowhere.png"], "--variations: cannot read /nowhere.png"),
        (["--variations", "PHOTO", "--negative_prompt", "a"], "--variations takes the place of --negative_prompt"),
        (
            ["--variations", "PHOTO", "--prior_candidates", "2"],
            "--variations does not ask the prior; leave out --prior_candidates",
        ),
        (
            ["--interpolate", "PHOTO", "PHOTO", "--prior_guidance_scale", "2"],
            "--interpolate is by embeddings here; leave out --prior_guidance_scale",
        ),
        (
            ["--reconstruct", "PHOTO", "--fast", "--guidance_scale", "2"],
            "--reconstruct draws with DDIM and without guidance; leave out --fast, --guidance_scale",
        ),
        (
            ["--text_difference", "PHOTO", "a cat", "a cat"],
            "--text_difference: the captions must say different things, and to CLIP 'a cat' and 'a cat' are the same",
        ),
        (["--variations", "PHOTO", "--prompt", "a cat"], "--variations takes the place of --prompt"),
        (["--variations", "PHOTO", "--reconstruct", "PHOTO"], "--variations and --reconstruct each draw"),
        (["--text_difference", "PHOTO", "a cat"], "--text_difference must be an image and two captions, got 2 values"),
        (
            ["--reconstruct", "PHOTO", "--num_images", "3"],
            "--reconstruct draws only one picture; leave out --num_images",
        ),
        (
            ["--interpolate", "PHOTO", "PHOTO", "--interpolation_depths", "5"],
            "--interpolate is by embeddings here; leave out --interpolation_depths",
        ),
        (["--reconstruct", "/nowhere.png"], "--reconstruct: cannot read /nowhere.png"),
        (["--text_difference", "/nowhere.png", "a", "b"], "--text_difference: cannot read /nowhere.png"),
        (["--reconstruct", "PHOTO", "--num_inference_steps", "7"], "--num_inference_steps must divide the 1000"),
        (["--interpolate", "PHOTO", "/nowhere.png"], "--interpolate: cannot read /nowhere.png"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(sample, folder, tmp_path, capsys, arguments, words):
    arguments = [folder / "photo.png" if word == "PHOTO" else word for word in arguments]
    with pytest.raises(SystemExit, match="2"):
        sample(folder, *arguments, "--output_dir", tmp_path / "out")
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1 and not (tmp_path / "out").exists()


def test_models_without_a_prior_have_no_variations(sample, folder, tiny_pipeline, tmp_path, capsys):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match="2"):
        sample(tmp_path / "model", "--variations", folder / "photo.png", "--output_dir", tmp_path / "out")
    assert "--variations needs a model that draws by way of an embedding" in capsys.readouterr().err
