"""What a discriminator adds to the loss: by hand in numpy for linear networks, and against two separate steps."""

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_hf.diffusion.adversarial import AdversarialTerm, adaptive_weight
from ddpm_hf.diffusion.reconstruction import ReconstructionLoss
from ddpm_hf.models.autoencoder import new_autoencoder
from ddpm_hf.models.discriminator import PatchDiscriminator
from ddpm_hf.pipelines.reconstruction import Autoencoder
from ddpm_hf.systems.adversarial import Judged


def test_the_term_is_that_of_the_paper():
    """Of x' = W h and D(x) = v . x at each pixel, the gradients with respect to W are outer products."""
    rng = np.random.default_rng(0)
    x, h = rng.normal(size=(5, 3, 4)), rng.normal(size=(5, 2, 4))  # images, channels, pixels
    weights, v = rng.normal(size=(3, 2)), 2 * rng.normal(size=3)
    again = weights @ h
    of_error = (np.sign(again - x)[:, :, None] * h[:, None]).sum((0, 3)) / x.size
    of_adversarial = -(v[:, None, None] * h[:, None]).sum((0, 3)) / (5 * 4)
    ratio = np.linalg.norm(of_error) / (np.linalg.norm(of_adversarial) + 1e-6)  # eq. 7 of arXiv 2012.09841
    real, fake = v @ x, v @ again
    hinge = (np.maximum(0, 1 - real) + np.maximum(0, 1 + fake)).mean(1) / 2  # arXiv 1705.02894, section 3
    assert (real > 1).any() and (real < 1).any() and (fake > -1).any() and (fake < -1).any()
    expected = 0.3 * ratio * -fake.mean(1) + hinge

    layer = nn.Conv1d(2, 3, 1, bias=False).double()
    layer.weight.data = torch.tensor(weights)[..., None]
    x_hat = layer(torch.tensor(h))
    error = (x_hat - torch.tensor(x)).abs().flatten(1).mean(1)
    verdicts = [torch.einsum("c,bcp->bp", torch.tensor(v), pictures) for pictures in (x_hat, torch.tensor(x), x_hat)]
    term = AdversarialTerm(0.3, 0, layer)(error, *verdicts)
    np.testing.assert_allclose(term.detach(), expected, rtol=1e-6)


@pytest.mark.parametrize(("size", "expected"), [(0.0, 1e4), (1e-6, 0.5e6), (0.5, 2.0)])
def test_the_weight_is_bounded(size, expected):
    """Gradients 1 and `size` have the ratio 1 / (size + 1e-6)."""
    weight = torch.ones(1, requires_grad=True)
    found = adaptive_weight(weight.sum(), size * weight.sum(), weight)
    assert found.item() == pytest.approx(min(expected, 1e4), rel=1e-5) and not found.requires_grad


def test_one_backward_pass_gives_the_gradients_of_two_players():
    """Of the autoencoder those of L_rec + KL + w lambda L_adv, of the discriminator those of its own loss."""
    torch.manual_seed(0)
    vae = new_autoencoder(
        (24, 24), channels=3, latent_channels=2, base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1
    )
    last = vae.decoder.conv_out
    nn.init.normal_(last.weight, std=0.3)
    discriminator = PatchDiscriminator(3)
    pictures, noise = torch.rand(3, 3, 24, 24) * 2 - 1, torch.randn(3, 3, 24, 24)
    autoencoder = Autoencoder(vae)
    network = Judged(autoencoder, discriminator)
    call = noise, torch.zeros(3)

    plain = ReconstructionLoss("l1", 1e-2)(autoencoder, pictures, *call, picture=pictures)
    reconstruction = autoencoder(*call, pictures)[0]
    error, fooled = (reconstruction - pictures).abs().mean(), -discriminator(reconstruction).mean()
    norms = [torch.autograd.grad(value, last.weight, retain_graph=True)[0].norm() for value in (error, fooled)]
    own = list(vae.parameters())
    generator = torch.autograd.grad(plain.mean() + 0.5 * (norms[0] / (norms[1] + 1e-6)).detach() * fooled, own)
    real, fake = discriminator(pictures), discriminator(reconstruction.detach())
    hinge = (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()) / 2
    others = torch.autograd.grad(hinge, list(discriminator.parameters()))

    loss = ReconstructionLoss("l1", 1e-2, adversarial=AdversarialTerm(0.5, 7, last))
    assert str(loss) == "L1 of the reconstruction + 0.01 KL + 0.5 adversarial from step 7"
    assert torch.equal(loss(network, pictures, *call, picture=pictures), plain), "until it is judged"
    loss(network, pictures, *call, picture=pictures, judged=True).mean().backward()
    for weight, expected in zip(network.parameters(), (*generator, *others), strict=True):
        torch.testing.assert_close(weight.grad, expected, atol=1e-6, rtol=1e-4)
    assert not 0.9 < norms[0] / norms[1] < 1.1, "lambda matters"


def test_a_perceptual_distance_is_part_of_the_error():
    def distance(pictures, others):
        return (pictures - others).square().flatten(1).sum(1)

    pictures, noise = torch.rand(4, 3, 8, 8), torch.zeros(4, 3, 8, 8)
    zero = torch.zeros(4, 1)

    def network(noise, timesteps):
        return noise, zero, zero  # whose KL divergence is 0

    found = ReconstructionLoss("l1", 1.0, distance)(network, pictures, noise, torch.zeros(4))
    torch.testing.assert_close(found, pictures.flatten(1).mean(1) + pictures.square().flatten(1).sum(1))
