"""The range of x_0 in float64, and the way back to 8 bits."""

import numpy as np
import torch

from ddpm_hf.pixels import denormalize, normalize


def test_normalize_is_the_line_through_minus_one_and_one():
    pixels = torch.arange(256, dtype=torch.uint8)
    expected = np.arange(256, dtype=np.float64) / 255 * 2 - 1
    got = normalize(pixels)
    assert got.dtype == torch.float32 and pixels.dtype == torch.uint8
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-7, rtol=0)
    assert got[0] == -1 and got[255] == 1


def test_back_is_the_identity_on_all_256_values():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(denormalize(normalize(pixels)), pixels)


def test_back_rounds_and_clamps_as_diffusers_does():
    from diffusers.image_processor import VaeImageProcessor

    samples = torch.linspace(-1.3, 1.3, 10_001, dtype=torch.float64).float().reshape(1, 1, 73, 137)
    pictures = VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(VaeImageProcessor.denormalize(samples)))
    difference = np.asarray(pictures[0]).astype(int) - denormalize(samples)[0, 0].numpy()
    assert np.abs(difference).max() <= 1 and np.count_nonzero(difference) <= 3  # ties, to the last float32 bit


def test_normalize_leaves_its_input():
    already_float = torch.tensor([0.0, 255.0])
    normalize(already_float)
    assert already_float.tolist() == [0, 255]
