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
from ..models.text import CAPTION_LENGTH
from .denoiser import Denoiser
from .denoising import Denoising

logging.disable_progress_bar()  # of a file or two
_verbosity = logging.get_verbosity()
logging.set_verbosity_error()  # or it would miss torchvision, which nothing here needs
from diffusers import IFPipeline  # noqa: E402

logging.set_verbosity(_verbosity)


class TextDenoiser(Denoiser):
    """(x_t, t, input_ids, attention_mask) -> output, by a U-Net that is told the states of a text encoder.

    An encoder without gradients is frozen: it stays in evaluation mode.

    Args:
        unet: with twice as many outputs as inputs, as stock pipelines want it.
        text_encoder: of transformers; None if states are told.
        learns_variance: whether the second half of the outputs means anything.
    """

    def __init__(self, unet: nn.Module, text_encoder: nn.Module | None, learns_variance: bool):
        super().__init__(unet)
        self.text_encoder, self.learns_variance = text_encoder, learns_variance

    def train(self, mode: bool = True) -> "TextDenoiser":
        """As in torch, but a frozen encoder never trains."""
        super().train(mode)
        if self.text_encoder is not None and not any(w.requires_grad for w in self.text_encoder.parameters()):
            self.text_encoder.eval()
        return self

    def encode(self, told: Told) -> Told:
        """Of tokens the states, padding included, (B, length, width); states as they are."""
        return {"encoder_hidden_states": self.text_encoder(**told)[0]} if "input_ids" in told else told

    def forward(self, x_t: torch.Tensor, timesteps: torch.Tensor, **told: torch.Tensor) -> torch.Tensor:
        """x_t (B, C, H, W) and timesteps, () or (B,), with tokens or states of captions -> (B, C or 2C, H, W)."""
        told = {name: states.to(self.unet.dtype) for name, states in self.encode(told).items()}
        output = super().forward(x_t, timesteps, **told)
        return output if self.learns_variance else output[:, : x_t.shape[1]]


class TextToImagePipeline(Denoising, IFPipeline):
    """Pictures for captions, with classifier-free guidance by the empty caption or another one.

    It has the components of stock `IFPipeline`, is saved under that name, and draws the same pixels for the same
    generator. It adds one generator per image, given latents, every sampler, and a callback.

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

    @property
    def conditions(self) -> Sequence[Condition]:
        """What the network is told beside x_t and t."""
        return [Prompt(tokenizer=self.tokenizer, length=CAPTION_LENGTH)]

    @property
    def network(self) -> TextDenoiser:
        """The network as training, the bound and sampling call it."""
        learns_variance = self.scheduler.config.get("variance_type") in LEARNED_VARIANCES
        return TextDenoiser(self.unet, self.text_encoder, learns_variance)

    def check_parts(self) -> None:
        """Raises ValueError, naming the component, if encoder and U-Net do not fit each other or stock's call."""
        for name in ("tokenizer", "text_encoder"):  # optional in `IFPipeline`, which also takes states of captions
            if getattr(self, name) is None:
                raise ValueError(f"there is no {name}")
        unet, encoder = self.unet.config, self.text_encoder.config
        width, positions = encoder.hidden_size, getattr(encoder, "max_position_embeddings", CAPTION_LENGTH)
        if unet.sample_size is None:
            raise ValueError("unet has no sample_size")
        expected = unet.encoder_hid_dim or unet.cross_attention_dim
        if width != expected:
            raise ValueError(f"text_encoder must have states of {expected} channels, as the unet expects, got {width}")
        if unet.out_channels != 2 * unet.in_channels:
            raise ValueError(f"unet must have {2 * unet.in_channels} output channels, got {unet.out_channels}")
        if positions < CAPTION_LENGTH:
            raise ValueError(f"text_encoder must have at least {CAPTION_LENGTH} positions, got {positions}")
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
            null = self.conditions[0].of_words(words, self._execution_device)
        return told, null, batch_size

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
        latents: torch.Tensor | None = None,
        skip_steps: int | None = None,
        callback_on_step_end: Callable | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draw pictures.

        Args:
            prompt: a caption, or one per image; may be left out only if `guidance_scale` is 0.
            num_inference_steps: None for all timesteps the model was trained on.
            guidance_scale: w in eps = eps(none) + w (eps(caption) - eps(none)): 1 is plain conditional sampling.
            negative_prompt: a caption to be guided away from, instead of the empty one.
            batch_size: how often to draw a single prompt.
            generator, output_type, return_dict, latents, skip_steps, callback_on_step_end: as in `DDPMPipeline`.

        Raises:
            ValueError: for an invalid argument, naming the choices.
        """
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
        )
