"""A part of a picture by way of latents, by a network fine-tuned for it, in the form of stock
`StableDiffusionInpaintPipeline`."""

from dataclasses import dataclass

import torch
from diffusers import SchedulerMixin

from ..codecs.pixels import PixelCodec
from ..conditions.condition import Told
from ..steps.inpainting import Pictures, check_counts, given_pixels
from .latent_text_to_image import LatentTextToImagePipeline
from .text_to_image import TextDenoiser

LATENTS = 4
INPUTS = 2 * LATENTS + 1  # channels, by which stock knows such a network: x_t, the hole, and a latent


class InpaintingDenoiser(TextDenoiser):
    """As `TextDenoiser`, told beside x_t in `known`, (B, 5, h, w), what `LatentCodec.beside` makes of a picture."""

    def encode(self, told: Told) -> Told:
        """As `TextDenoiser`; `known` as it is."""
        known = {name: value for name, value in told.items() if name == "known"}
        return super().encode({name: value for name, value in told.items() if name != "known"}) | known

    def forward(self, x_t: torch.Tensor, timesteps: torch.Tensor, known: torch.Tensor, **told) -> torch.Tensor:
        """As `TextDenoiser`; x_t and output have 4 channels."""
        return super().forward(torch.cat([x_t, known.to(x_t)], dim=1), timesteps, **told)


@dataclass(frozen=True)
class Beside:
    """Pictures that the network is told beside x_t, which so keeps what is known by itself.

    Attributes:
        told: to the network.
    """

    told: Told

    def keep(self, x_t: torch.Tensor, scheduler: SchedulerMixin, calls: int) -> torch.Tensor:
        """x_t as it is."""
        return x_t


class LatentInpaintingPipeline(LatentTextToImagePipeline):
    """As `LatentTextToImagePipeline`, fine-tuned to draw a part of a picture that it is told (Rombach et al. 2022,
    arXiv 2112.10752, §4.5).

    It is saved as stock `StableDiffusionInpaintPipeline`, and draws the same pixels for the same generator. What is
    known is drawn too, as stock's does. Without `image` and `mask_image` it draws whole pictures; `strength` is 1.
    """

    denoiser = InpaintingDenoiser

    @property
    def latent_channels(self) -> int:
        """Of x_t."""
        return self.unet.config.out_channels

    def check_parts(self) -> None:
        """As `LatentTextToImagePipeline`, for a network of nine channels."""
        channels = self.unet.config.in_channels, self.unet.config.out_channels
        if channels != (INPUTS, LATENTS):
            raise ValueError(f"unet must have {INPUTS} input channels and {LATENTS} outputs, got {channels}")
        super().check_parts()

    def known(
        self,
        image: Pictures | None = None,
        mask_image: Pictures | None = None,
        strength: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures in [-1, 1], and what is drawn of them: everything, if there are none.

        Raises:
            ValueError: the pictures do not suit the model, or `strength` is not 1.
        """
        channels, *size = self.image_shape
        if image is None and mask_image is None:
            return torch.zeros(1, channels, *size), torch.ones(1, 1, *size, dtype=torch.bool)
        if mask_image is None:
            raise ValueError("`image` needs `mask_image` for a model that was fine-tuned for inpainting.")
        known = given_pixels(image, mask_image, self.image_shape, PixelCodec(self.image_shape))
        if strength not in (None, 1):
            raise ValueError(f"`strength` must be 1 for a model that was fine-tuned for inpainting, got {strength}.")
        return known

    def _given(
        self,
        known: tuple[torch.Tensor, torch.Tensor],
        noise: torch.Tensor,
        scheduler: SchedulerMixin,
        skipped: int,
        generator: torch.Generator | list[torch.Generator] | None,
        has_mask: bool,
    ) -> tuple[Beside, torch.Tensor]:
        check_counts(known, len(noise))
        beside = self.codec.beside(*(each.to(noise.device) for each in known), generator=generator)
        return Beside({"known": beside.expand(len(noise), -1, -1, -1)}), noise
