"""SSIM against torchmetrics."""

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from ddpm_hf.evaluation.reconstruction import ssim


@pytest.mark.parametrize("shape", [(3, 3, 11, 14), (4, 1, 32, 32)])
def test_ssim_is_that_of_wang_et_al(shape):
    generator = torch.Generator().manual_seed(0)
    reference = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    noisy = (reference + 40 * torch.randn(shape, generator=generator)).clamp(0, 255).to(torch.uint8)
    *_, everywhere = structural_similarity_index_measure(
        noisy.double(), reference.double(), data_range=255.0, reduction="none", return_full_image=True
    )
    expected = everywhere[..., 5:-5, 5:-5].mean((1, 2, 3))  # the window inside the picture, as in the paper's program
    torch.testing.assert_close(ssim(noisy, reference), expected.double(), atol=1e-6, rtol=1e-6)
    assert (ssim(reference, reference) == 1).all() and (expected < 0.95).all()
