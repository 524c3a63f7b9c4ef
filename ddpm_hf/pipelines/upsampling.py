"""From a small picture and its caption to a larger one: GLIDE's upsampler (arXiv 2112.10741), as stock diffusers'
`IFSuperResolutionPipeline`."""

from collections.abc import Callable, Sequence

import torch
from diffusers import (
    DDPMScheduler,
    IFSuperResolutionPipeline,
    ImagePipelineOutput,
    SchedulerMixin,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..conditions.condition import Condition, Told
from ..conditions.low_resolution import LowResolution
from ..models.text_unet import LOW_SIDE
from .inpainting import Pictures
from .text_to_image import TextDenoiser, TextDenoising


class UpsamplingDenoiser(TextDenoiser):
    """(x_t, t, low_resolution, captions) -> output, by a U-Net that sees x_t and the enlarged picture together."""

    def encode(self, told: Told) -> Told:
        """As `TextDenoiser`; the picture as it is."""
        picture = {name: value for name, value in told.items() if name == "low_resolution"}
        return super().encode({name: value for name, value in told.items() if name not in picture}) | picture

    def forward(
        self, x_t: torch.Tensor, timesteps: torch.Tensor, low_resolution: torch.Tensor, **told: torch.Tensor
    ) -> torch.Tensor:
        """x_t and low_resolution (B, C, H, W), timesteps, () or (B,), and captions -> (B, C or 2C, H, W)."""
        return super().forward(torch.cat([x_t, low_resolution.to(x_t.dtype)], dim=1), timesteps, **told)


class UpsamplingPipeline(TextDenoising, IFSuperResolutionPipeline):
    """Enlarges pictures that have captions. `TextToImagePipeline` calls it on what it draws.

    It has the components of stock `IFSuperResolutionPipeline`, is saved under that name, and draws the same pixels for
    the same generator. The small picture is told as it is, without noise.

    Args:
        tokenizer, text_encoder, unet, scheduler: as in the stock pipeline; the network must be of this package.
        image_noising_scheduler: adds no noise, at any level: its betas are 0.
        safety_checker, feature_extractor, watermarker: None; there to have the same components.
    """

    denoiser = UpsamplingDenoiser

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: PreTrainedModel,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        image_noising_scheduler: DDPMScheduler,
        safety_checker: None,
        feature_extractor: None,
        watermarker: None,
        requires_safety_checker: bool = False,
    ):
        others = (safety_checker, feature_extractor, watermarker, False)
        super().__init__(tokenizer, text_encoder, unet, scheduler, image_noising_scheduler, *others)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the enlarged picture."""
        inputs, height, width = super().image_shape
        return inputs // 2, height, width

    @property
    def conditions(self) -> Sequence[Condition]:
        """What the network is told beside x_t and t."""
        low_side, (channels, height, _) = self.unet.config[LOW_SIDE], self.image_shape
        picture = LowResolution(shape=(channels, low_side, low_side), factor=height // low_side)
        return [*super().conditions, picture]

    def check_parts(self) -> None:
        """As `TextDenoising`, and for a network that was not trained here."""
        if LOW_SIDE not in self.unet.config:
            raise ValueError("unet must be an upsampler of this package, but its config does not say what it enlarges")
        super().check_parts()

    def _initial_noise(self, batch_size: int, generator, latents: torch.Tensor | None) -> torch.Tensor:
        x_T = super()._initial_noise(batch_size, generator, latents)
        # The stock pipeline draws noise for the small picture too; its weight is 0, but the next draws follow it.
        super()._initial_noise(batch_size, generator, None)
        return x_T

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Image.Image | torch.Tensor | Sequence[Image.Image | torch.Tensor] | None = None,
        num_inference_steps: int | None = 50,
        guidance_scale: float = 4.0,
        negative_prompt: str | Sequence[str] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        *,
        batch_size: int = 1,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        latents: torch.Tensor | None = None,
        skip_steps: int | None = None,
        original_image: Pictures | None = None,
        mask_image: Pictures | None = None,
        callback_on_step_end: Callable | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Enlarge pictures.

        Args:
            prompt: the caption, or one per image; may be left out only if `guidance_scale` is 0.
            image: the small picture, or one per image: of PIL, or tensors (C, H, W) in [-1, 1].
            guidance_scale: as in `TextToImagePipeline`; it hides the caption only, never the picture.
            original_image, mask_image: of the large size: draw only where the mask is white, and keep `original_image`
                elsewhere.
            num_inference_steps, negative_prompt, generator, output_type, return_dict, batch_size, guidance_interval,
                guidance_rescale, latents, skip_steps, callback_on_step_end: as in `TextToImagePipeline`.

        Raises:
            ValueError: for an invalid argument, naming the choices.
        """
        return self._draw(
            {"prompt": prompt, "image": image, "negative_prompt": negative_prompt},
            batch_size,
            generator,
            num_inference_steps,
            output_type,
            return_dict,
            guidance_scale,
            latents,
            skip_steps,
            callback_on_step_end,
            guidance_interval,
            guidance_rescale,
            image=original_image,
            mask_image=mask_image,
        )
