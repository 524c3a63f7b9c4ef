"""Whatever `UNet2DModel` can be made of, `DDPMPipeline` draws with it what diffusers' pipeline draws."""

import functools
import inspect
import random

import diffusers
import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from ddpm_hf import DDPMPipeline, DDPMUNet2D, LinearDDPMScheduler

SKIP_DOWN, SKIP_UP = ("SkipDownBlock2D", "AttnSkipDownBlock2D"), ("AttnSkipUpBlock2D", "SkipUpBlock2D")
# Every argument of the constructor and values of it: stock's default first, or what is as usual and small.
VALUES = {
    "sample_size": [8, 16, (8, 4)],
    "in_channels": [3, 1, 4],
    "out_channels": [3, 1, 4, 6],
    "center_input_sample": [False, True],
    "time_embedding_type": ["positional", "fourier", "learned"],
    "time_embedding_dim": [None, 24],
    "freq_shift": [0, 1],
    "flip_sin_to_cos": [True, False],
    "down_block_types": [
        ("AttnDownBlock2D", "DownBlock2D"),
        ("DownBlock2D", "AttnDownBlock2D"),
        ("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
        SKIP_DOWN,
    ],
    "mid_block_type": ["UNetMidBlock2D", None],
    "up_block_types": [
        ("AttnUpBlock2D", "UpBlock2D"),
        ("UpBlock2D", "AttnUpBlock2D"),
        ("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
        SKIP_UP,
    ],
    "block_out_channels": [(8, 16), (16, 8), (8, 8, 16)],
    "layers_per_block": [1, 2],
    "mid_block_scale_factor": [1, 1.4],
    "downsample_padding": [1, 0],
    "downsample_type": ["conv", "resnet"],
    "upsample_type": ["conv", "resnet"],
    "dropout": [0.0, 0.5],
    "act_fn": ["silu", "relu", "gelu", "mish"],
    "attention_head_dim": [8, 4, None],
    "norm_num_groups": [4, 2, None],
    "attn_norm_num_groups": [None, 2],
    "norm_eps": [1e-5, 1e-2],
    "resnet_time_scale_shift": ["default", "scale_shift"],
    "add_attention": [True, False],
    "class_embed_type": [None, "timestep", "identity"],
    "num_class_embeds": [None, 4],
    "num_train_timesteps": [None, 1000],
}
# What stock refuses alone.
NEEDS = {
    ("in_channels", 1): {"out_channels": 1},
    ("in_channels", 4): {"out_channels": 4},
    ("out_channels", 1): {"in_channels": 1},
    ("out_channels", 4): {"in_channels": 4},
    ("out_channels", 6): {"in_channels": 3},  # a learned variance
    ("time_embedding_type", "learned"): {"num_train_timesteps": 1000},
    ("block_out_channels", (8, 8, 16)): {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
    ("down_block_types", SKIP_DOWN): {"block_out_channels": (32, 32)},
    ("up_block_types", SKIP_UP): {"block_out_channels": (32, 32)},
    ("norm_num_groups", None): {
        "down_block_types": SKIP_DOWN,
        "up_block_types": SKIP_UP,
        "block_out_channels": (32, 32),
    },
}
IMAGES = 2


def test_no_argument_is_left_out():
    unknown = set(inspect.signature(UNet2DModel.__init__).parameters) - {"self"} ^ set(VALUES)
    assert not unknown, f"diffusers added or removed {sorted(unknown)} of UNet2DModel: keep VALUES in step with it"


@pytest.mark.parametrize("argument", VALUES)
def test_same_pixels_as_stock(argument):
    """Every unusual value, with all other arguments as usual and with others drawn at random."""
    for value in VALUES[argument][1:]:
        needed = {argument: value, **NEEDS.get((argument, value), {})}
        assert agree({**random_config(None), **needed}), f"diffusers does not draw with {needed}"
        drawn = ({**random_config(f"{needed} {number}"), **needed} for number in range(100))
        assert any(map(agree, drawn)), f"diffusers takes {needed} with nothing that was drawn"


def random_config(seed: str | None) -> dict:
    """Each argument has, with a probability of 0.3, any of its values, else the usual one; always without a seed."""
    choice = random.Random(seed)
    return {
        name: choice.choice(values) if seed and choice.random() < 0.3 else values[0] for name, values in VALUES.items()
    }


def agree(config: dict) -> bool:
    """Raises AssertionError if the two pipelines differ; False if diffusers does not draw with these values."""
    learned = config["out_channels"] == 2 * config["in_channels"]
    if not learned and config["out_channels"] != config["in_channels"]:
        return False  # diffusers would spread one channel over three without a word
    if learned and config["time_embedding_type"] == "fourier":
        return False  # the variance of a last step at t = 1, which diffusers takes for 1e-20
    try:
        stock, network = draw_stock(config)
    except (ValueError, RuntimeError, TypeError, AttributeError):
        return False
    unusual = {name: value for name, value in config.items() if value != VALUES[name][0]}
    assert np.isfinite(stock).all() and stock.std() > 0.02, unusual
    np.testing.assert_allclose(draw_ours(config, network), stock, atol=2e-4, rtol=0, err_msg=str(unusual))
    return True


def draw_stock(config: dict) -> tuple[np.ndarray, UNet2DModel]:
    torch.manual_seed(0)
    network = UNet2DModel(**config).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # also those that begin with zeros or ones
            parameter.add_(0.1 * torch.randn_like(parameter))
    pipeline = diffusers.DDPMPipeline(told_classes(network), diffusers.DDPMScheduler(**process(config)))
    return draw(pipeline), network


def draw_ours(config: dict, stock: UNet2DModel) -> np.ndarray:
    network = DDPMUNet2D(**config)
    network.load_state_dict(stock.state_dict())
    labels = {}
    if config["num_class_embeds"] is not None and config["class_embed_type"] != "identity":
        labels = {"class_labels": class_labels(network).tolist()}
    else:
        told_classes(network)  # embeddings, or numbers without a range: no call of ours can name such a class
    return draw(DDPMPipeline(network, LinearDDPMScheduler(**process(config))), **labels)


def process(config: dict) -> dict:
    """Settings of the schedulers. What the network gives is the image itself, so that little is clipped."""
    learned = config["out_channels"] == 2 * config["in_channels"]
    settings = {"prediction_type": "sample", "variance_type": "learned_range" if learned else "fixed_small"}
    if config["time_embedding_type"] == "fourier":  # of log t, so the chain ends at t = 1
        return settings | {"timestep_spacing": "leading", "steps_offset": 1}
    return settings | {"timestep_spacing": "linspace"}


def class_labels(network: UNet2DModel) -> torch.Tensor | None:
    """What the network takes for classes: numbers, or embeddings as they are."""
    if network.class_embedding is None:
        return None
    if network.config.class_embed_type == "identity":
        width = network.time_embedding.linear_2.out_features
        return torch.randn(IMAGES, width, generator=torch.Generator().manual_seed(0))
    return torch.tensor([3, 1])


def told_classes(network: UNet2DModel) -> UNet2DModel:
    """The network, with its classes given to each call, since diffusers' pipeline passes none."""
    labels = class_labels(network)
    if labels is not None:
        network.forward = functools.partial(network.forward, class_labels=labels)
    return network


def draw(pipeline: diffusers.DDPMPipeline, **call) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(IMAGES, torch.Generator().manual_seed(0), 2, "np", **call).images
