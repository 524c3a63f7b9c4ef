"""DDPMUNet2D against diffusers' UNet2DModel: same weights, same numbers, same files."""

import inspect
import json

import pytest
import torch
from diffusers import UNet2DModel

from ddpm_hf.models.unet import DDPMUNet2D, paper_config

# Skip blocks and other variants of UNet2DModel, small enough to run in a second, each reaching other block classes.
STOCK_CONFIGS = {
    "defaults": dict(block_out_channels=(32, 32, 32, 64), norm_num_groups=8),
    "scale_shift": dict(
        block_out_channels=(8, 16),
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=4,
        norm_num_groups=4,
    ),
    "ncsnpp": dict(
        block_out_channels=(32, 64),
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        time_embedding_type="fourier",
        mid_block_scale_factor=1.4,
        norm_num_groups=None,
        attention_head_dim=None,
    ),
    "classes": dict(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        num_class_embeds=4,
    ),
    "paper": paper_config(16, base_channels=8, channel_multipliers=(1, 2, 2), attention_resolutions=(8,)),
}


def pair(config: dict) -> tuple[UNet2DModel, DDPMUNet2D]:
    """Stock's network and ours, each from the same seed, in evaluation mode."""
    torch.manual_seed(0)
    stock = UNet2DModel(**config).eval()
    torch.manual_seed(0)
    return stock, DDPMUNet2D(**config).eval()


def inputs(config: dict, size: tuple[int, int] = (16, 16)) -> dict:
    """Two noisy images at two timesteps, with two labels where the network wants them."""
    generator = torch.Generator().manual_seed(1)
    arguments = {
        "sample": torch.randn(2, config.get("in_channels", 3), *size, generator=generator),
        "timestep": torch.tensor([3, 900]),
    }
    if config.get("num_class_embeds"):
        arguments["class_labels"] = torch.tensor([0, 3])
    return arguments


@pytest.fixture(params=STOCK_CONFIGS, name="config")
def config_fixture(request) -> dict:
    return STOCK_CONFIGS[request.param]


def test_bare_constructor_draws_the_weights_of_stock(config):
    stock, ours = pair(config)
    assert list(stock.state_dict()) == list(ours.state_dict())
    for name, weight in stock.state_dict().items():
        assert torch.equal(weight, ours.state_dict()[name]), name
    assert {**stock.config} == {**ours.config}


def test_constructor_has_the_signature_of_stock():
    assert inspect.signature(DDPMUNet2D) == inspect.signature(UNet2DModel)
    assert DDPMUNet2D(16, 1, 1, **STOCK_CONFIGS["classes"]).config.in_channels == 1


def test_outputs_are_those_of_stock_bit_for_bit(config):
    stock, ours = pair(config)
    arguments = inputs(config)
    with torch.no_grad():
        expected = stock(**arguments)
        assert torch.equal(ours(**arguments).sample, expected.sample)
        assert torch.equal(ours(**arguments, return_dict=False)[0], expected.sample)
    assert type(ours(**arguments)) is type(expected)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_outputs_are_those_of_stock_under_autocast(memory_format):
    stock, ours = (model.to(memory_format=memory_format) for model in pair(STOCK_CONFIGS["paper"]))
    arguments = inputs(STOCK_CONFIGS["paper"])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(**arguments).sample, stock(**arguments).sample)


def test_gradients_are_those_of_stock(config):
    stock, ours = pair(config)
    for model in (stock, ours):
        model(**inputs(config)).sample.square().mean().backward()
    for (name, expected), got in zip(stock.named_parameters(), ours.parameters(), strict=True):
        if expected.requires_grad:
            assert torch.equal(got.grad, expected.grad), name


def test_saved_network_loads_in_stock_and_back(config, tmp_path):
    _, ours = pair(config)
    ours.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours/config.json").read_text())["_class_name"] == "UNet2DModel"
    stock, info = UNet2DModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    stock.save_pretrained(tmp_path / "stock")
    back, info = DDPMUNet2D.from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert not any(info.values()), info
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, stock.state_dict()[name]) and torch.equal(weight, back.state_dict()[name]), name
    with torch.no_grad():
        expected = ours(**inputs(config)).sample
        # Memory-mapped weights may be aligned differently, and then kernels sum in another order.
        torch.testing.assert_close(stock(**inputs(config)).sample, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(back(**inputs(config)).sample, expected, atol=1e-5, rtol=1e-5)
