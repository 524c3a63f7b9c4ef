"""From a caption to a picture: the base model of GLIDE (arXiv 2112.10741), in the form of stock `IFPipeline`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import ImagePipelineOutput, SchedulerMixin, UNet2DConditionModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..conditions.condition import Condition, Told
from ..conditions.prompt import Prompt
from ..diffusion.process import LEARNED_VARIANCES
from ..models.text import CAPTION_LENGTH, caption_states, knows_words
from ..steps.denoiser import Denoiser
from ..steps.inpainting import Pictures
from .cascade import Cascade
from .denoising import Denoising
from .quiet import quietly

with quietly():
    from diffusers import IFPipeline

logging.disable_progress_bar()  # of a file or two


class TextDenoiser(Denoiser):
    """(x_t, t, input_ids, attention_mask) -> output, by a U-Net that is told the states of a text encoder.

    An encoder without gradients is frozen: it stays in evaluation mode.

    Args:
        unet: of diffusers.
        text_encoder: of transformers; None if states are told.
        all_outputs: whether the second half of the outputs means anything; stock `IFPipeline` wants it always.
    """

    adapters: Mapping[str, torch.Tensor] | None = None
    """Low-rank adapters that were added to its weights, under diffusers' names."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module | None, all_outputs: bool):
        super().__init__(unet)
        self.text_encoder, self.all_outputs = text_encoder, all_outputs

    def train(self, mode: bool = True) -> "TextDenoiser":
        """As in torch, but a frozen encoder never trains."""
        super().train(mode)
        if self.text_encoder is not None and not any(w.requires_grad for w in self.text_encoder.parameters()):
            self.text_encoder.eval()
        return self

    def encode(self, told: Told) -> Told:
        """Of tokens the states, padding included, (B, length, width); states as they are."""
        return {"encoder_hidden_states": caption_states(self.text_encoder, **told)} if "input_ids" in told else told

    def forward(self, x_t: torch.Tensor, timesteps: torch.Tensor, **told: torch.Tensor) -> torch.Tensor:
        """x_t (B, C, H, W) and timesteps, () or (B,), with tokens or states of captions -> (B, C or 2C, H, W)."""
        told = {
            name: value.to(self.unet.dtype) if value.is_floating_point() else value
            for name, value in self.encode(told).items()
        }
        output = super().forward(x_t, timesteps, **told)
        return output if self.all_outputs else output.chunk(2, dim=1)[0]


class TextDenoising(Denoising):
    """What pipelines told captions have in common."""

    denoiser = TextDenoiser
    """The class of `network`."""

    about_prompt = {"length": CAPTION_LENGTH}
    """Attributes of `Prompt`: what stock's pipeline makes of captions."""

    @property
    def conditions(self) -> Sequence[Condition]:
        """What the network is told beside x_t and t."""
        return [Prompt(tokenizer=self.tokenizer, **self.about_prompt)]

    @property
    def is_told_captions(self) -> bool:
        """As in `Denoising`: not if its only caption was the empty one."""
        return knows_words(self.tokenizer)

    @property
    def outputs(self) -> int:
        """Channels that the network must have for stock's call."""
        return 2 * self.image_shape[0]

    @property
    def network(self) -> TextDenoiser:
        """The network as training, the bound and sampling call it."""
        learns_variance = self.scheduler.config.get("variance_type") in LEARNED_VARIANCES
        return self.denoiser(self.unet, self.text_encoder, all_outputs=learns_variance)

    def check_parts(self) -> None:
        """Raises ValueError, naming the component, if encoder and U-Net do not fit each other or stock's call."""
        for name in ("tokenizer", "text_encoder"):  # optional in `IFPipeline`, which also takes states of captions
            if getattr(self, name) is None:
                raise ValueError(f"there is no {name}")
        unet, encoder = self.unet.config, self.text_encoder.config
        length = self.about_prompt["length"]
        width, positions = encoder.hidden_size, getattr(encoder, "max_position_embeddings", length)
        if unet.sample_size is None:
            raise ValueError("unet has no sample_size")
        expected = unet.encoder_hid_dim or unet.cross_attention_dim
        if width != expected:
            raise ValueError(f"text_encoder must have states of {expected} channels, as the unet expects, got {width}")
        if unet.out_channels != self.outputs:
            raise ValueError(f"unet must have {self.outputs} output channels, got {unet.out_channels}")
        if positions < length:
            raise ValueError(f"text_encoder must have at least {length} positions, got {positions}")
        tokens, known = len(self.tokenizer), encoder.vocab_size
        if tokens > known:
            raise ValueError(f"tokenizer must have at most the {known} tokens of the text_encoder, got {tokens}")

    def ask(
        self, asked: Mapping[str, Any], guidance_scale: float = 1.0, batch_size: int = 1
    ) -> tuple[Told, Told, int]:
        """As for other pipelines; `negative_prompt` replaces the empty caption."""
        asked = dict(asked)
        negative = asked.pop("negative_prompt", None)
        told, null, batch_size = super().ask(asked, guidance_scale, batch_size)
        if negative is not None:
            if guidance_scale == 1:
                raise ValueError("`negative_prompt` must be left out with `guidance_scale=1`, which does not guide.")
            words = [negative] * batch_size if isinstance(negative, str) else list(negative)
            if len(words) != batch_size:
                raise ValueError(f"`negative_prompt` must be one per image, got {len(words)} for {batch_size} images.")
            null = null | self.conditions[0].of_words(words, self._execution_device)
        return told, null, batch_size


class TextToImagePipeline(Cascade, TextDenoising, IFPipeline):
    """Pictures for captions, with classifier-free guidance by the empty caption or another one.

    It has the components of stock `IFPipeline`, is saved under that name, and draws the same pixels for the same
    generator. It adds one generator per image, given latents, every sampler, a callback, and the upsampler.

    Args:
        tokenizer, text_encoder, unet, scheduler: as in `IFPipeline`.
        safety_checker, feature_extractor, watermarker: None; there to have the same components.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: PreTrainedModel,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        safety_checker: None,
        feature_extractor: None,
        watermarker: None,
        requires_safety_checker: bool = False,
    ):
        super().__init__(
            tokenizer, text_encoder, unet, scheduler, safety_checker, feature_extractor, watermarker, False
        )

    def check_parts(self) -> None:
        """As `Cascade`, and that both stages are told captions by states of one width."""
        super().check_parts()
        if self.upsampler is not None:
            width, own = (stage.text_encoder.config.hidden_size for stage in self.stages)
            if own != width:
                raise ValueError(f"upsampler must be told states of {width} channels, as the base is, got {own}")

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = 100,
        guidance_scale: float = 7.0,
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
        noise_level: int | None = None,
        small: torch.Tensor | None = None,
        callback_on_step_end: Callable | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draw pictures.

        Args:
            prompt: a caption, or one per image; may be left out only if `guidance_scale` is 0.
            num_inference_steps: None for all timesteps the model was trained on. The upsampler takes as many.
            guidance_scale: w in eps = eps(none) + w (eps(caption) - eps(none)): 1 is plain conditional sampling. The
                upsampler is not guided, as in GLIDE's published code.
            negative_prompt: a caption to be guided away from, instead of the empty one.
            batch_size: how often to draw a single prompt.
            image, mask_image: as in `DDPMPipeline`, as are all other arguments; of the size of what the call returns.
            noise_level: as in `UpsamplingPipeline`.
            small: what the base has drawn already, (B, C, H, W) in [0, 1]: it is enlarged, and nothing else is drawn.

        Raises:
            ValueError: for an invalid argument, naming the choices.
        """

        def draw(output_type: str, return_dict: bool, **given: Pictures) -> ImagePipelineOutput | tuple:
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
                **given,
            )

        return self._draw_by_stage(
            draw,
            small,
            output_type=output_type,
            return_dict=return_dict,
            image=image,
            mask_image=mask_image,
            noise_level=noise_level,
            prompt="" if prompt is None else prompt,
            num_inference_steps=num_inference_steps,
            generator=generator,
            callback_on_step_end=callback_on_step_end,
        )


class InpaintingPipeline(TextToImagePipeline):
    """As `TextToImagePipeline`, fine-tuned to draw a part of a picture whose other pixels it sees.

    It is saved as stock `IFInpaintingPipeline`, and draws the same pixels for the same generator where stock does not
    stretch the pictures: their sides must be multiples of 8. Without `image` and `mask_image` it draws whole pictures.
    """

    keeps_given_clean = True
