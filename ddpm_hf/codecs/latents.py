"""x_0 is the latent of a picture: Rombach et al. 2022 (arXiv 2112.10752), with diffusers' `AutoencoderKL`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import AutoencoderKL
from diffusers.utils.torch_utils import randn_tensor

from ..pixels import normalize, to_images
from ..seeds import noise_at
from .pixels import Generators, PixelCodec


@dataclass(frozen=True, eq=False)
class LatentCodec(PixelCodec):
    """Between batches and latents, drawn from the posterior q(z | picture) and multiplied by `scaling_factor`.

    They have no bits/dim: the bound would be one of latents and not of pixels.

    Attributes:
        shape: (channels, height, width) of the latents.
        vae: frozen.
        seed: of the draws.
    """

    vae: AutoencoderKL
    seed: int = 0
    span: ClassVar[None] = None
    variance: ClassVar[float] = 1.0
    decoder: ClassVar[None] = None

    def prepare(self, device: torch.device) -> None:
        """Bring the autoencoder to where batches will be."""
        self.vae.to(device)

    @torch.no_grad()
    def posterior(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of q(z | picture), float32 (B, *shape) each, of uint8 pictures."""
        pictures = normalize(images).to(self.vae.device, self.vae.dtype)
        posterior = self.vae.encode(pictures).latent_dist
        return tuple(each.float().to(images.device) for each in (posterior.mean, posterior.std))

    def encode(self, batch: Mapping[str, torch.Tensor], generator: Generators = None) -> torch.Tensor:
        """x_0, float32 (B, *shape), of a batch with uint8 "images".

        With their "positions" it is one draw for each visit, with a generator what it draws (as many as there are
        generators of one picture), and else the mean of the posterior.
        """
        mean, std = self.posterior(batch["images"])
        if isinstance(generator, list) and len(mean) == 1:
            mean, std = mean.expand(len(generator), -1, -1, -1), std.expand(len(generator), -1, -1, -1)
        if generator is not None:
            noise = randn_tensor(std.shape, generator, std.device)
        else:
            noise = noise_at((self.seed, "latent"), batch["positions"], std) if "positions" in batch else 0
        return self.vae.config.scaling_factor * (mean + std * noise)

    @torch.no_grad()
    def decode(self, x_0: torch.Tensor) -> torch.Tensor:
        """x_0, or any x_t -> images in [0, 1], float32 (B, C, H, W)."""
        z = (x_0 / self.vae.config.scaling_factor).to(self.vae.device, self.vae.dtype)
        return to_images(self.vae.decode(z).sample.float())
