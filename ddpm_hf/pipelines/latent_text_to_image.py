"""From a caption to a picture by way of latents (Rombach et al. 2022, arXiv 2112.10752), in the form of stock
`StableDiffusionPipeline`."""

from collections.abc import Callable, Mapping, Sequence

import torch
from diffusers import AutoencoderKL, ImagePipelineOutput, SchedulerMixin, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..codecs.latents import LatentCodec
from ..conditions.prompt import as_it_is
from ..models.autoencoder import factor_of
from ..steps.inpainting import Given, Pictures
from .quiet import quietly
from .text_to_image import TextDenoiser, TextDenoising

with quietly():
    from diffusers import StableDiffusionPipeline

MOST_TOKENS = 512  # a tokenizer without a length of its own has 1e30


def missing_weights(part: nn.Module) -> list[str]:
    """The weights that diffusers did not find when it loaded this, and left without a value."""
    return [name for name, weight in part.named_parameters() if weight.is_meta]


class LatentTextToImagePipeline(TextDenoising, StableDiffusionPipeline):
    """Pictures for captions, drawn as latents and decoded by an autoencoder, with classifier-free guidance.

    It has the components of stock `StableDiffusionPipeline`, is saved under that name, and draws the same pixels for
    the same generator. It adds one generator per image, given latents, every sampler, and a callback.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler: as in `StableDiffusionPipeline`.
        safety_checker, feature_extractor, image_encoder: not used; there to have the same components.
    """

    adapters: Mapping[str, torch.Tensor] | None = None
    """As in `TextDenoiser`; saved beside the pipeline for stock's `load_lora_weights`."""

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        safety_checker: None = None,
        feature_extractor: None = None,
        image_encoder: None = None,
        requires_safety_checker: bool = False,
    ):
        super().__init__(vae, text_encoder, tokenizer, unet, scheduler, None, None, None, False)

    @classmethod
    def from_pretrained(cls, name, **kwargs):
        """As in diffusers, but a safety checker and what it needs are not loaded."""
        return super().from_pretrained(name, **{"safety_checker": None, "feature_extractor": None, **kwargs})

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """As in diffusers, with the adapters if there are any."""
        super().save_pretrained(save_directory, **kwargs)
        if self.adapters is not None:
            self.save_lora_weights(save_directory, self.adapters)

    @property
    def about_prompt(self) -> dict:
        """Attributes of `Prompt`."""
        masked = bool(getattr(self.text_encoder.config, "use_attention_mask", False))
        return {"length": self.tokenizer.model_max_length, "read": as_it_is, "masked": masked}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the pictures."""
        factor = factor_of(self.vae.config)
        _, *size = self.codec.shape
        return self.vae.config.out_channels, *(factor * side for side in size)

    @property
    def codec(self) -> LatentCodec:
        """What x_0 is."""
        _, *size = super().image_shape
        return LatentCodec((self.latent_channels, *size), self.vae)

    @property
    def latent_channels(self) -> int:
        """Of x_t."""
        return self.unet.config.in_channels

    @property
    def network(self) -> TextDenoiser:
        """The network as training and sampling call it."""
        return self.denoiser(self.unet, self.text_encoder, all_outputs=True)

    @property
    def outputs(self) -> int:
        """Channels that the network must have: of a learned variance stock's calls would guide the variance too."""
        return self.latent_channels

    def check_parts(self) -> None:
        """As `TextDenoising`, for the autoencoder too."""
        super().check_parts()
        vae, expected = self.vae.config, self.latent_channels
        if vae.latent_channels != expected:
            raise ValueError(
                f"vae must have latents of {expected} channels, as the unet expects, got {vae.latent_channels}"
            )
        if vae.in_channels != vae.out_channels:
            raise ValueError(f"vae must have as many outputs as its {vae.in_channels} inputs, got {vae.out_channels}")
        if vae.get("shift_factor"):
            raise ValueError(f"vae must have no shift_factor, which stock ignores, got {vae.shift_factor}")
        if missing := missing_weights(self.vae):
            raise ValueError(f"vae lacks {len(missing)} of its weights, such as {missing[0]}")
        if self.tokenizer.model_max_length > MOST_TOKENS:
            raise ValueError(
                f"tokenizer must have a model_max_length of at most {MOST_TOKENS}, got "
                f"{self.tokenizer.model_max_length:g}"
            )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = 50,
        guidance_scale: float = 7.5,
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
        image: Pictures | None = None,
        mask_image: Pictures | None = None,
        strength: float | None = None,
        callback_on_step_end: Callable | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draw pictures.

        Args:
            prompt: a caption, or one per image; may be left out only if `guidance_scale` is 0.
            num_inference_steps: None for all timesteps the model was trained on.
            guidance_scale: w in eps = eps(none) + w (eps(caption) - eps(none)): 1 is plain conditional sampling.
            negative_prompt: a caption to be guided away from, instead of the empty one.
            batch_size: how often to draw a single prompt.
            latents: x_T, standard normal, (B, c, h, w), instead of drawing it.
            image, mask_image: as in `DDPMPipeline`, as are all other arguments. What is drawn of the latents is all
                that a white pixel is part of; without a mask all of them.
            strength: how far to draw it anew: the share of the steps that is left, from noise with as much of the
                image in it as is then usual. By default 1 with a mask, else 0.8.

        Raises:
            ValueError: for an invalid argument, naming the choices.
        """
        if strength is None and image is not None:
            strength = 0.8 if mask_image is None else 1.0
        return self._draw(
            {"prompt": prompt, "negative_prompt": negative_prompt},
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
            image,
            mask_image,
            strength,
        )

    def _given(
        self,
        known: tuple[torch.Tensor, torch.Tensor],
        noise: torch.Tensor,
        scheduler: SchedulerMixin,
        skipped: int,
        generator: torch.Generator | list[torch.Generator] | None,
        has_mask: bool,
    ) -> tuple[Given, torch.Tensor]:
        """As in stock `StableDiffusionImg2ImgPipeline` and `StableDiffusionInpaintPipeline`."""
        given, x_t = super()._given(known, noise, scheduler, skipped, generator, has_mask)
        if not has_mask:
            return given, x_t
        # It also draws a latent of each picture with its hole, which only networks of nine channels are told.
        count = len(generator) if isinstance(generator, list) else len(given.x_0)
        randn_tensor((count, *noise.shape[1:]), generator, noise.device)
        return given, x_t if skipped else noise
