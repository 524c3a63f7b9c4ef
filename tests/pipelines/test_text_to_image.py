"""Pictures for captions: the pixels of stock diffusers, from the same files."""

import json

import numpy as np
import pytest
import torch
from accelerate.hooks import CpuOffload
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import SlicedAttnAddedKVProcessor
from PIL import Image
from texts import write_encoder

from ddpm_hf.conditions.condition import tell
from ddpm_hf.conditions.prompt import Prompt
from ddpm_hf.diffusion.losses import DiffusionLoss
from ddpm_hf.models.text import CAPTION_LENGTH, small_text_encoder, train_tokenizer
from ddpm_hf.models.text_unet import text_unet_config
from ddpm_hf.pipelines.loading import for_inpainting, load_pipeline
from ddpm_hf.pipelines.text_to_image import InpaintingPipeline, TextToImagePipeline
from ddpm_hf.sampling.generation import generate

PROMPTS = ["a red apple", "🍎 красное яблоко", "  Ein GRÜNER Käse "]
CALLS = {
    "one": {"prompt": PROMPTS[0], "guidance_scale": 1.0},
    "one, guided": {"prompt": PROMPTS[1], "guidance_scale": 3.0},
    "three": {"prompt": PROMPTS, "guidance_scale": 1.0},
    "three, guided": {"prompt": PROMPTS, "guidance_scale": 3.0},
    "guided away": {"prompt": PROMPTS[0], "guidance_scale": 3.0, "negative_prompt": "りんご"},
    "three guided away": {"prompt": PROMPTS, "guidance_scale": 3.0, "negative_prompt": ["りんご", "", "apple"]},
}
CASCADES = {
    "glide": {"variance_type": "fixed_small", "prediction_type": "v_prediction"},
    "glide, learned variance": {"variance_type": "learned_range", "prediction_type": "v_prediction"},
    "imagen": {
        **{"imagen": True, "variance_type": "learned_range", "beta_end": 0.01},  # x_0 is at most 12 times x_T
        **{"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 3.0},
    },
}
NOISE_LEVEL = 400  # of stock's call; without one it is 250
ENCODERS = ("bert", "clip", "t5")  # frozen, of transformers

STOCK = """
import json, os, sys
for name in [name for name in sys.modules if name.partition(".")[0] == "ddpm_hf"]:
    del sys.modules[name]  # those of the process from which this one is forked
sys.modules["ddpm_hf"] = None  # importing it raises ImportError
import numpy, torch
from diffusers import DiffusionPipeline
from PIL import Image

calls, folders = json.loads(sys.argv[1]), sys.argv[2:]
photo, mask = (Image.open(f"{os.path.dirname(sys.argv[0])}/{name}.png") for name in ("photo", "mask"))
more = {"num_inference_steps": 3, "clean_caption": False}
for folder in folders:
    pipe = DiffusionPipeline.from_pretrained(folder)
    stages = [folder + stage for stage in ("/upsampler", "/inpainting") if os.path.isdir(folder + stage)]
    large, inpaint = map(DiffusionPipeline.from_pretrained, stages) if stages else (None, None)
    assert type(pipe).__name__ == "IFPipeline"
    assert large is None or type(large).__name__ == "IFSuperResolutionPipeline"
    if large is not None:  # the others have tokenizers of transformers
        tokens = pipe.tokenizer("<pad> a </s> b").input_ids
        assert tokens.index(pipe.tokenizer.eos_token_id) == len(tokens) - 1, tokens
        assert pipe.tokenizer.pad_token_id not in tokens, tokens
    assert inpaint is None or type(inpaint).__name__ == "IFInpaintingPipeline"
    drawn = {}
    for stock in (pipe, large or pipe, inpaint or pipe):
        libraries = {type(part).__module__.partition(".")[0] for part in stock.components.values()}
        assert libraries <= {"diffusers", "transformers", "builtins"}
        stock.set_progress_bar_config(disable=True)
    for name, call in calls.items():
        generator = torch.Generator().manual_seed(7)
        small = pipe(**call, **more, output_type="pt", generator=generator).images
        drawn[name] = (small / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        if large is None:
            continue
        told = {"prompt": call["prompt"], "image": small, "output_type": "np"}
        drawn[name + ", enlarged"] = large(**told, **more, guidance_scale=1.0, generator=generator).images
        guided = {**call, **more, "image": small, "output_type": "np", "noise_level": 400}
        drawn[name + ", guided too"] = large(**guided, generator=torch.Generator().manual_seed(8)).images
        given = {"image": [photo] * len(small), "mask_image": mask}
        told = {**call, **more, **given, "output_type": "np"}
        drawn[name + ", a part"] = inpaint(**told, generator=torch.Generator().manual_seed(9)).images
    numpy.savez(folder + "/drawn.npz", **drawn)
"""


@pytest.mark.processes
def test_stock_draws_the_same_pixels_without_this_package(command, tiny_cascade, tiny_text_pipeline, tmp_path):
    """At the first step, in the middle and at the last one. A process that never saw the package: hub/test_push.py."""
    for name, settings in CASCADES.items():
        cascade = tiny_cascade(**settings)
        cascade.save_pretrained(tmp_path / name)
        InpaintingPipeline(**cascade.components).save_pretrained(tmp_path / name / "inpainting")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    given = {"image": Image.fromarray(pixels), "mask_image": Image.fromarray(np.eye(8, dtype=np.uint8) * 255)}
    for name, picture in zip(("photo.png", "mask.png"), given.values(), strict=True):
        picture.save(tmp_path / name)
    for kind in ENCODERS:
        tiny_text_pipeline(encoder=write_encoder(tmp_path / f"{kind} alone", kind)).save_pretrained(tmp_path / kind)
    (tmp_path / "stock.py").write_text(STOCK)
    stock = command(tmp_path / "stock.py", json.dumps(CALLS), *(tmp_path / name for name in (*CASCADES, *ENCODERS)))
    assert stock.wait() == 0, stock.err
    assert "safety" not in stock.err and "not expected" not in stock.err
    for name in (*CASCADES, *ENCODERS):
        pipeline = load_pipeline(str(tmp_path / name))
        tuned = for_inpainting(pipeline, str(tmp_path / name)).alone()
        for each in (pipeline, tuned):
            each.set_progress_bar_config(disable=True)
        with np.load(tmp_path / name / "drawn.npz") as drawn:
            assert drawn["one"].std() > 0.05
            assert np.abs(drawn["three"] - drawn["three, guided"]).max() > 0.01, "captions matter"
            assert np.abs(drawn["three guided away"] - drawn["three, guided"]).max() > 0.01
            if pipeline.upsampler is not None:
                assert np.abs(drawn["three, enlarged"] - drawn["three, guided, enlarged"]).max() > 0.01
            for what, call in CALLS.items():
                more = {"num_inference_steps": 3, "output_type": "np"}
                seven, again, eight, nine = (torch.Generator().manual_seed(seed) for seed in (7, 7, 8, 9))
                small = pipeline.alone()(**call, **more, generator=seven).images
                ours = {what: small}
                if pipeline.upsampler is not None:
                    told = {"image": 2 * torch.from_numpy(small).permute(0, 3, 1, 2) - 1, **more}
                    ours[f"{what}, enlarged"] = pipeline(**call, **more, generator=again).images
                    told |= {"noise_level": NOISE_LEVEL} if name == "imagen" else {}
                    ours[f"{what}, guided too"] = pipeline.upsampler(**call, **told, generator=eight).images
                    part = ours[f"{what}, a part"] = tuned(**call, **given, **more, generator=nine).images
                    known = (part * 255).round()[:, ~np.eye(8, dtype=bool)]
                    assert (known == pixels[~np.eye(8, dtype=bool)]).all() and part.std() > 0.05
                for which, images in ours.items():
                    np.testing.assert_allclose(images, drawn[which], atol=1e-4, rtol=0, err_msg=f"{name}, {which}")


def test_captions_in_any_script_come_back_from_their_tokens():
    captions = ["a red apple 🍎", "красное яблоко", "りんご と 🍏", "تفاحة حمراء", "ein grüner käse"]
    tokenizer = train_tokenizer(captions)
    told = Prompt(tokenizer=tokenizer, length=CAPTION_LENGTH).of_words(captions, torch.device("cpu"))
    assert tokenizer.batch_decode(told["input_ids"], skip_special_tokens=True) == captions
    assert tokenizer.unk_token_id not in told["input_ids"]


def test_the_same_picture_for_the_same_seed_and_prompt_at_any_batch_size(tiny_cascade):
    pipeline = tiny_cascade()
    told, null, _ = pipeline.ask({"prompt": PROMPTS}, 3.0)
    assert told.keys() == null.keys() == {"input_ids", "attention_mask"}, "checked before any of them is encoded"
    asked = {"prompt": [PROMPTS[k % 3] for k in range(7)], "negative_prompt": ["apple"] * 7}
    call = {"guidance_scale": 3.0, "num_inference_steps": 4}
    drawn = [
        np.concatenate([images for _, images in generate(pipeline, range(7), 0, size, asked, **call)]).astype(int)
        for size in (1, 3, 7)
    ]
    assert np.abs(drawn[0] - drawn[2]).max() <= 1 and np.abs(drawn[1] - drawn[2]).max() <= 1
    assert drawn[0].std() > 10 and drawn[0].shape == (7, 16, 16, 3)


def test_a_picture_to_enlarge_must_be_given_in_the_size_of_the_base(tiny_cascade):
    pipeline = tiny_cascade().upsampler
    with pytest.raises(ValueError, match="`image` must be given for this model: a picture of 8x8 pixels and 3 ch"):
        pipeline("a red apple", guidance_scale=0)
    with pytest.raises(ValueError, match=r"`image` must be a picture of 8x8 .*, got shape \(3, 16, 16\)"):
        pipeline(["a", "b"], torch.zeros(2, 3, 16, 16), guidance_scale=1)
    with pytest.raises(ValueError, match="`output_type` must be one of pil, np, pt, got 'jpg'"):
        tiny_cascade()("a red apple", output_type="jpg")
    with pytest.raises(ValueError, match="`noise_level` must be left out for a model that adds no noise .*, got 3"):
        tiny_cascade()("a red apple", noise_level=3)
    for level in (-1, 1000):
        with pytest.raises(ValueError, match=f"`noise_level` must be from 0 to 999, got {level}"):
            tiny_cascade(imagen=True)("a red apple", noise_level=level)


def test_an_upsampler_that_does_not_fit_is_named(tiny_cascade):
    pipeline = tiny_cascade()
    pipeline.check_parts()
    pipeline.upsampler.unet.register_to_config(_low_side=4)
    with pytest.raises(ValueError, match=r"upsampler must enlarge pictures of shape \(3, 8, 8\), but takes \(3, 4"):
        pipeline.check_parts()
    narrow, unet = pipeline.upsampler.text_encoder, pipeline.upsampler.unet
    unet.register_to_config(_low_side=8)
    pipeline.upsampler.unet = UNet2DConditionModel.from_config({**unet.config, "encoder_hid_dim": 96})
    pipeline.upsampler.text_encoder = small_text_encoder(narrow.config.vocab_size, 96, 1)
    with pytest.raises(ValueError, match="upsampler must be told states of 64 channels, as the base is, got 96"):
        pipeline.check_parts()
    pipeline.upsampler.text_encoder = narrow
    with pytest.raises(ValueError, match="upsampler: text_encoder must have states of 96 channels, .*, got 64"):
        pipeline.check_parts()
    pipeline.upsampler.unet = pipeline.unet
    with pytest.raises(ValueError, match="upsampler: unet must be an upsampler of this package"):
        pipeline.check_parts()


def test_what_is_said_of_a_pipeline_holds_for_its_upsampler(tiny_cascade, tmp_path):
    tiny_cascade().save_pretrained(tmp_path, variant="fp16")
    pipeline = TextToImagePipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.bfloat16)
    assert all(stage.unet.dtype == torch.bfloat16 for stage in pipeline.stages)
    pipeline.enable_attention_slicing()
    pipeline.enable_model_cpu_offload(device="cpu")
    for stage in pipeline.to(torch.float32).stages:
        assert {type(one) for one in stage.unet.attn_processors.values()} == {SlicedAttnAddedKVProcessor}
        assert stage.unet.dtype == torch.float32 and isinstance(stage.unet._hf_hook, CpuOffload)


def test_an_encoder_in_training_mode_does_not_drop_states_while_sampling(tiny_text_pipeline):
    pipeline = tiny_text_pipeline()
    for layer in pipeline.text_encoder.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.5

    def draw() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        call = {"num_inference_steps": 2, "output_type": "pt", "generator": generator}
        return pipeline("a red apple", guidance_scale=3, **call).images

    expected = draw()
    pipeline.text_encoder.train()
    assert torch.equal(draw(), expected) and pipeline.text_encoder.training


def test_a_training_step_is_the_one_of_stock_text_to_image(tiny_text_pipeline):
    """The arithmetic of diffusers' examples/text_to_image/train_text_to_image.py, with its classes, without a VAE."""
    ours = tiny_text_pipeline(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    network = ours.network.eval()
    prompt = Prompt(tokenizer=ours.tokenizer, length=CAPTION_LENGTH)
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    x_0, noise, t = images / 127.5 - 1, torch.randn(3, 3, 8, 8), torch.tensor([3, 500, 999])
    told = tell([prompt], {"images": images, "captions": PROMPTS})
    loss = DiffusionLoss(ours.scheduler, "simple")(network, x_0, noise, t, **told).mean()
    loss.backward()

    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    unet = UNet2DConditionModel.from_config(ours.unet.config).eval()
    unet.load_state_dict(ours.unet.state_dict())
    words = [caption.lower().strip() for caption in PROMPTS]
    tokens = ours.tokenizer(words, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    states = ours.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask, return_dict=False)[0]
    noisy = scheduler.add_noise(x_0, noise, t)
    target = scheduler.get_velocity(x_0, noise, t)
    prediction = unet(noisy, t, states.detach(), return_dict=False)[0][:, :3]
    stock_loss = torch.nn.functional.mse_loss(prediction.float(), target.float(), reduction="mean")
    stock_loss.backward()

    torch.testing.assert_close(loss, stock_loss, rtol=1e-6, atol=0)
    for mine, theirs in zip(ours.unet.parameters(), unet.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=5e-6)
    assert ours.text_encoder.shared.weight.grad.abs().sum() > 0, "the encoder learns too"


def test_attention_is_at_the_levels_closest_to_the_sides_asked_for():
    settings = {"channels": 3, "base_channels": 8, "channel_multipliers": (1, 1, 1), "blocks_per_level": 1}
    settings |= {"attention_resolutions": (32, 16), "dropout": 0, "text_width": 64}
    plain, attending = "DownBlock2D", "SimpleCrossAttnDownBlock2D"
    # 48, 24 and 12 pixels: 32/24 < 48/32, and 16/12 < 24/16.
    assert text_unet_config(48, **settings)["down_block_types"] == (plain, attending, attending)
    with pytest.raises(ValueError, match="`resolution` must be a multiple of 4 for 3 levels, got 50"):
        text_unet_config(50, **settings)


def test_parts_that_do_not_fit_are_named(tiny_text_pipeline):
    pipeline = tiny_text_pipeline()
    pipeline.check_parts()
    tokenizer, encoder, unet = pipeline.tokenizer, pipeline.text_encoder, pipeline.unet
    larger = train_tokenizer([chr(code) for code in range(97, 123)] * 3 + ["and many more words", "to learn here"])
    one_output = UNet2DConditionModel.from_config({**unet.config, "out_channels": 3})
    short = small_text_encoder(len(tokenizer), 64, 1)
    short.config.max_position_embeddings = 16
    for part, value, words in (
        ("text_encoder", small_text_encoder(len(tokenizer), 96, 1), "text_encoder must have states of 64 channels"),
        ("text_encoder", short, "text_encoder must have at least 77 positions, got 16"),
        ("text_encoder", None, "there is no text_encoder"),
        ("tokenizer", None, "there is no tokenizer"),
        ("unet", one_output, "unet must have 6 output channels, got 3"),
        ("tokenizer", larger, f"tokenizer must have at most the {len(tokenizer)} tokens"),
    ):
        setattr(pipeline, part, value)
        with pytest.raises(ValueError, match=words):
            pipeline.check_parts()
        pipeline.tokenizer, pipeline.text_encoder, pipeline.unet = tokenizer, encoder, unet


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({}, "`prompt` must be given for this model: a caption, or one per image"),
        ({"prompt": ["a", 3]}, "`prompt` must be a caption, or one per image, got 3"),
        ({"prompt": ["a", "b"], "batch_size": 3}, "`prompt` must be one per image, got 2 for `batch_size=3`"),
        ({"prompt": "a", "negative_prompt": "b", "guidance_scale": 1}, "`negative_prompt` must be left out"),
        ({"prompt": "a", "negative_prompt": ["b"] * 2}, "`negative_prompt` must be one per image, got 2 for 1"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused(tiny_text_pipeline, call, words):
    with pytest.raises(ValueError, match=words):
        tiny_text_pipeline()(**call)


def test_without_a_prompt_guidance_0_draws_what_the_empty_caption_asks_for(tiny_text_pipeline):
    call = {"num_inference_steps": 2, "output_type": "pt"}
    pipeline = tiny_text_pipeline()
    free = pipeline(guidance_scale=0, generator=torch.Generator().manual_seed(0), **call).images
    empty = pipeline("", guidance_scale=1, generator=torch.Generator().manual_seed(0), **call).images
    torch.testing.assert_close(free, empty)
