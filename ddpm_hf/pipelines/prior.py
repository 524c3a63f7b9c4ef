"""From a caption to CLIP's embedding of a picture: the prior of DALL·E 2 (Ramesh et al. 2022, arXiv 2204.06125), in
the form of stock `KandinskyV22PriorPipeline`."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from diffusers import PriorTransformer, SchedulerMixin
from torch import nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection
from transformers.image_processing_utils import BaseImageProcessor

from ..codecs.embedding import EmbeddingCodec
from ..conditions.clip_prompt import ClipPrompt
from ..conditions.condition import Told
from ..models.clip import look
from .quiet import quietly
from .text_to_image import TextDenoising

with quietly():
    from diffusers import KandinskyV22PriorPipeline
    from diffusers.pipelines.kandinsky import KandinskyPriorPipelineOutput


class PriorDenoiser(nn.Module):
    """(x_t, t, **told) -> x_0, both float32 (B, E) whatever the dtype of the weights, as a `Denoiser`.

    Args:
        prior: what is told are its arguments.
    """

    def __init__(self, prior: PriorTransformer):
        super().__init__()
        self.prior = prior

    def encode(self, told: Told) -> Told:
        """The same."""
        return told

    def forward(self, x_t: torch.Tensor, timesteps: torch.Tensor, **told: torch.Tensor) -> torch.Tensor:
        """x_t (B, E) and timesteps, () or (B,) -> (B, E)."""
        dtype = self.prior.dtype
        told = {name: value.to(dtype) if value.is_floating_point() else value for name, value in told.items()}
        return self.prior(x_t.to(dtype), timesteps, **told).predicted_image_embedding.float()


class PriorPipeline(TextDenoising, KandinskyV22PriorPipeline):
    """Embeddings of pictures for captions, with classifier-free guidance.

    It has the components of stock `KandinskyV22PriorPipeline`, is saved under that name, and draws the same embeddings
    for the same generator. It adds one generator per image, candidates, every sampler, and a callback.

    Args:
        prior, image_encoder, text_encoder, tokenizer, scheduler, image_processor: as in `KandinskyV22PriorPipeline`.
    """

    draws_pictures, has_prior, kind = False, True, "a prior"

    def __init__(
        self,
        prior: PriorTransformer,
        image_encoder: CLIPVisionModelWithProjection,
        text_encoder: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        scheduler: SchedulerMixin,
        image_processor: BaseImageProcessor,
    ):
        super().__init__(prior, image_encoder, text_encoder, tokenizer, scheduler, image_processor)

    @property
    def conditions(self) -> Sequence[ClipPrompt]:
        """What the network is told: the caption."""
        length = self.tokenizer.model_max_length
        return [ClipPrompt(tokenizer=self.tokenizer, length=length, encoder=self.text_encoder, states=None)]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the pictures that CLIP takes."""
        config = self.image_encoder.config
        return config.num_channels, config.image_size, config.image_size

    @property
    def codec(self) -> EmbeddingCodec:
        """What x_0 is."""
        return EmbeddingCodec(
            (self.prior.config.embedding_dim,),
            self.prior.clip_mean,
            self.prior.clip_std,
            self.image_encoder,
            partial(look, self.image_encoder, self.image_processor),
        )

    @property
    def network(self) -> PriorDenoiser:
        """The network as training and sampling call it."""
        return PriorDenoiser(self.prior)

    def check_parts(self) -> None:
        """Raises ValueError, naming the component, if CLIP and prior do not fit each other or stock's call, or the
        prior does not know mean and standard deviation of embeddings."""
        width, length = self.prior.config.embedding_dim, self.prior.config.num_embeddings
        text, vision = self.text_encoder.config, self.image_encoder.config
        for name, found in (
            ("text_encoder must have states", text.hidden_size),
            ("text_encoder must have embeddings", text.projection_dim),
            ("image_encoder must have embeddings", vision.projection_dim),
            ("prior must have outputs", self.prior.config.clip_embed_dim or width),
        ):
            if found != width:
                raise ValueError(f"{name} of {width} channels, as the prior expects, got {found}")
        if (found := self.tokenizer.model_max_length) != length:
            raise ValueError(f"tokenizer must cut captions to {length} tokens, as the prior expects, got {found:g}")
        if text.max_position_embeddings < length:
            raise ValueError(f"text_encoder must have at least {length} positions, got {text.max_position_embeddings}")
        self._check_measured()

    def _check_measured(self) -> None:
        std = self.prior.clip_std
        if not (std > 0).all():
            raise ValueError(
                "prior must have the measured standard deviation of embeddings in clip_std, above 0, got "
                f"{float(std.min()):g} in {int((std <= 0).sum())} of {std.numel()} channels"
            )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = 25,
        guidance_scale: float = 4.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pt",
        return_dict: bool = True,
        *,
        batch_size: int = 1,
        num_images_per_prompt: int = 1,
        num_candidates: int = 1,
        callback_on_step_end: Callable | None = None,
    ) -> KandinskyPriorPipelineOutput | tuple:
        """Draw embeddings, float32 (B, E), of the scale that CLIP gives them.

        Beside each comes one to be guided away from in the decoder: of the negative prompt, drawn likewise, or else of
        a picture that is zero in CLIP's own units, as stock has it.

        Args:
            prompt: a caption, or one per image.
            negative_prompt: to be guided away from, instead of the empty caption.
            num_inference_steps: at least 2 with stock's `UnCLIPScheduler`; None for all timesteps it was trained on.
            guidance_scale: w in x_0 = x_0(none) + w (x_0(caption) - x_0(none)): 1 is plain conditional sampling.
            generator: one for all, or one per image, which also draws its candidates and negative.
            latents: x_T, instead of drawing it, (n, E): of an image's candidates one after the other, and of the
                negative prompts after all others.
            output_type: "pt" or "np".
            batch_size: how often to draw a single prompt.
            num_images_per_prompt: how often to draw each prompt.
            num_candidates: embeddings that are drawn of each image; that with the largest product with the caption's
                is taken. The paper has 2 (§2.2).
            callback_on_step_end: as in `DDPMPipeline`.

        Raises:
            ValueError: for an invalid argument, naming the choices, or a prior without measured `clip_std`.
        """
        # 1. Check the arguments; a word for each row that is drawn
        self._check_call(output_type, num_images_per_prompt, num_candidates)
        asked = {"prompt": prompt, "negative_prompt": negative_prompt if guidance_scale != 1 else None}
        *_, count = self.ask(asked, guidance_scale, batch_size)
        words = _each(prompt, count)
        negatives = [] if negative_prompt is None else _each(negative_prompt, count)
        if len(negatives) not in (0, count):
            raise ValueError(f"`negative_prompt` must be one per image, got {len(negatives)} for {count} images.")
        generators = generator
        if isinstance(generator, list):
            if len(generator) != count * num_images_per_prompt:
                raise ValueError(
                    f"`generator` must be one per image, got {len(generator)} for {count * num_images_per_prompt} "
                    "images."
                )
            generators = _repeated(generator * (2 if negatives else 1), num_candidates)
        rows = _repeated(words + negatives, num_images_per_prompt * num_candidates)
        away = _repeated(2 * negatives, num_images_per_prompt * num_candidates) if guidance_scale != 1 else []

        # 2. x_T -> x_0 -> embeddings
        drawn = self._draw(
            {"prompt": rows, "negative_prompt": away or None},
            1,
            generators,
            num_inference_steps,
            "pt",
            True,
            guidance_scale,
            latents,
            None,
            callback_on_step_end,
        ).images

        # 3. Of the candidates the one nearest to its caption
        if num_candidates > 1:
            texts = self.conditions[0].of_words(rows, drawn.device)["proj_embedding"].float()
            nearest = (drawn * texts).sum(1).view(-1, num_candidates).argmax(1)
            drawn = drawn.view(-1, num_candidates, drawn.shape[1])[torch.arange(len(nearest)), nearest]
        embeddings, away = drawn.chunk(2) if negatives else (drawn, self.get_zero_embed(len(drawn), drawn.device))
        if output_type == "np":
            embeddings, away = embeddings.cpu().numpy(), away.cpu().numpy()
        if not return_dict:
            return embeddings, away
        return KandinskyPriorPipelineOutput(image_embeds=embeddings, negative_image_embeds=away)

    def _check_call(self, output_type: str, images: int, candidates: int) -> None:
        if output_type not in ("pt", "np"):
            raise ValueError(f"`output_type` must be 'pt' or 'np', got {output_type!r}.")
        for name, number in (("num_images_per_prompt", images), ("num_candidates", candidates)):
            if number < 1:
                raise ValueError(f"`{name}` must be at least 1, got {number}.")
        self._check_measured()


def _each(words: str | Sequence[str] | None, count: int) -> list[str]:
    """One for each image; without any, the empty caption."""
    return [words or ""] * count if words is None or isinstance(words, str) else list(words)


def _repeated(values: list, times: int) -> list:
    """Each of the values so many times, one after the other."""
    return [value for value in values for _ in range(times)]
