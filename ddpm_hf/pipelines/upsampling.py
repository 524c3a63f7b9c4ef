"""From a small picture and its caption to a larger one: the upsampler of GLIDE (arXiv 2112.10741), the
super-resolution of Imagen (arXiv 2205.11487), and the upsampler of DALL·E 2 (arXiv 2204.06125), which is told no
caption, as stock diffusers' `IFSuperResolutionPipeline`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
from ..conditions.prompt import unread
from ..models.text_unet import LOW_SIDE
from ..steps.guidance import check_noise_level
from ..steps.inpainting import Pictures
from .text_to_image import TextDenoiser, TextDenoising


class UpsamplingDenoiser(TextDenoiser):
    """(x_t, t, low_resolution, captions) -> output, by a U-Net that sees x_t and the enlarged picture together.

    It may also be told the level of the picture's noise, `class_labels`.
    """

    def encode(self, told: Told) -> Told:
        """As `TextDenoiser`; the picture and its level of noise as they are."""
        picture = {name: value for name, value in told.items() if name in ("low_resolution", "class_labels")}
        return super().encode({name: value for name, value in told.items() if name not in picture}) | picture

    def forward(
        self, x_t: torch.Tensor, timesteps: torch.Tensor, low_resolution: torch.Tensor, **told: torch.Tensor
    ) -> torch.Tensor:
        """x_t and low_resolution (B, C, H, W), timesteps, () or (B,), and captions -> (B, C or 2C, H, W)."""
        return super().forward(torch.cat([x_t, low_resolution.to(x_t.dtype)], dim=1), timesteps, **told)


class UpsamplingPipeline(TextDenoising, IFSuperResolutionPipeline):
    """Enlarges pictures, which may have captions. `Cascade` calls it on what it draws.

    It has the components of stock `IFSuperResolutionPipeline`, is saved under that name, and draws the same pixels for
    the same generator. A network with a class embedding is told the small picture with noise, and at which level; one
    without it, the picture as it is.

    Args:
        tokenizer, text_encoder, unet, scheduler: as in the stock pipeline; the network must be of this package.
        image_noising_scheduler: adds that noise; betas of 0 add none, at any level.
        safety_checker, feature_extractor, watermarker: None; there to have the same components.
    """

    denoiser = UpsamplingDenoiser

    @property
    def about_prompt(self) -> dict[str, Any]:
        """As in `TextDenoising`; one that learned without captions, as of DALL·E 2, is told none."""
        about = super().about_prompt
        return about if self.is_told_captions else about | {"read": unread}

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
        noising = self.image_noising_scheduler if self.noise_levels else None
        picture = LowResolution(shape=(channels, low_side, low_side), factor=height // low_side, noising=noising)
        return [*super().conditions, picture]

    @property
    def noise_levels(self) -> int:
        """How many levels of noise it was trained to be told; 0 if it was trained without."""
        if self.unet.config.class_embed_type is None:
            return 0
        return self.image_noising_scheduler.config.num_train_timesteps

    def check_parts(self) -> None:
        """As `TextDenoising`, and for a network that was not trained here."""
        if LOW_SIDE not in self.unet.config:
            raise ValueError("unet must be an upsampler of this package, but its config does not say what it enlarges")
        super().check_parts()

    def ask(
        self, asked: Mapping[str, Any], guidance_scale: float = 1.0, batch_size: int = 1
    ) -> tuple[Told, Told, int]:
        """As for other pipelines; `noise_level` replaces the usual one."""
        asked = dict(asked)
        level = asked.pop("noise_level", None)
        check_noise_level(level, self.noise_levels)
        told, null, batch_size = super().ask(asked, guidance_scale, batch_size)
        if level is not None:
            levels = {"class_labels": torch.full_like(told["class_labels"], level)}
            told, null = told | levels, null | levels
        return told, null, batch_size

    def _augmented(self, told: Told, null: Told, generator) -> tuple[Told, Told]:
        picture = told["low_resolution"]
        # Stock draws this noise even where its weight is 0, and the next draws follow it.
        noise = self._initial_noise(len(picture), generator, None)
        level = told.get("class_labels", torch.zeros(len(picture), dtype=torch.int64, device=picture.device))
        noisy = {"low_resolution": self.image_noising_scheduler.add_noise(picture, noise, level)}
        return told | noisy, null | noisy

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
        noise_level: int | None = None,
        callback_on_step_end: Callable | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Enlarge pictures.

        Args:
            prompt: the caption, or one per image; may be left out only if `guidance_scale` is 0.
            image: the small picture, or one per image: of PIL, or tensors (C, H, W) in [-1, 1].
            guidance_scale: as in `TextToImagePipeline`; it hides the caption only, never the picture.
            original_image, mask_image: of the large size: draw only where the mask is white, and keep `original_image`
                elsewhere.
            noise_level: of the noise on the enlarged small picture, from 0 to T-1, for a network that was trained with
                it; by default T/4.
            num_inference_steps, negative_prompt, generator, output_type, return_dict, batch_size, guidance_interval,
                guidance_rescale, latents, skip_steps, callback_on_step_end: as in `TextToImagePipeline`.

        Raises:
            ValueError: for an invalid argument, naming the choices.
        """
        return self._draw(
            {"prompt": prompt, "image": image, "negative_prompt": negative_prompt, "noise_level": noise_level},
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
