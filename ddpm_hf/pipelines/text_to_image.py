"""From a caption to a picture: the base model of GLIDE (arXiv 2112.10741), in the form of stock `IFPipeline`."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ImagePipelineOutput, SchedulerMixin, UNet2DConditionModel
from huggingface_hub import snapshot_download
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..conditions.condition import Condition, Told
from ..conditions.prompt import Prompt
from ..diffusion.process import LEARNED_VARIANCES
from ..models.text import CAPTION_LENGTH, caption_states, knows_words
from ..portable import INDEX_FILE, UPSAMPLER_FOLDER
from ..steps.denoiser import Denoiser
from ..steps.guidance import check_noise_level
from ..steps.inpainting import Pictures, shrunk
from .denoising import Denoising
from .output_types import check_output_type
from .quiet import quietly

if TYPE_CHECKING:
    from .upsampling import UpsamplingPipeline

with quietly():
    from diffusers import IFPipeline

logging.disable_progress_bar()  # of a file or two

# Arguments of `from_pretrained` that say where in the Hub and on the disk a model is.
_PLACE = ("revision", "cache_dir", "token", "local_files_only", "force_download")
# Arguments of `save_pretrained` that say what files are written.
_FORM = ("safe_serialization", "variant", "max_shard_size")


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


class TextToImagePipeline(TextDenoising, IFPipeline):
    """Pictures for captions, with classifier-free guidance by the empty caption or another one.

    It has the components of stock `IFPipeline`, is saved under that name, and draws the same pixels for the same
    generator. It adds one generator per image, given latents, every sampler, a callback, and the upsampler.

    Args:
        tokenizer, text_encoder, unet, scheduler: as in `IFPipeline`.
        safety_checker, feature_extractor, watermarker: None; there to have the same components.
    """

    upsampler: "UpsamplingPipeline | None" = None
    """Enlarges what is drawn, in the same call; None draws the small pictures alone."""

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

    @classmethod
    def from_pretrained(cls, name, **kwargs):
        """As in diffusers, with the upsampler if there is one in the folder or repository.

        A `unet` or `scheduler` that is given is the base's; all else that is given is for both.
        """
        from .upsampling import UpsamplingPipeline

        pipeline, folder = super().from_pretrained(name, **kwargs), Path(name)
        if not folder.is_dir():
            place = {key: value for key, value in kwargs.items() if key in _PLACE}
            folder = Path(snapshot_download(name, allow_patterns=f"{UPSAMPLER_FOLDER}/*", **place))
        if (folder / UPSAMPLER_FOLDER / INDEX_FILE).is_file():
            shared = {key: value for key, value in kwargs.items() if key not in ("unet", "scheduler")}
            pipeline.upsampler = UpsamplingPipeline.from_pretrained(folder / UPSAMPLER_FOLDER, **shared)
        return pipeline

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """As in diffusers, with the upsampler if there is one."""
        if self.upsampler is not None:
            form = {key: value for key, value in kwargs.items() if key in _FORM}  # the base pushes both
            self.upsampler.save_pretrained(Path(save_directory, UPSAMPLER_FOLDER), **form)
        super().save_pretrained(save_directory, **kwargs)

    @property
    def stages(self) -> list[Denoising]:
        """This pipeline and its upsampler."""
        return [self] if self.upsampler is None else [self, self.upsampler]

    def alone(self) -> "TextToImagePipeline":
        """This pipeline without its upsampler."""
        base = copy.copy(self)
        base.upsampler = None
        return base

    def check_parts(self) -> None:
        """As `TextDenoising`, for the upsampler too."""
        super().check_parts()
        if self.upsampler is not None:
            try:
                self.upsampler.check_parts()
            except ValueError as problem:
                raise ValueError(f"upsampler: {problem}") from None
            taken = self.upsampler.conditions[-1].shape
            if taken != self.image_shape:
                raise ValueError(f"upsampler must enlarge pictures of shape {self.image_shape}, but takes {taken}")
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
        check_output_type(output_type)
        check_noise_level(noise_level, self.stages[-1].noise_levels)
        given = {"image": image, "mask_image": mask_image} if image is not None or mask_image is not None else {}
        self.stages[-1].known(**given)
        if small is None:
            drawn = self._draw(
                {"prompt": prompt, "negative_prompt": negative_prompt},
                batch_size,
                generator,
                num_inference_steps,
                output_type if self.upsampler is None else "pt",
                return_dict or self.upsampler is not None,
                guidance_scale,
                latents,
                skip_steps,
                callback_on_step_end,
                guidance_interval,
                guidance_rescale,
                **shrunk(given, self.image_shape[1:]),
            )
            if self.upsampler is None:
                return drawn
            small = drawn.images
        elif self.upsampler is None:
            raise ValueError("`small` must be left out for a model without an upsampler.")
        self.upsampler.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        return self.upsampler(
            "" if prompt is None else prompt,
            2 * small - 1,
            num_inference_steps,
            guidance_scale=1,
            generator=generator,
            output_type=output_type,
            return_dict=return_dict,
            callback_on_step_end=callback_on_step_end,
            original_image=image,
            mask_image=mask_image,
            noise_level=noise_level,
        )


def _of_every_stage(name: str) -> Callable:
    """A method of diffusers, called for the upsampler too."""

    @wraps(getattr(IFPipeline, name))
    def method(self: TextToImagePipeline, *args, **kwargs):
        result = getattr(super(TextToImagePipeline, self), name)(*args, **kwargs)
        for later in self.stages[1:]:
            getattr(later, name)(*args, **kwargs)
        return result

    return method


# Where and how a pipeline computes. The other methods of this kind, such as `enable_attention_slicing`, call these.
for _name in (
    *("to", "enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_offload", "remove_all_hooks"),
    *("reset_device_map", "set_attention_slice", "set_use_memory_efficient_attention_xformers"),
):
    setattr(TextToImagePipeline, _name, _of_every_stage(_name))


class InpaintingPipeline(TextToImagePipeline):
    """As `TextToImagePipeline`, fine-tuned to draw a part of a picture whose other pixels it sees.

    It is saved as stock `IFInpaintingPipeline`, and draws the same pixels for the same generator where stock does not
    stretch the pictures: their sides must be multiples of 8. Without `image` and `mask_image` it draws whole pictures.
    """

    keeps_given_clean = True
