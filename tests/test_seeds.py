"""Addresses of random numbers."""

import torch

from ddpm_hf.seeds import derive_seed, generator_for, image_generators, image_seed

# torch's CPU generator (a 32-bit Mersenne twister) uses these bits of a seed only.
LOW = 2**32 - 1


def test_no_two_images_of_a_run_share_the_bits_that_a_cpu_generator_uses():
    assert len({image_seed(0, index) & LOW for index in range(50_000)}) == 50_000


def test_neighbouring_seeds_share_no_images():
    first, second = ({image_seed(seed, index) & LOW for index in range(1000)} for seed in (0, 1))
    assert len(first & second) <= 1  # by chance 1000²/2³² = 0.0002 are expected


def test_low_bits_are_even_over_their_range():
    """Chi-square over 64 bins, 63 degrees of freedom: the 0.001 and 0.999 quantiles are 32.0 and 103.4."""
    counts = torch.bincount(torch.tensor([(image_seed(3, k) & LOW) >> 26 for k in range(6400)]), minlength=64)
    assert 32.0 < ((counts - 100.0) ** 2 / 100).sum() < 103.4


def test_addresses_are_told_apart():
    assert derive_seed(1, "a", 2) == derive_seed(1, "a", 2)
    addresses = [(1, "a", 2), (1, "b", 2), (2, "a", 1), (1, "a", 3), (12, "a"), ("1", "a", 2)]
    assert len({derive_seed(*address) for address in addresses}) == len(addresses)


def test_generators_are_those_of_their_addresses():
    assert generator_for(0, "noise", 5).initial_seed() == derive_seed(0, "noise", 5)
    assert [g.initial_seed() for g in image_generators(7, [3, 1])] == [image_seed(7, 3), image_seed(7, 1)]
