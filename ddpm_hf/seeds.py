"""Seeds for all random numbers: every draw has an address, and its seed is a hash of that address.

Draws do not depend on earlier ones. Image 17 of seed 0, or the noise at position 4711 of a training run, is the same
for any batch size, number of processes or step at which the run was resumed. Training noise is drawn on the device;
another kind of device draws other numbers from the same seed.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

_MASK_32 = 0xFFFFFFFF


def derive_seed(*address: int | str) -> int:
    """A 63-bit seed for an address such as `(seed, "noise", position)`; equal addresses give equal seeds."""
    digest = hashlib.blake2b(repr(address).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def image_seed(seed: int, index: int) -> int:
    """The seed of sampled image `index` of run `seed`: a hash of both, so that neighbouring seeds share no images.

    torch's CPU generator uses only the low 32 bits of a seed. With a plain hash, two of 50,000 images would collide
    with a probability of a quarter; a Feistel network keyed by `seed` permutes the 32-bit indices, so the images of a
    run cannot collide. The upper bits are for generators that use all 64.
    """
    left, right = (index >> 16) & 0xFFFF, index & 0xFFFF
    for round_number in range(4):
        left, right = right, left ^ (derive_seed(seed, "image", round_number, right) & 0xFFFF)
    upper = derive_seed(seed, "image", index) & ~_MASK_32
    return upper | left << 16 | right


def generator_for(*address: int | str) -> torch.Generator:
    """A CPU generator for an address; see `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(*address))


@contextmanager
def seeded(*address: int | str) -> Iterator[None]:
    """torch's global CPU generator starts from an address meanwhile, and is as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(*address))
        yield


def noise_at(address: tuple[int | str, ...], positions: Iterable[int], like: torch.Tensor) -> torch.Tensor:
    """Standard normal numbers for each position, float32, with the shape and device of `like`.

    Args:
        address: with a position it is that of the numbers of an image.
        like: (B, ...).
    """
    generator = torch.Generator(like.device)
    seeds = (derive_seed(*address, position) for position in positions)
    return torch.stack(
        [torch.randn(like.shape[1:], generator=generator.manual_seed(s), device=like.device) for s in seeds]
    )


def image_generators(seed: int, indices: list[int]) -> list[torch.Generator]:
    """One CPU generator per image index, for the argument `generator` of a pipeline call."""
    return [torch.Generator().manual_seed(image_seed(seed, index)) for index in indices]
