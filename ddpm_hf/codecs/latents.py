"""x_0 is the latent of a picture: Rombach et al. 2022 (arXiv 2112.10752), with diffusers' `AutoencoderKL`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import AutoencoderKL
from diffusers.utils.torch_utils import randn_tensor
from torch.nn.functional import interpolate

from ..kept import KeptOfPictures
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
        kept: mean and standard deviation of the posteriors, (pictures, 2, *shape), that batches have as "latents".
        source: where posteriors come from, in words.
    """

    vae: AutoencoderKL
    seed: int = 0
    kept: KeptOfPictures | None = None
    source: str = "computed in each step"
    called: ClassVar[str] = "latents"
    span: ClassVar[None] = None
    variance: ClassVar[float] = 1.0
    decoder: ClassVar[None] = None

    @property
    def _device(self) -> torch.device:
        """Where the autoencoder computes, which is not where its weights are while they are offloaded."""
        hook = getattr(self.vae, "_hf_hook", None)
        return self.vae.device if hook is None else torch.device(hook.execution_device)

    def describe(self) -> str:
        """Shape, autoencoder, and where posteriors come from."""
        weights = sum(weight.numel() for weight in self.vae.parameters())
        shape = "x".join(map(str, self.shape))
        return f"{shape}, {type(self.vae).__name__}, frozen, {weights:,} parameters; its posteriors are {self.source}"

    def prepare(self, device: torch.device) -> None:
        """Compute the posteriors that are kept; without them, bring the autoencoder to where batches will be."""
        home = self.vae.device
        self.vae.to(device)
        if self.kept is not None:
            self.kept.fill(lambda pictures: torch.stack(self.posterior(normalize(pictures)), dim=1), "vae")
            self.vae.to(home)

    @torch.no_grad()
    def posterior(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of q(z | picture), float32 (B, *shape) each, of pictures in [-1, 1]."""
        posterior = self.vae.encode(pictures.to(self._device, self.vae.dtype)).latent_dist
        return tuple(each.float().to(pictures.device) for each in (posterior.mean, posterior.std))

    def encode(self, batch: Mapping[str, torch.Tensor], generator: Generators = None) -> torch.Tensor:
        """x_0, float32 (B, *shape), of a batch with uint8 "images".

        With their "positions" it is one draw for each visit, with a generator what it draws (as many as there are
        generators of one picture), and else the mean of the posterior. Mean and standard deviation of it are taken
        from "latents", float16 (B, 2, *shape), if the batch has them.
        """
        kept = batch.get("latents")
        mean, std = self.posterior(normalize(batch["images"])) if kept is None else kept.float().unbind(dim=1)
        return self._drawn(mean, std, generator, "latent", batch.get("positions"))

    def beside(
        self,
        pictures: torch.Tensor,
        hole: torch.Tensor,
        positions: Sequence[int] | None = None,
        generator: Generators = None,
    ) -> torch.Tensor:
        """What networks for inpainting are told, as stock `StableDiffusionInpaintPipeline` makes it.

        Args:
            pictures: in [-1, 1], (B or 1, C, H, W).
            hole: what is drawn of them, bool (B or 1, 1, H, W).
            positions, generator: as for `encode`.

        Returns:
            The hole, 0 or 1, and a latent of the pictures that are grey in it, float32 (B or 1, 1 + c, h, w).
        """
        mean, std = self.posterior(torch.where(hole, 0.0, pictures))
        latents = self._drawn(mean, std, generator, "known latent", positions)
        mask = interpolate(hole.float(), self.shape[1:])
        return torch.cat([mask.expand(len(latents), -1, -1, -1), latents], dim=1)

    def _drawn(
        self, mean: torch.Tensor, std: torch.Tensor, generator: Generators, name: str, positions: Sequence[int] | None
    ) -> torch.Tensor:
        if isinstance(generator, list) and len(mean) == 1:
            mean, std = mean.expand(len(generator), -1, -1, -1), std.expand(len(generator), -1, -1, -1)
        if generator is not None:
            noise = randn_tensor(std.shape, generator, std.device)
        else:
            noise = 0 if positions is None else noise_at((self.seed, name), positions, std)
        return self.vae.config.scaling_factor * (mean + std * noise)

    @torch.no_grad()
    def decode(self, x_0: torch.Tensor) -> torch.Tensor:
        """x_0, or any x_t -> images in [0, 1], float32 (B, C, H, W)."""
        z = (x_0 / self.vae.config.scaling_factor).to(self._device, self.vae.dtype)
        return to_images(self.vae.decode(z).sample.float())
