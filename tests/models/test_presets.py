"""The presets against the paper's published numbers, and against what every preset promises."""

import inspect

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel, UNet2DModel
from diffusers.optimization import SchedulerType

from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.models.clip import new_clip, train_clip_tokenizer
from ddpm_hf.models.presets import PRESETS, Preset, get_preset
from ddpm_hf.models.prior import new_prior
from ddpm_hf.models.text import small_text_encoder
from ddpm_hf.models.text_unet import new_text_unet, text_unet_config
from ddpm_hf.models.unet import paper_config
from ddpm_hf.systems.plan import stages_of

# Ho et al. 2020 (arXiv 2006.11239), section 4 and appendix B; what the paper leaves out is from the authors' code
# (github.com/hojonathanho/diffusion, scripts/run_cifar.py and run_celebahq.py): the number of blocks, the clipping.
PAPER = {
    "ddpm-cifar10": dict(
        parameters=35_746_307,
        model=dict(
            resolution=32,
            channels=3,
            base_channels=128,
            channel_multipliers=(1, 2, 2, 2),
            attention_resolutions=(16,),
            blocks_per_level=2,
            dropout=0.1,
        ),
        variance_type="fixed_large",
        learning_rate=2e-4,
        batch_size=128,
        steps=800_000,
    ),
    "ddpm-256": dict(
        parameters=113_673_219,
        model=dict(
            resolution=256,
            channels=3,
            base_channels=128,
            channel_multipliers=(1, 1, 2, 2, 4, 4),
            attention_resolutions=(16,),
            blocks_per_level=2,
            dropout=0.0,
        ),
        variance_type="fixed_small",
        learning_rate=2e-5,
        batch_size=64,
        steps=500_000,
    ),
}

# What every preset decides: flags of diffusers' train_unconditional.py, and flags that it has not.
STOCK_FLAGS = {
    "learning_rate",
    "lr_scheduler",
    "lr_warmup_steps",
    "train_batch_size",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "adam_weight_decay",
    "random_flip",
}
T5_BASE = 768  # channels of the states of google/t5-v1_1-base
OWN_FLAGS = {"max_train_steps", "max_grad_norm", "ema_decay"}


def parameters(preset: Preset) -> int:
    with torch.device("meta"):
        return UNet2DModel(**paper_config(**preset.model)).num_parameters()


@pytest.fixture(params=[name for name, preset in PRESETS.items() if preset.system == "ddpm"], name="preset")
def preset_fixture(request) -> Preset:
    return PRESETS[request.param]


@pytest.mark.parametrize("name", PAPER)
def test_paper_presets_are_the_paper(name):
    preset, paper = get_preset(name), PAPER[name]
    assert preset.model == paper["model"]
    assert parameters(preset) == paper["parameters"]
    assert preset.process == dict(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        rescale_betas_zero_snr=False,
        variance_type=paper["variance_type"],
        prediction_type="epsilon",
        clip_sample=True,
        timestep_spacing="linspace",
    )
    assert preset.training == dict(
        learning_rate=paper["learning_rate"],
        lr_scheduler="constant_with_warmup",
        lr_warmup_steps=5000,
        train_batch_size=paper["batch_size"],
        max_train_steps=paper["steps"],
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        adam_weight_decay=0.0,
        max_grad_norm=1.0,
        ema_decay=0.9999,
        ema_warmup=False,
        loss_weighting="none",
        timestep_sampling="uniform",
        random_flip=True,
        # Ours: the paper has neither classes nor captions.
        condition_dropout=0.1,
        preview_guidance_scale=1.0,
        eval_metrics=["nll"],
    )


@pytest.mark.parametrize(
    ("name", "tokens", "millions", "hidden"),
    [  # hidden: arXiv 2112.10741, section 4, and arXiv 2205.11487, section 3.1
        *(("glide-digits", 358, 2.1, 0.2), ("glide-64", 8451, 115, 0.2), ("glide-paper", 8451, 387, 0.2)),
        *(("imagen-digits", None, 1.5, 0.1), ("imagen-64-256", None, 221, 0.1)),  # with a frozen encoder
    ],
)
def test_text_presets_have_the_size_that_they_say_and_hide_captions_as_the_paper_does(name, tokens, millions, hidden):
    preset = get_preset(name)
    model = {**preset.model}
    width, layers = model.pop("text_width"), model.pop("text_layers")
    width = T5_BASE if name == "imagen-64-256" else width
    with torch.device("meta"):
        unet = UNet2DConditionModel(**text_unet_config(**model, text_width=width))
        learned = 0 if tokens is None else small_text_encoder(tokens, width, layers).num_parameters()
    assert f"{millions} M parameters" in preset.description
    assert (unet.num_parameters() + learned) / 1e6 == pytest.approx(millions, rel=0.03)
    assert preset.training["condition_dropout"] == hidden


@pytest.mark.parametrize(
    ("name", "factor", "millions"),
    [
        *(("glide-digits", 2, 1.04), ("glide-64", 4, 17.4), ("glide-paper", 4, 323)),
        *(("imagen-digits", 2, 1.06), ("imagen-64-256", 4, 182)),
        *(("dalle2-digits", 2, 0.86), ("dalle2-64-256", 4, 62)),
    ],
)
def test_the_upsampler_of_a_preset_fits_its_base(name, factor, millions):
    base, preset = get_preset(name), get_preset(name).upsampler
    model = {**preset.model}
    assert model.pop("upsampling") == factor
    is_dalle2 = name.startswith("dalle2")
    # arXiv 2204.06125, table 3 and section 2.1; 2112.10741, section 4.
    assert preset.process["beta_schedule"] == ("squaredcos_cap_v2" if is_dalle2 else "linear")
    assert (model["attention_resolutions"] == ()) == is_dalle2
    low_side = model.pop("resolution")
    assert (low_side, model["channels"]) == (base.model["resolution"], base.model["channels"])
    width, told_noise = 64 if is_dalle2 else base.model["text_width"], name.startswith("imagen")
    width = T5_BASE if name == "imagen-64-256" else width
    efficient = model.pop("efficient_unet", False)
    with torch.device("meta"):
        unet = new_text_unet(
            *(low_side, told_noise),
            resolution=factor * low_side,
            text_width=width,
            efficient=efficient,
            **model,
        )
    assert unet.num_parameters() / 1e6 == pytest.approx(millions, rel=0.03)
    assert efficient == (name == "imagen-64-256") == unet.config.only_cross_attention
    if efficient:  # arXiv 2205.11487, appendix B and F.1
        assert list(unet.config.layers_per_block) == [2, 4, 8, 8]
        assert unet.config.resnet_out_scale_factor == unet.config.mid_block_scale_factor == 2**0.5
    assert (unet.config.in_channels, unet.config.out_channels) == (6, 6)


@pytest.mark.parametrize(("name", "merges", "millions"), [("dalle2-digits", 260, 0.4), ("dalle2-64-256", 8192, 128)])
def test_the_clip_of_a_preset_has_the_size_that_it_says_and_fits_a_prior(name, merges, millions):
    preset = get_preset(name).clip
    model, tokenizer = preset.model, train_clip_tokenizer([], preset.model["text_length"])
    tokens = {f"<{number}>" for number in range(merges)}
    assert tokenizer.add_tokens(sorted(tokens)) == merges
    with torch.device("meta"):
        clip = new_clip(
            model["resolution"],
            tokenizer,
            width=model["clip_width"],
            layers=model["clip_layers"],
            text_width=model["text_width"],
            text_layers=model["text_layers"],
            embedding_width=model["embedding_width"],
            patch=model["patch_size"],
        )
    assert f"{millions} M parameters" in preset.description
    assert sum(weight.numel() for weight in clip.parameters()) / 1e6 == pytest.approx(millions, rel=0.1)
    assert model["text_width"] == model["embedding_width"], "PriorTransformer has one width for states and embeddings"


@pytest.mark.parametrize(("name", "millions", "of_prior"), [("dalle2-digits", 1.6, 0.5), ("dalle2-64-256", 229, 155)])
def test_decoder_and_prior_of_a_preset_have_the_sizes_that_they_say_and_fit_their_clip(name, millions, of_prior):
    preset = get_preset(name)
    width, prior = preset.clip.model["embedding_width"], preset.prior.model
    with torch.device("meta"):
        sizes = {"width": prior["prior_width"], "layers": prior["prior_layers"]}
        weights = new_prior(width, preset.clip.model["text_length"], **sizes).num_parameters()
        unet = UNet2DConditionModel(**text_unet_config(**preset.model, text_width=width, told="image"))
        images, states = unet.add_embedding.image_proj, unet.encoder_hid_proj
        assert states(torch.empty(5, width)).shape == (5, 32, unet.config.cross_attention_dim)
    assert images.in_features == width and images.out_features == 4 * preset.model["base_channels"]
    assert f"decoder of {millions} M parameters" in preset.description
    assert unet.num_parameters() / 1e6 == pytest.approx(millions, rel=0.01)
    assert preset.model["resolution"] == preset.clip.model["resolution"]
    assert f"{of_prior} M parameters" in preset.prior.description
    assert weights / 1e6 == pytest.approx(of_prior, rel=0.02)
    assert preset.training["condition_dropout"] == 0.1  # arXiv 2204.06125, section 2.1


# Of glide-text2im (commit 69b5307): its `create_model` with its default options, built and counted.
GLIDE = {"base": 385_030_726, "upsampler": 398_361_286}


@pytest.mark.parametrize("stage", GLIDE)
def test_glide_paper_is_the_published_model_but_for_what_stock_pipelines_cannot_tell(stage):
    """They pass on no last token, which GLIDE projects, and the paper's blocks change the size by residual blocks."""
    base, text_width, layers, tokens, positions = get_preset("glide-paper"), 512, 16, 50257, 128
    preset = base if stage == "base" else base.upsampler
    resolution = 64 * preset.model.get("upsampling", 1)
    names = inspect.signature(text_unet_config).parameters.keys() & preset.model.keys()
    model = {name: preset.model[name] for name in names} | {"resolution": resolution, "text_width": text_width}
    config = text_unet_config(**model) | {"in_channels": 3 if stage == "base" else 6}
    blocks = {"DownBlock2D": "ResnetDownsampleBlock2D", "UpBlock2D": "ResnetUpsampleBlock2D"}
    glides = config | {
        **{name: tuple(blocks.get(b, b) for b in config[name]) for name in ("down_block_types", "up_block_types")},
        **{"encoder_hid_dim": None, "encoder_hid_dim_type": None, "cross_attention_dim": text_width},
        **{"addition_embed_type": None, "class_embed_type": "simple_projection"},
        "projection_class_embeddings_input_dim": text_width,
    }
    with torch.device("meta"):
        ours, published = (UNet2DConditionModel(**each).num_parameters() for each in (config, glides))
    # Weights and biases of attention, of the two layers after it, and of three norms; words, positions and padding.
    transformer = layers * (12 * text_width**2 + 13 * text_width) + 2 * text_width
    transformer += (tokens + 2 * positions) * text_width
    assert published == GLIDE[stage] - transformer
    assert 0 < ours / published - 1 < 0.024
    assert (base.model["text_width"], base.model["text_layers"]) == (text_width, layers)
    assert preset.process["variance_type"] == "learned_range" and preset.process["prediction_type"] == "epsilon"
    assert preset.process["beta_schedule"] == {"base": "squaredcos_cap_v2", "upsampler": "linear"}[stage]


@pytest.mark.parametrize(
    ("name", "millions"), [("digits", (0.7, 0.9)), ("small-32", (3.0, 8.0)), ("small-64", (8.0, 16.0))]
)
def test_own_presets_are_small(name, millions):
    assert millions[0] <= parameters(PRESETS[name]) / 1e6 <= millions[1]


def test_every_preset_runs_in_stock_without_arguments(preset):
    """Unconditional, T = 1000 (the pipeline's default number of steps), and a size that stock need not pad."""
    config = paper_config(**preset.model)
    assert config["num_class_embeds"] is None
    assert preset.process["num_train_timesteps"] == 1000
    assert preset.process["timestep_spacing"] == "linspace"
    assert config["sample_size"] % 2 ** (len(config["block_out_channels"]) - 1) == 0
    scheduler = DDPMScheduler(**preset.process)
    scheduler.set_timesteps(1000)
    assert scheduler.timesteps[0] == 999
    # Nothing of the image is left at the last timestep.
    assert scheduler.alphas_cumprod[-1] < 1e-4


def test_every_preset_uses_known_arguments(preset):
    assert preset.model.keys() <= inspect.signature(paper_config).parameters.keys()
    assert preset.process.keys() <= inspect.signature(DDPMScheduler.__init__).parameters.keys()
    assert preset.training.keys() >= STOCK_FLAGS | OWN_FLAGS
    SchedulerType(preset.training["lr_scheduler"])  # ValueError for a name that diffusers does not know


def test_a_preset_can_be_adapted(preset):
    model = {**preset.model, "resolution": (30, 44), "channels": 4, "num_classes": 10, "learned_variance": True}
    config = paper_config(**model)
    assert (config["in_channels"], config["out_channels"], config["num_class_embeds"]) == (4, 8, 11)
    assert config["sample_size"] == [30, 44]
    assert "sample_size" not in preset.model and preset.model["channels"] in (1, 3)


def test_an_unknown_preset_is_answered_with_the_choices():
    with pytest.raises(ValueError, match="must be one of ddpm-cifar10, ddpm-256, digits, .*, got 'ddpm-cifar'"):
        get_preset("ddpm-cifar")


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if "text_encoder" in preset.training])
def test_a_text_encoder_can_be_learned_with_every_preset_of_one(name):
    """Also with those whose own is frozen: nothing that it takes is missing."""
    flags = ["--system", PRESETS[name].system, "--preset", name, "--text_encoder", "train"]
    config = parse_training_arguments(flags)
    settings = next(stage for stage in stages_of(config) if stage.folder == ".").resolve(config, None).flags()
    assert all(settings[flag] is not None for flag in ("text_rate", "text_warmup_steps", "text_width", "text_layers"))
