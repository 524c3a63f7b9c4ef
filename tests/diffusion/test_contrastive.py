"""InfoNCE in float64 against its definition, and against the loss of transformers' CLIP."""

import numpy as np
import torch
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from ddpm_hf.diffusion.contrastive import ContrastiveLoss

SCALE = 7.0


def losses(images, texts, meaning) -> torch.Tensor:
    def network(pictures, timesteps, **told):
        assert told.keys() == {"meaning"}
        return images, texts, torch.tensor(SCALE, dtype=images.dtype)

    nothing = torch.zeros(len(images))
    return ContrastiveLoss()(network, nothing, nothing, nothing, meaning=torch.tensor(meaning))


def embeddings(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


def test_pairs_of_one_meaning_share_the_aim():
    images, texts = embeddings()
    meaning = [3, 1, 3, 2, 1, 1]
    u, v = (each.numpy() / np.linalg.norm(each.numpy(), axis=1, keepdims=True) for each in (images, texts))
    expected = []
    for i in range(6):
        own, total = [j for j in range(6) if meaning[j] == meaning[i]], 0.0
        for cosines in (v @ u[i], u @ v[i]):
            shares = np.exp(SCALE * cosines) / np.exp(SCALE * cosines).sum()
            total -= np.mean([np.log(shares[j]) for j in own])
        expected.append(total / 2)
    found = losses(images, texts, meaning)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert abs(found.mean() - losses(images, texts, range(6)).mean()) > 0.1


def test_without_equal_meanings_it_is_the_loss_of_transformers():
    images, texts = (each.requires_grad_() for each in embeddings())
    u, v = (each / each.norm(dim=1, keepdim=True) for each in (images, texts))
    expected = image_text_contrastive_loss(SCALE * v @ u.T)
    found = losses(images, texts, range(6)).mean()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(*(torch.autograd.grad(loss, (images, texts)) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
