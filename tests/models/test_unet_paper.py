"""The paper's construction, initialisation and image sizes."""

import math

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from scipy import stats

from ddpm_hf.models.unet import DDPMUNet2D, default_depth, pad_to_multiple, paper_config

TINY = dict(base_channels=8, channel_multipliers=(1, 2, 2), attention_resolutions=(8,), blocks_per_level=1)
# Layers that close a residual branch or the network, by their names in the state dict.
CLOSING = ("conv2.weight", "to_out.0.weight", "conv_out.weight")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- initialisation


@pytest.fixture(name="paper_weights", scope="module")
def paper_weights_fixture() -> dict[str, torch.Tensor]:
    """Of a network that was something else before: nothing of it may remain."""
    model = DDPMUNet2D.from_paper(16, base_channels=32, num_classes=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    model.init_paper_weights(seeded(0))
    return model.state_dict()


def test_weights_have_the_variance_of_the_paper(paper_weights):
    """Uniform on ±sqrt(3 scale / fan_avg); the bound of 6 standard deviations is that of a sample variance."""
    for name, weight in paper_weights.items():
        if weight.ndim < 2 or name.startswith("class_embedding"):
            continue
        receptive_field = math.prod(weight.shape[2:])
        fan_avg = (weight.shape[0] + weight.shape[1]) / 2 * receptive_field
        variance = (1e-10 if name.endswith(CLOSING) else 1.0) / fan_avg
        assert weight.abs().max() <= math.sqrt(3 * variance) * (1 + 1e-6), name
        relative_error = weight.double().square().mean().item() / variance - 1
        # Var(x²) = 4/5 Var(x)² for a uniform x
        assert abs(relative_error) < 6 * math.sqrt(0.8 / weight.numel()), name


def test_weights_are_uniform(paper_weights):
    weight = paper_weights["mid_block.resnets.0.conv1.weight"].flatten().double()
    bound = math.sqrt(3 / (64 * 9))
    assert stats.kstest(weight.numpy(), stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3


def test_class_embedding_is_standard_normal(paper_weights):
    weight = paper_weights["class_embedding.weight"].flatten().double()
    assert stats.kstest(weight.numpy(), "norm").pvalue > 1e-3


def test_biases_are_zero_and_norms_the_identity(paper_weights):
    for name, weight in paper_weights.items():
        if name.endswith("bias"):
            assert not weight.any(), name
        elif weight.ndim == 1:
            assert torch.equal(weight, torch.ones_like(weight)), name


def test_untrained_network_predicts_nearly_zero():
    model = DDPMUNet2D.from_paper(16, **TINY, generator=seeded(0))
    prediction = model(torch.randn(2, 3, 16, 16, generator=seeded(1)), 500).sample
    assert 0 < prediction.abs().max() < 1e-4


def test_initialisation_depends_on_the_generator_only():
    first = DDPMUNet2D.from_paper(16, **TINY, generator=seeded(0))
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    second = DDPMUNet2D(**paper_config(16, **TINY))
    torch.set_rng_state(before)
    second.init_paper_weights(seeded(0))
    assert torch.equal(torch.get_rng_state(), before), "the global generator was used"
    third = DDPMUNet2D.from_paper(16, **TINY, generator=seeded(1))
    for a, b, c in zip(first.parameters(), second.parameters(), third.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim < 2 or not torch.equal(a, c)


# --- what a network must do


def test_gradient_reaches_every_parameter():
    model = DDPMUNet2D.from_paper(16, **TINY, num_classes=3, learned_variance=True, generator=seeded(0))
    sample = torch.randn(4, 3, 16, 16, generator=seeded(1))
    output = model(sample, torch.tensor([0, 10, 500, 999]), torch.arange(4)).sample
    (output * torch.randn(output.shape, generator=seeded(2))).sum().backward()
    for name, parameter in model.named_parameters():
        # A constant added to all keys shifts all scores of a query alike, and softmax does not see it.
        if not name.endswith("to_k.bias"):
            assert parameter.grad.abs().sum() > 0, name


def test_images_of_a_batch_do_not_meet():
    model = DDPMUNet2D(**paper_config(16, **TINY)).eval()
    sample = torch.randn(3, 3, 16, 16, generator=seeded(1), requires_grad=True)
    timesteps = torch.tensor([0, 500, 999])
    output = model(sample, timesteps).sample
    (gradient,) = torch.autograd.grad(output[1].square().sum(), sample)
    assert not gradient[0].any() and not gradient[2].any() and gradient[1].any()
    for row in range(3):
        alone = model(sample[row : row + 1], timesteps[row : row + 1]).sample
        torch.testing.assert_close(alone[0], output[row], atol=1e-5, rtol=1e-5)


def test_labels_change_the_prediction_and_the_null_class_is_the_last_row():
    model = DDPMUNet2D(**paper_config(16, **TINY, num_classes=10)).eval()
    assert model.config.num_class_embeds == 11
    sample = torch.randn(1, 3, 16, 16, generator=seeded(1)).expand(2, -1, -1, -1)
    with torch.no_grad():
        real, null = model(sample, 500, torch.tensor([0, 10])).sample
    assert not torch.allclose(real, null, atol=1e-4)


def test_labels_are_required_exactly_when_there_are_classes():
    sample = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match="class_labels should be provided"):
        DDPMUNet2D(**paper_config(16, **TINY, num_classes=2))(sample, 0)
    with pytest.raises(ValueError, match="class_embedding needs to be initialized"):
        DDPMUNet2D(**paper_config(16, **TINY))(sample, 0, torch.tensor([0]))


# --- sizes


@pytest.mark.parametrize("size", [(31, 45), (7, 7), (1, 1), (2, 3), (16, 18), (9, 64)])
def test_padding_is_reflection_on_all_sides(size):
    images = torch.randn(2, 3, *size, generator=seeded(0))
    margins = [((-side % 8) // 2, -side % 8 - (-side % 8) // 2) for side in size]
    expected = np.pad(images.numpy(), ((0, 0), (0, 0), *margins), mode="reflect")
    padded = pad_to_multiple(images, 8)
    assert padded.shape[-2] % 8 == 0 and padded.shape[-1] % 8 == 0
    np.testing.assert_array_equal(padded.numpy(), expected)


@pytest.mark.parametrize("size", [(31, 45), (7, 7), (16, 18), (3, 5)])
def test_any_size_runs_as_stock_runs_the_padded_image(size):
    config = paper_config(size, **TINY)
    torch.manual_seed(0)
    ours, stock = DDPMUNet2D(**config).eval(), UNet2DModel(**config).eval()
    stock.load_state_dict(ours.state_dict())
    sample = torch.randn(2, 3, *size, generator=seeded(1))
    top, left = ((-side % 4) // 2 for side in size)
    with torch.no_grad():
        output = ours(sample, 500).sample
        assert output.shape == sample.shape
        expected = stock(pad_to_multiple(sample, 4), 500).sample[..., top : top + size[0], left : left + size[1]]
        assert torch.equal(output, expected)
        assert torch.equal(ours(sample, 500, return_dict=False)[0], expected)
        with pytest.raises(RuntimeError):  # why padding is needed at all
            stock(sample, 500)


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (30, 30), (48, 32), (64, 36)])
def test_default_depth_is_one_that_stock_can_run(size):
    config = paper_config(size, channels=1, base_channels=8, blocks_per_level=1)
    stock = UNet2DModel(**config).eval()
    with torch.no_grad():
        assert stock(torch.zeros(1, 1, *size), 0).sample.shape == (1, 1, *size)


def test_default_depth_is_the_largest_the_size_bears():
    depths = {(32, 32): 4, (64, 64): 4, (256, 256): 4, (28, 28): 3, (12, 12): 3, (30, 30): 2, (64, 28): 3, (28, 30): 2}
    assert {size: default_depth(*size) for size in depths} == depths
    # odd: padded whatever the depth, and 4 pixels remain at the lowest level
    odd = {(31, 45): 4, (33, 33): 4, (15, 17): 3, (7, 7): 2, (1, 1): 2}
    assert {size: default_depth(*size) for size in odd} == odd


# --- the configuration


def test_reloaded_configuration_is_equal(tmp_path):
    model = DDPMUNet2D(**paper_config((16, 32), **TINY, num_classes=2))
    model.save_pretrained(tmp_path)
    saved = {key: value for key, value in model.config.items() if not key.startswith("_")}
    loaded = DDPMUNet2D.from_pretrained(tmp_path).config
    assert {key: value for key, value in loaded.items() if not key.startswith("_")} == saved
    assert {**DDPMUNet2D.from_config(model.config).config} == {**model.config}


def test_settings_in_which_stock_departs_from_the_paper():
    config = DDPMUNet2D(**paper_config(16, **TINY)).config
    paper = dict(flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6, downsample_padding=0, attention_head_dim=None)
    assert {key: config[key] for key in paper} == paper
    groups = {width: paper_config(32, base_channels=width)["norm_num_groups"] for width in (256, 128, 64, 48, 8, 2)}
    assert groups == {256: 32, 128: 32, 64: 16, 48: 4, 8: 2, 2: 1}  # the paper's 32 at its width, 4 channels in each


def test_time_embedding_is_that_of_the_paper():
    """sin ‖ cos of t at frequencies from 1 to 1/10000, as in the authors' `get_timestep_embedding`."""
    model = DDPMUNet2D(**paper_config(16, **TINY))
    timesteps = np.array([0.0, 1.0, 500.0, 999.0])
    angles = timesteps[:, None] * 10000.0 ** -(np.arange(4) / 3)
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(model.time_proj(torch.from_numpy(timesteps)).numpy(), expected, atol=1e-4)


def test_attention_is_at_the_levels_asked_for():
    def attends(resolution, multipliers, attention_resolutions):
        config = paper_config(resolution, channel_multipliers=multipliers, attention_resolutions=attention_resolutions)
        down = ["Attn" in name for name in config["down_block_types"]]
        assert ["Attn" in name for name in config["up_block_types"]] == down[::-1]
        return down

    assert attends(32, (1, 2, 2, 2), (16,)) == [False, True, False, False]
    assert attends(256, (1, 1, 2, 2, 4, 4), (16,)) == [False, False, False, False, True, False]
    assert attends((64, 128), (1, 2, 2, 2), (16, 8)) == [False, False, True, True]
    assert attends(32, (1, 2), ()) == [False, False]
    assert attends(28, (1, 2, 2), (16,)) == [False, True, False]  # 28, 14, 7
    assert attends(28, (1, 2, 2, 2), (16,)) == [False, True, False, False]  # padded to 32
    assert attends(48, (1, 2, 2), (16,)) == [False, False, True]  # 48, 24, 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(resolution=0), r"`resolution` must be .*, got 0\."),
        (dict(resolution=(32, 32, 3)), r"`resolution` must be .*, got \(32, 32, 3\)"),
        (dict(resolution=32.5), r"`resolution` must be .*, got 32.5"),
        (dict(resolution=32, channels=0), r"`channels` must be integers of at least 1, got 0\."),
        (dict(resolution=32, base_channels=64.0), r"`base_channels` must be .*, got 64.0"),
        (dict(resolution=32, channel_multipliers=(1, 0)), r"`channel_multipliers` must be .*, got \(1, 0\)"),
        (dict(resolution=32, channel_multipliers=()), r"`channel_multipliers` must have .*, got none"),
        (dict(resolution=32, attention_resolutions=(0,)), r"`attention_resolutions` must be .*, got \(0,\)"),
        (dict(resolution=32, num_classes=0), r"`num_classes` must be .*, got 0\."),
        (dict(resolution=32, dropout=1.0), r"`dropout` must be .*, got 1.0"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        paper_config(**arguments)
