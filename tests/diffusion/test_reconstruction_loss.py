"""The objective of an autoencoder, written again for the same numbers."""

import numpy as np
import pytest
import torch

from ddpm_hf.diffusion.reconstruction import ReconstructionLoss
from ddpm_hf.models.autoencoder import new_autoencoder
from ddpm_hf.pipelines.reconstruction import Autoencoder


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_the_loss_is_that_of_the_paper_divided_by_the_number_of_values(name):
    torch.manual_seed(0)
    vae = new_autoencoder(
        (8, 8), channels=3, latent_channels=2, base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1
    )
    torch.nn.init.normal_(vae.decoder.conv_out.weight, std=0.3)
    pictures, noise = torch.rand(5, 3, 8, 8) * 2 - 1, torch.randn(5, 3, 8, 8)
    losses = ReconstructionLoss(name, 0.1)(Autoencoder(vae), pictures, noise, torch.zeros(5), picture=pictures)

    with torch.no_grad():
        posterior = vae.encode(pictures).latent_dist
        z = posterior.mean + posterior.std * noise.reshape(5, -1)[:, :32].reshape(5, 2, 4, 4)
        difference = (vae.decode(z).sample - pictures).numpy().astype(np.float64)
    error = np.abs(difference) if name == "l1" else difference**2
    mean, std = (tensor.detach().numpy().astype(np.float64) for tensor in (posterior.mean, posterior.std))
    divergence = (0.5 * (std**2 + mean**2 - 1) - np.log(std)).sum((1, 2, 3))  # Kingma & Welling 2013, appendix B
    np.testing.assert_allclose(divergence, posterior.kl().detach(), rtol=1e-4)
    expected = (error.sum((1, 2, 3)) + 0.1 * divergence) / (3 * 8 * 8)
    np.testing.assert_allclose(losses.detach(), expected, rtol=1e-5)
    losses.mean().backward()
    assert all(weight.grad is not None for weight in vae.parameters())


def test_an_unknown_loss_is_answered_with_the_choices():
    with pytest.raises(ValueError, match="`loss` must be one of l1, l2, got 'huber'"):
        ReconstructionLoss("huber", 1e-6)
