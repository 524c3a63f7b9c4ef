"""Pictures for captions by way of embeddings, and for embeddings of pictures: the pixels of stock diffusers."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, KandinskyV22CombinedPipeline, KandinskyV22Pipeline
from PIL import Image

from ddpm_hf.models.movq import identity_movq
from ddpm_hf.pipelines.loading import load_pipeline
from ddpm_hf.pipelines.unclip import DecoderPipeline
from ddpm_hf.pixels import denormalize, normalize
from ddpm_hf.sampling.generation import generate

PROMPTS = ["a red apple", "🍎 Красное Яблоко", "  Ein GRÜNER Käse "]
CALLS = {
    "one": {"prompt": PROMPTS[0], "guidance_scale": 1.0, "prior_guidance_scale": 1.0},
    "one, guided": {"prompt": PROMPTS[1], "guidance_scale": 3.0, "prior_guidance_scale": 2.0},
    "three": {"prompt": PROMPTS, "guidance_scale": 1.0, "prior_guidance_scale": 3.0},
    "three, guided": {"prompt": PROMPTS, "guidance_scale": 3.0},
    "guided away": {"prompt": PROMPTS, "guidance_scale": 3.0, "negative_prompt": ["りんご", "", "apple"]},
}
FOLDERS = {
    "small": {"variance_type": "fixed_small", "prediction_type": "v_prediction"},
    "learned": {"enlarged": True, "variance_type": "learned_range", "prediction_type": "v_prediction"},
}

STOCK = """
import json, os, sys
for name in [name for name in sys.modules if name.partition(".")[0] == "ddpm_hf"]:
    del sys.modules[name]  # those of the process from which this one is forked
sys.modules["ddpm_hf"] = None  # importing it raises ImportError
import numpy, torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline
from PIL import Image

calls, folders = json.loads(sys.argv[1]), sys.argv[2:]
photos = [Image.open(f"{os.path.dirname(sys.argv[0])}/{number}.png") for number in range(3)]
size = {"height": 8, "width": 8, "num_inference_steps": 4, "output_type": "np"}
for folder in folders:
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert type(pipe) is type(AutoPipelineForText2Image.from_pretrained(folder)), type(pipe)
    assert type(pipe).__name__ == "KandinskyV22CombinedPipeline", type(pipe)
    pipe.set_progress_bar_config(disable=True)
    drawn = {}
    for name, call in calls.items():
        more = {"prior_num_inference_steps": 3, "generator": torch.Generator().manual_seed(7)}
        drawn[name] = pipe(**call, **size, **more).images
    for count in (1, 3):
        seen = [pipe.prior_pipe.interpolate([photo], [1.0], num_inference_steps=2) for photo in photos[:count]]
        seen = {name: torch.cat([each[name] for each in seen]) for name in seen[0]}
        for scale in (1.0, 3.0):
            more = {"guidance_scale": scale, "generator": torch.Generator().manual_seed(8)}
            drawn[f"like {count} at {scale}"] = pipe.decoder_pipe(**seen, **size, **more).images
    if os.path.isdir(folder + "/upsampler"):
        large = DiffusionPipeline.from_pretrained(folder + "/upsampler")
        assert type(large).__name__ == "IFSuperResolutionPipeline", type(large)
        large.set_progress_bar_config(disable=True)
        generator, call = torch.Generator().manual_seed(9), calls["three, guided"] | size | {"output_type": "pt"}
        small = pipe(**call, prior_num_inference_steps=3, generator=generator).images
        call = {"guidance_scale": 1.0, "num_inference_steps": 4, "output_type": "np", "clean_caption": False}
        drawn["enlarged"] = large([""] * 3, image=small, generator=generator, **call).images
    numpy.savez(folder + "/drawn.npz", **drawn)
"""


@pytest.mark.processes
def test_stock_draws_the_same_pixels_without_this_package(command, tiny_unclip_pipeline, tmp_path):
    """For captions, and variations of pictures from their embeddings; and enlarged, in one call."""
    pictures = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for number, picture in enumerate(pictures):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    for name, process in FOLDERS.items():
        tiny_unclip_pipeline(**process).save_pretrained(tmp_path / name)
    (tmp_path / "stock.py").write_text(STOCK)
    stock = command(tmp_path / "stock.py", json.dumps(CALLS), *(tmp_path / name for name in FOLDERS))
    assert stock.wait() == 0, stock.err
    for name, process in FOLDERS.items():
        whole = load_pipeline(str(tmp_path / name))
        whole.set_progress_bar_config(disable=True)
        ours = whole.alone()
        with np.load(tmp_path / name / "drawn.npz") as drawn:
            assert drawn["three"].std() > 0.05
            assert np.abs(drawn["three"] - drawn["three, guided"]).max() > 0.01, "embeddings matter"
            more = {"num_inference_steps": 4, "output_type": "np"}
            for what, call in CALLS.items():
                seven = torch.Generator().manual_seed(7)
                images = ours(**call, **more, prior_num_inference_steps=3, generator=seven).images
                np.testing.assert_allclose(images, drawn[what], atol=1e-4, rtol=0, err_msg=f"{name}, {what}")
            (looking,) = ours.looking_at_pictures().conditions
            embeddings = list(looking.words_of([{"images": pictures}]))
            for count in (1, 3):
                for scale in (1.0, 3.0):
                    call = {"image_embeds": embeddings[:count], "guidance_scale": scale}
                    images = ours(**call, **more, generator=torch.Generator().manual_seed(8)).images
                    np.testing.assert_allclose(images, drawn[f"like {count} at {scale}"], atol=1e-4, rtol=0)
            if process.get("enlarged"):
                more |= {"prior_num_inference_steps": 3, "generator": torch.Generator().manual_seed(9)}
                images = whole(**CALLS["three, guided"], **more).images
                assert images.shape == (3, 16, 16, 3) and images.std() > 0.05
                np.testing.assert_allclose(images, drawn["enlarged"], atol=1e-4, rtol=0)


def test_the_decoder_alone_is_that_of_stock(tiny_unclip_pipeline):
    """In a sampler of diffusers too, which the whole pipeline then has, while its prior keeps its own."""
    whole = tiny_unclip_pipeline(prediction_type="v_prediction")
    parts = {name: whole.components[name] for name in ("unet", "scheduler", "movq")}
    ours, stock = DecoderPipeline(**parts), KandinskyV22Pipeline(**parts)
    both = KandinskyV22CombinedPipeline(**whole.components)
    ddim = DDIMScheduler.from_config(whole.scheduler.config, timestep_spacing="trailing")
    for pipeline in (ours, stock, both):
        pipeline.set_progress_bar_config(disable=True)
    embeddings = torch.randn((2, 2, 32), generator=torch.Generator().manual_seed(0))
    for scheduler in (whole.scheduler, ddim):
        ours.scheduler = stock.scheduler = both.decoder_pipe.scheduler = whole.scheduler = scheduler
        call = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "np"}
        one, two = (torch.Generator().manual_seed(1) for _ in range(2))
        expected = stock(*embeddings, 8, 8, generator=one, **call).images
        np.testing.assert_allclose(ours(*embeddings, generator=two, **call).images, expected, atol=1e-5, rtol=0)
        one, two = (torch.Generator().manual_seed(2) for _ in range(2))
        expected = both(PROMPTS, height=8, width=8, prior_num_inference_steps=3, generator=one, **call).images
        images = whole(PROMPTS, prior_num_inference_steps=3, generator=two, **call).images
        np.testing.assert_allclose(images, expected, atol=1e-5, rtol=0)


def test_its_vq_model_changes_no_pixel():
    levels = torch.arange(256, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.stack([levels[torch.randperm(256, generator=generator)] for _ in range(2 * 3)]).view(2, 3, 16, 16)
    flat = pixels.flatten(1)[:, 255].view(2, 1, 1, 1).expand_as(pixels)  # whose variance is 0
    movq = identity_movq()
    for picture in (pixels, flat, torch.full_like(pixels, 255)):
        x = normalize(picture)
        with torch.no_grad():
            decoded, encoded = movq.decode(x, force_not_quantize=True).sample, movq.encode(x).latents
        for found in (decoded, encoded):
            torch.testing.assert_close(found, x, atol=1e-5, rtol=0)
            assert torch.equal(denormalize(found), picture)


def test_the_same_picture_for_the_same_seed_and_words_at_any_batch_size(tiny_unclip_pipeline):
    pipeline = tiny_unclip_pipeline(prediction_type="v_prediction")
    embeddings = list(torch.randn((5, 32), generator=torch.Generator().manual_seed(0)))
    call = {"guidance_scale": 3.0, "num_inference_steps": 4}
    for asked, more in (
        ({"prompt": [PROMPTS[k % 3] for k in range(5)]}, {"prior_num_inference_steps": 3, "prior_candidates": 2}),
        ({"image_embeds": [embeddings[k % 3] for k in range(5)]}, {}),
    ):
        drawn = [
            np.concatenate([images for _, images in generate(pipeline, range(5), 0, size, asked, **call, **more)])
            for size in (1, 5)
        ]
        drawn = [images.astype(int) for images in drawn]
        assert np.abs(drawn[0] - drawn[1]).max() <= 1 and drawn[0].std() > 10
        assert np.abs(drawn[0][0] - drawn[0][3]).max() > 1, "another draw of the same words"


def test_an_upsampler_is_told_no_caption_and_keeps_what_is_given(tiny_unclip_pipeline):
    pipeline = tiny_unclip_pipeline(enlarged=True)
    prompt, _ = pipeline.upsampler.conditions
    told = prompt.of_rows({"images": torch.zeros(2, 3, 16, 16), "captions": ["a cat", ""]})
    assert all(torch.equal(*rows) for rows in told.values())
    call = {"num_inference_steps": 2, "output_type": "np"}
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 0)]
    small = pipeline.alone()(PROMPTS[0], generator=generators[0], **call | {"output_type": "pt"}).images
    later = pipeline(small=small, generator=generators[0], **call).images
    np.testing.assert_array_equal(later, pipeline(PROMPTS[0], generator=generators[1], **call).images)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    hole = np.eye(16, dtype=bool)
    given = {"image": Image.fromarray(pixels), "mask_image": Image.fromarray(hole.astype(np.uint8) * 255)}
    drawn = (pipeline(PROMPTS[0], **given, **call).images[0] * 255).round()
    assert (drawn[~hole] == pixels[~hole]).all() and (drawn[hole] != pixels[hole]).any()
    with pytest.raises(ValueError, match="`small` must be left out for a model without an upsampler"):
        pipeline.alone()(small=small)
    pipeline.upsampler.unet.register_to_config(_low_side=4)
    with pytest.raises(ValueError, match=r"upsampler must enlarge pictures of shape \(3, 8, 8\), but takes \(3, 4"):
        pipeline.check_parts()


def test_what_cannot_be_asked_for(tiny_unclip_pipeline):
    pipeline = tiny_unclip_pipeline()
    decoder = DecoderPipeline(pipeline.unet, pipeline.scheduler, pipeline.movq)
    embeddings = torch.zeros(2, 32)
    for asked, call, words in (
        (pipeline, {}, "`prompt` must be given for this model: a caption, or one per image"),
        (pipeline, {"prompt": "a", "image_embeds": embeddings}, "`image_embeds` must be left out with `prompt`"),
        (pipeline, {"image_embeds": embeddings[:, :8]}, r"must be a tensor of 32 numbers per image, got shape \(8,\)"),
        (pipeline, {"image_embeds": embeddings[0]}, "`image_embeds` must be a tensor of 32 numbers per image, got 0"),
        (pipeline, {"prompt": "a", "prior_candidates": 0}, "`num_candidates` must be at least 1, got 0"),
        (decoder, {}, "`image_embeds` must be given for this model: a tensor of 32 numbers per image"),
        (decoder, {"image_embeds": embeddings}, "`negative_image_embeds` must be given with `guidance_scale=4`"),
        (
            decoder,
            {"image_embeds": embeddings, "negative_image_embeds": embeddings[:1]},
            r"`negative_image_embeds` must have shape \(2, 32\), got \(1, 32\)",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            asked(num_inference_steps=2, **call)


def test_parts_that_do_not_fit_are_named(tiny_unclip_pipeline, tmp_path):
    for part, change, words in (
        ("unet", {"addition_embed_type": "text"}, "unet must be told embeddings by image and image_proj, got te"),
        ("unet", {"out_channels": 3}, "unet must have 3 input and 6 output channels, got 3 and 3"),
        ("unet", {"encoder_hid_dim": 16}, "prior_image_encoder must have embeddings of 16 channels, as the unet expe"),
        ("unet", {"sample_size": None}, "unet has no sample_size"),
        ("prior_prior", {"num_embeddings": 5}, "prior: tokenizer must cut captions to 5 tokens, as the prior ex"),
    ):
        pipeline = tiny_unclip_pipeline()
        getattr(pipeline, part).register_to_config(**change)
        with pytest.raises(ValueError, match=words):
            pipeline.check_parts()
    pipeline = tiny_unclip_pipeline()
    torch.nn.init.ones_(pipeline.movq.decoder.conv_out.bias)
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="do not fit each other: movq must change nothing: models of latents are not"):
        load_pipeline(str(tmp_path))
