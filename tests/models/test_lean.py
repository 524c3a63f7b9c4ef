"""The lean forward pass against diffusers' own, and for which networks it stands back."""

import diffusers
import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_dispatch import attention_backend
from peft import LoraConfig

from ddpm_hf import DDPMPipeline, DDPMUNet2D, LinearDDPMScheduler
from ddpm_hf.models.lean import LeanUNet, is_lean

TIMESTEPS = torch.tensor([999, 500, 17, 0])
SMALL = {
    **{"sample_size": 8, "in_channels": 2, "out_channels": 3, "block_out_channels": (8, 16), "layers_per_block": 2},
    **{"norm_num_groups": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D")},
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


def network(network_class: type[UNet2DModel] = UNet2DModel, **changes) -> UNet2DModel:
    """With random weights in every layer, biases and norms too."""
    torch.manual_seed(0)
    unet = network_class(**{**SMALL, **changes}).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return unet


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_head_dim": 4, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1},
        {"add_attention": False, "dropout": 0.3},
        {"block_out_channels": (8, 8, 16), "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D")}
        | {"up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")},
        {"num_class_embeds": 3},
    ],
)
@torch.no_grad()
def test_equals_the_stock_forward(changes, batch):
    unet = network(**changes)
    assert is_lean(unet)
    lean, x = LeanUNet(unet, TIMESTEPS), torch.randn(batch, 2, 8, 8)
    labels = torch.arange(batch) % 3 if "num_class_embeds" in changes else None
    for step, t in enumerate(TIMESTEPS):
        wanted = unet(x, t, labels).sample
        assert wanted.std() > 0.1
        torch.testing.assert_close(lean(x, step, labels), wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_sizes_that_cannot_be_halved():
    unet, x = network(DDPMUNet2D), torch.randn(2, 2, 5, 7)
    torch.testing.assert_close(LeanUNet(unet, TIMESTEPS)(x, 1), unet(x, 500).sample, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_half_precision_stays_as_near_to_float32_as_the_stock_forward():
    x, exact = torch.randn(4, 2, 8, 8), network()
    wanted = exact(x, 500).sample
    half = network().to(torch.bfloat16)
    stock = half(x.bfloat16(), 500).sample.float()
    lean = LeanUNet(half, TIMESTEPS)(x.bfloat16(), 1).float()
    assert (lean - wanted).square().mean() < 1.5 * (stock - wanted).square().mean()


STRANGERS = {
    "in training": lambda unet: unet.train(),
    "with an adapter": lambda unet: unet.add_adapter(LoraConfig(target_modules=["to_q"])),
    "with a hook": lambda unet: unet.mid_block.register_forward_hook(lambda *arguments: None),
    "with another forward": lambda unet: setattr(unet.conv_in, "forward", unet.conv_in.forward),
    "compiled": lambda unet: unet.compile(),
    "of two precisions": lambda unet: unet.conv_out.double(),
    "with another attention backend": lambda unet: unet.set_attention_backend("_native_math"),
    "with FreeU": lambda unet: [setattr(unet.up_blocks[1], name, 1.1) for name in ("s1", "s2", "b1", "b2")],
}


@pytest.mark.usefixtures("restore_backend")
@pytest.mark.parametrize("change", STRANGERS.values(), ids=STRANGERS)
def test_a_network_that_is_more_than_its_weights_is_left_alone(change):
    unet = network(DDPMUNet2D)
    assert is_lean(unet)
    change(unet)
    assert not is_lean(unet)


@pytest.mark.parametrize(
    "changes",
    [
        {"time_embedding_type": "fourier"},
        {"resnet_time_scale_shift": "scale_shift"},
        {"class_embed_type": "timestep"},
        {"act_fn": "relu"},
        {"downsample_type": "resnet", "down_block_types": ("AttnDownBlock2D", "DownBlock2D")},
        {"upsample_type": "resnet"},
        {"mid_block_scale_factor": 2.0},
        {"down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D")}
        | {"up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"), "block_out_channels": (32, 32)},
    ],
)
def test_an_architecture_of_other_parts_is_left_alone(changes):
    assert not is_lean(network(**changes))


def test_an_attention_backend_of_the_whole_process_is_followed():
    """By layers of ours alone: diffusers' own processor does not ask for it."""
    ours, stock = network(DDPMUNet2D), network()
    with attention_backend("_native_math"):
        assert not is_lean(ours) and is_lean(stock)
    assert is_lean(ours)


def test_autocast_is_left_alone():
    unet = network()
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_lean(unet)


@pytest.mark.parametrize("classes", [None, 3])
def test_the_pipeline_uses_it_and_sees_changed_weights(classes, monkeypatch):
    """Against the stock pipeline or, with classes, against the ordinary forward of the same network."""
    unet = network(in_channels=3, num_class_embeds=classes)
    pipeline = DDPMPipeline(unet, LinearDDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def draw(pipeline, **call):
        images = pipeline(2, torch.Generator().manual_seed(0), 4, output_type="np", **call).images
        return torch.from_numpy(images)

    def ordinary():
        if classes is None:
            stock = diffusers.DDPMPipeline(unet, LinearDDPMScheduler())
            stock.set_progress_bar_config(disable=True)
            return draw(stock)
        with monkeypatch.context() as patch:
            patch.setattr("ddpm_hf.pipelines.ddpm.is_lean", lambda unet: False)
            return draw(pipeline, class_labels=[2, 0])

    calls = []
    run = LeanUNet.__call__
    monkeypatch.setattr(LeanUNet, "__call__", lambda *arguments: calls.append(1) or run(*arguments))
    for _ in range(2):
        call = {} if classes is None else {"class_labels": [2, 0]}
        torch.testing.assert_close(draw(pipeline, **call), ordinary(), atol=1e-5, rtol=0)
        with torch.no_grad():
            for parameter in unet.parameters():
                parameter.mul_(0.9)
    assert len(calls) == 8
