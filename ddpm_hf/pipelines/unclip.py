"""From a caption to an embedding of a picture, and from that to a picture: DALL·E 2 (Ramesh et al. 2022, arXiv
2204.06125), in the form of stock `KandinskyV22CombinedPipeline`."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    ImagePipelineOutput,
    PriorTransformer,
    SchedulerMixin,
    UNet2DConditionModel,
    VQModel,
)
from torch import nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection
from transformers.image_processing_utils import BaseImageProcessor

from ..codecs.pixels import PixelCodec, ToldPixelCodec
from ..conditions.condition import Condition, Told
from ..conditions.embedding import ImageEmbedding
from ..diffusion.process import LEARNED_VARIANCES
from ..models.movq import identity_movq
from ..steps.denoiser import Denoiser
from ..steps.inpainting import Pictures
from .cascade import Cascade
from .denoising import Denoising
from .fingerprint import weights_fingerprint
from .prior import PriorPipeline
from .quiet import quietly

with quietly():
    from diffusers import KandinskyV22CombinedPipeline, KandinskyV22Pipeline


class EmbeddingDenoiser(Denoiser):
    """(x_t, t, image_embeds) -> output, by a U-Net that is told an embedding.

    Args:
        unet: of diffusers.
        all_outputs: whether the second half of the outputs means anything; stock `KandinskyV22Pipeline` wants it
            always.
    """

    def __init__(self, unet: nn.Module, all_outputs: bool):
        super().__init__(unet)
        self.all_outputs = all_outputs

    def forward(self, x_t: torch.Tensor, timesteps: torch.Tensor, image_embeds: torch.Tensor) -> torch.Tensor:
        """x_t (B, C, H, W), timesteps, () or (B,), and embeddings (B, E) -> (B, C or 2C, H, W)."""
        told = {"image_embeds": image_embeds.to(self.unet.dtype)}
        output = super().forward(x_t, timesteps, encoder_hidden_states=None, added_cond_kwargs=told)
        return output if self.all_outputs else output.chunk(2, dim=1)[0]


class EmbeddingDenoising(Denoising):
    """What pipelines have in common whose U-Net is told an embedding of the picture.

    The caption is not told to it, though the paper's decoder reads it too: stock's cannot.
    """

    @property
    def network(self) -> EmbeddingDenoiser:
        """The network as training and sampling call it."""
        learns_variance = self.scheduler.config.get("variance_type") in LEARNED_VARIANCES
        return EmbeddingDenoiser(self.unet, all_outputs=learns_variance)

    @property
    def codec(self) -> PixelCodec:
        """What x_0 is."""
        return ToldPixelCodec(self.image_shape)

    def check_parts(self) -> None:
        """Raises ValueError, naming the component, if the parts do not fit each other or stock's call."""
        unet = self.unet.config
        if unet.sample_size is None:
            raise ValueError("unet has no sample_size")
        told = unet.addition_embed_type, unet.encoder_hid_dim_type
        if told != ("image", "image_proj"):
            raise ValueError(f"unet must be told embeddings by image and image_proj, got {told[0]} and {told[1]}")
        if (unet.in_channels, unet.out_channels) != (3, 6):
            got = f"{unet.in_channels} and {unet.out_channels}"
            raise ValueError(f"unet must have 3 input and 6 output channels, got {got}")
        if weights_fingerprint(self.movq) != weights_fingerprint(identity_movq()):
            raise ValueError("movq must change nothing: models of latents are not supported")


class DecoderPipeline(EmbeddingDenoising, KandinskyV22Pipeline):
    """Pictures for embeddings of pictures.

    It has the components of stock `KandinskyV22Pipeline`, and draws the same pixels for the same generator, in the
    network's own size.

    Args:
        unet, scheduler, movq: as in `KandinskyV22Pipeline`; the last changes nothing.
        condition: the embedding, with what it takes to look at pictures; by default without.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        movq: VQModel,
        condition: ImageEmbedding | None = None,
    ):
        super().__init__(unet, scheduler, movq)
        self._condition = condition or ImageEmbedding(width=unet.config.encoder_hid_dim)

    @property
    def conditions(self) -> Sequence[Condition]:
        """What the network is told beside x_t and t."""
        return [self._condition]

    def ask(
        self, asked: Mapping[str, Any], guidance_scale: float = 1.0, batch_size: int = 1
    ) -> tuple[Told, Told, int]:
        """As for other pipelines; `negative_image_embeds` is told instead for guidance."""
        asked = dict(asked)
        negative = asked.pop("negative_image_embeds", None)
        told, null, batch_size = super().ask(asked, guidance_scale, batch_size)
        if negative is None:
            if guidance_scale != 1 and self._condition.empty is None:
                raise ValueError(
                    f"`negative_image_embeds` must be given with `guidance_scale={guidance_scale:g}`, which "
                    "leads away from it."
                )
            return told, null, batch_size
        shape = told["image_embeds"].shape
        if negative.shape != shape:
            raise ValueError(f"`negative_image_embeds` must have shape {tuple(shape)}, got {tuple(negative.shape)}.")
        return told, {"image_embeds": negative.to(told["image_embeds"])}, batch_size

    @torch.no_grad()
    def __call__(
        self,
        image_embeds: torch.Tensor | Sequence[torch.Tensor] | None = None,
        negative_image_embeds: torch.Tensor | None = None,
        num_inference_steps: int | None = 100,
        guidance_scale: float = 4.0,
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
        callback_on_step_end: Callable | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draw pictures.

        Args:
            image_embeds: (B, E), or one (E,) per image; may be left out only if `guidance_scale` is 0.
            negative_image_embeds: (B, E), what guidance leads away from.
            num_inference_steps: None for all timesteps the model was trained on.
            guidance_scale: w in eps = eps(negative) + w (eps(z) - eps(negative)): 1 is plain conditional sampling.
            generator, output_type, return_dict, batch_size, guidance_interval, guidance_rescale, latents, skip_steps,
                image, mask_image, callback_on_step_end: as in `DDPMPipeline`.

        Raises:
            ValueError: for an invalid argument, naming the choices.
        """
        return self._draw(
            {"image_embeds": image_embeds, "negative_image_embeds": negative_image_embeds},
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
        )


class UnclipPipeline(Cascade, EmbeddingDenoising, KandinskyV22CombinedPipeline):
    """Pictures for captions, by way of an embedding that a prior draws; or for embeddings of pictures, as variations.

    It has the components of stock `KandinskyV22CombinedPipeline`, is saved under that name, and draws the same pixels
    for the same generator. It adds one generator per image, given embeddings, every sampler of the decoder, a
    callback, and an upsampler, which is told no caption.

    Args:
        unet, scheduler, movq: of the decoder, as in `DecoderPipeline`.
        prior_prior, prior_image_encoder, prior_text_encoder, prior_tokenizer, prior_scheduler, prior_image_processor:
            the components of `PriorPipeline`.
    """

    is_told_captions = True
    has_prior = True
    """Whether it is asked for captions; else for embeddings of pictures, as its `conditions` say."""
    # Stock's sets that of two pipelines which are not used here.
    set_progress_bar_config = DiffusionPipeline.set_progress_bar_config

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        movq: VQModel,
        prior_prior: PriorTransformer,
        prior_image_encoder: CLIPVisionModelWithProjection,
        prior_text_encoder: CLIPTextModelWithProjection,
        prior_tokenizer: CLIPTokenizer,
        prior_scheduler: SchedulerMixin,
        prior_image_processor: BaseImageProcessor,
    ):
        of_clip = prior_image_encoder, prior_text_encoder, prior_tokenizer
        super().__init__(unet, scheduler, movq, prior_prior, *of_clip, prior_scheduler, prior_image_processor)

    @property
    def prior(self) -> PriorPipeline:
        """What makes embeddings of captions, of the components that this pipeline has now."""
        parts = {name: part for name, part in self.components.items() if name.startswith("prior_")}
        pipeline = PriorPipeline(**{name.removeprefix("prior_"): part for name, part in parts.items()})
        pipeline.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        return pipeline

    @property
    @torch.no_grad()
    def decoder(self) -> DecoderPipeline:
        """What makes pictures of embeddings, of the components that this pipeline has now."""
        prior = self.prior
        condition = ImageEmbedding(
            width=self.unet.config.encoder_hid_dim,
            embedder=prior.codec,
            empty=prior.get_zero_embed()[0],
        )
        pipeline = DecoderPipeline(self.unet, self.scheduler, self.movq, condition)
        pipeline.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        return pipeline

    def looking_at_pictures(self) -> "UnclipPipeline":
        """This pipeline, asked for embeddings of pictures: what its decoder does without the prior."""
        pipeline = copy.copy(self)
        pipeline.has_prior = False
        return pipeline

    @property
    def conditions(self) -> Sequence[Condition]:
        """What it is asked for."""
        return (self.prior if self.has_prior else self.decoder).conditions

    def check_parts(self) -> None:
        """As `EmbeddingDenoising` and `Cascade`, for the prior too."""
        super().check_parts()
        try:
            self.prior.check_parts()
        except ValueError as problem:
            raise ValueError(f"prior: {problem}") from None
        width, expected = self.prior_image_encoder.config.projection_dim, self.unet.config.encoder_hid_dim
        if width != expected:
            raise ValueError(
                f"prior_image_encoder must have embeddings of {expected} channels, as the unet expects, got {width}"
            )

    def ask(
        self, asked: Mapping[str, Any], guidance_scale: float = 1.0, batch_size: int = 1
    ) -> tuple[Told, Told, int]:
        """What prior or decoder is told, as `conditions` says; arguments and errors as for other pipelines."""
        return (self.prior if self.has_prior else self.decoder).ask(asked, guidance_scale, batch_size)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = 100,
        guidance_scale: float = 4.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        *,
        batch_size: int = 1,
        image_embeds: torch.Tensor | Sequence[torch.Tensor] | None = None,
        prior_num_inference_steps: int = 25,
        prior_guidance_scale: float = 4.0,
        prior_candidates: int = 1,
        image: Pictures | None = None,
        mask_image: Pictures | None = None,
        noise_level: int | None = None,
        small: torch.Tensor | None = None,
        callback_on_step_end: Callable | None = None,
        **call: Any,
    ) -> ImagePipelineOutput | tuple:
        """Draw pictures.

        Args:
            prompt: a caption, or one per image; may be left out with `image_embeds`, or if `guidance_scale` is 0.
            negative_prompt: a caption to be guided away from, instead of what stands for none.
            num_inference_steps: of the decoder, and of the upsampler.
            guidance_scale: of the decoder; the upsampler is not guided.
            generator: one for all images, or one per image; it draws for the prior, the decoder and the upsampler.
            batch_size: how often to draw a single prompt.
            image_embeds: what the decoder is told, (B, E), or one (E,) per image, instead of what the prior draws.
            prior_num_inference_steps, prior_guidance_scale, prior_candidates: `num_inference_steps`, `guidance_scale`
                and `num_candidates` of `PriorPipeline`.
            output_type, return_dict, image, mask_image, noise_level, small: as in `TextToImagePipeline`.
            callback_on_step_end: as in `DecoderPipeline`.
            **call: other arguments of `DecoderPipeline`.

        Raises:
            ValueError: for an invalid argument, naming the choices.
        """
        shared = {"generator": generator, "batch_size": batch_size}
        more = call | shared | {"callback_on_step_end": callback_on_step_end}

        def draw(**form: Any) -> ImagePipelineOutput | tuple:
            embeddings, negative = image_embeds, None
            if embeddings is None:
                if prompt is not None or guidance_scale != 0:
                    embeddings, negative = self.prior(
                        prompt=prompt,
                        negative_prompt=negative_prompt,
                        num_inference_steps=prior_num_inference_steps,
                        guidance_scale=prior_guidance_scale,
                        num_candidates=prior_candidates,
                        return_dict=False,
                        **shared,
                    )
            elif prompt is not None or negative_prompt is not None:
                raise ValueError("`image_embeds` must be left out with `prompt` or `negative_prompt`.")
            return self.decoder(embeddings, negative, num_inference_steps, guidance_scale, **more, **form)

        drawn = self._draw_by_stage(
            draw,
            small,
            output_type=output_type,
            return_dict=return_dict,
            image=image,
            mask_image=mask_image,
            noise_level=noise_level,
            prompt="",
            num_inference_steps=num_inference_steps,
            generator=generator,
            callback_on_step_end=callback_on_step_end,
        )
        self.maybe_free_model_hooks()
        return drawn
