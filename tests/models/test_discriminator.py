"""The discriminator of patches against the closed forms of its convolutions, and what its judgement depends on."""

import pytest
import torch
from torch import nn

from ddpm_hf.models.discriminator import LEAST_SIDE, PatchDiscriminator

# Kernel and stride of each convolution, all padded by 1: C64-C128-C256-C512 of Isola et al. 2017 (arXiv 1611.07004).
LAYERS = [(4, 2), (4, 2), (4, 2), (4, 1), (4, 1)]


def outputs(side: int) -> int:
    for kernel, stride in LAYERS:
        side = (side + 2 - kernel) // stride + 1
    return side


def test_it_has_the_size_of_the_published_one():
    """Widths as there; with batch norms, which have as many weights as ours, that one has 2,765,633 parameters."""
    widths = [3, 64, 128, 256, 512, 1]
    kernels = sum(16 * before * after for before, after in zip(widths, widths[1:], strict=False))
    expected = kernels + (64 + 1) + 2 * (128 + 256 + 512)  # biases of the first and last layer, and the norms
    assert sum(weight.numel() for weight in PatchDiscriminator(3).parameters()) == expected == 2_765_633


@pytest.mark.parametrize("size", [(LEAST_SIDE, LEAST_SIDE), (32, 41), (256, 256)])
def test_it_gives_a_map_of_the_closed_form(size):
    with torch.device("meta"):
        judged = PatchDiscriminator(1)(torch.empty(2, 1, *size))
    assert judged.shape == (2, 1, *map(outputs, size)) == (2, 1, *(side // 8 - 2 for side in size))
    assert outputs(LEAST_SIDE) == 1 and outputs(LEAST_SIDE - 1) == 0


def test_its_convolutions_see_70x70_pixels():
    seen = 1
    for kernel, stride in reversed(LAYERS):
        seen = (seen - 1) * stride + kernel
    assert seen == 70
    discriminator = PatchDiscriminator(1)
    for number, layer in enumerate(discriminator):  # through a norm every pixel has a little say
        if isinstance(layer, nn.GroupNorm):
            discriminator[number] = nn.Identity()
        elif isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 1.0)
    picture = torch.ones(1, 1, 160, 160, requires_grad=True)
    discriminator(picture)[0, 0, 9, 9].backward()
    rows, columns = picture.grad[0, 0].nonzero().unbind(1)
    assert rows.max() - rows.min() + 1 == columns.max() - columns.min() + 1 == seen


def test_what_it_says_of_a_picture_does_not_depend_on_the_others():
    torch.manual_seed(0)
    discriminator, pictures = PatchDiscriminator(3), torch.rand(4, 3, 32, 32) * 2 - 1
    apart = torch.cat([discriminator(picture[None]) for picture in pictures])
    torch.testing.assert_close(discriminator(pictures), apart, atol=1e-5, rtol=1e-5)
    assert apart.std() > 1e-3, "it tells them apart"
