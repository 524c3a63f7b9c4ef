"""The autoencoder against the published one, and its standardised latents as stock diffusers sees them."""

import inspect

import pytest
import torch
from diffusers import AutoencoderKL

from ddpm_hf.models.autoencoder import latent_statistics, new_autoencoder, standardize
from ddpm_hf.models.presets import get_preset

TINY = {"channels": 3, "latent_channels": 2, "base_channels": 8, "channel_multipliers": (1, 2), "blocks_per_level": 1}


@pytest.mark.parametrize(
    ("name", "parameters", "latents"),
    # As many as Stable Diffusion's, https://huggingface.co/stabilityai/sd-vae-ft-mse.
    [("vae-f8", 83_653_863, (8, 32, 32)), ("vae-digits", None, (8, 8, 8))],
)
def test_presets_are_stock_autoencoders_of_the_size_that_they_say(name, parameters, latents):
    preset = get_preset(name)
    model = {**preset.model}
    side = model.pop("resolution")
    assert model.keys() == inspect.signature(new_autoencoder).parameters.keys() - {"size", "generator"}
    with torch.device("meta"):
        vae = new_autoencoder((side, side), **model)
        moments = vae.encode(torch.empty(1, 3, side, side)).latent_dist.parameters
    assert type(vae) is AutoencoderKL and moments.shape[1:] == latents
    assert vae.num_parameters() == (parameters or vae.num_parameters())
    assert f"{round(vae.num_parameters() / 1e6, 1)} M parameters" in preset.description


def test_the_published_autoencoder_is_trained_as_it_was():
    """By configs/autoencoder/autoencoder_kl_32x32x4.yaml and ldm/models/autoencoder.py of CompVis/latent-diffusion."""
    training = get_preset("vae-f8").training
    assert (training["rec_loss"], training["perceptual"], training["kl_weight"]) == ("l1", "lpips", 1e-6)
    assert (training["adversarial_start"], training["adversarial_weight"]) == (50_001, 0.5)
    assert (training["adam_beta1"], training["adam_beta2"]) == (0.5, 0.9)
    assert training["learning_rate"] == pytest.approx(4.5e-6 * training["train_batch_size"])
    assert training["train_batch_size"] == 12


def test_every_channel_of_the_latents_gets_unit_variance_and_no_picture_changes():
    torch.manual_seed(0)
    vae = new_autoencoder((8, 12), **TINY)
    torch.nn.init.normal_(vae.decoder.conv_out.weight, std=0.3)
    with torch.no_grad():  # channels as different as those that training gives
        vae.quant_conv.weight[:2] *= torch.tensor([9.0, 0.3])[:, None, None, None]
        vae.quant_conv.bias[:] = torch.tensor([2.4, -0.5, -3.0, -4.0])
    pictures = torch.rand(64, 3, 8, 12) * 2 - 1
    before = vae.encode(pictures).latent_dist
    drawn = before.mean + before.std * torch.randn(500, *before.mean.shape)
    mean, std = latent_statistics(vae, pictures.split(20))
    torch.testing.assert_close(drawn.mean((0, 1, 3, 4)).double(), mean, atol=0.01, rtol=0.01)
    torch.testing.assert_close(drawn.std((0, 1, 3, 4)).double(), std, atol=0, rtol=0.01)
    assert std.max() > 3 * std.min(), "else nothing is shown"

    shown = vae.decode(before.mean).sample
    standardize(vae, mean, std)
    after = vae.encode(pictures).latent_dist
    assert vae.config.scaling_factor == 1
    torch.testing.assert_close(vae.decode(after.mean).sample, shown, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after.std, before.std / std.float()[:, None, None], atol=0, rtol=1e-5)
    drawn = after.mean + after.std * torch.randn(500, *after.mean.shape)
    torch.testing.assert_close(drawn.var((0, 1, 3, 4)), torch.ones(2), atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.mean((0, 1, 3, 4)), torch.zeros(2), atol=0.01, rtol=0)
