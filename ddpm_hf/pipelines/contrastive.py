"""A CLIP (Radford et al. 2021, arXiv 2103.00020) as a pipeline that draws nothing."""

import math
from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline
from torch import nn
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from ..conditions.meaning import MatchedCaption
from ..models.clip import Clip
from .denoising import Denoising

_LARGEST_SCALE = math.log(100)  # §2.5


class Contrastive(nn.Module):
    """(picture, t, caption) -> the embeddings of both, (B, E) each, and the factor of their cosines.

    It is called as a network that denoises is, but t has no meaning.

    Args:
        clip: of transformers.
    """

    def __init__(self, clip: CLIPModel):
        super().__init__()
        self.clip = clip

    def forward(
        self,
        pictures: torch.Tensor,
        timesteps: torch.Tensor,
        input_ids: torch.Tensor,
        meaning: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pictures (B, 3, H, W) in [-1, 1] and tokens (B, length); `meaning` is for the loss alone."""
        if self.training:
            with torch.no_grad():  # a limit of the result would have no gradient, and be kept for ever
                self.clip.logit_scale.clamp_(max=_LARGEST_SCALE)
        images = self.clip.visual_projection(self.clip.vision_model(pixel_values=pictures).pooler_output)
        texts = self.clip.text_projection(self.clip.text_model(input_ids=input_ids).pooler_output)
        return images, texts, self.clip.logit_scale.exp()


class ContrastivePipeline(Denoising, DiffusionPipeline):
    """A CLIP that was trained here, whose embeddings of pictures and captions DALL·E 2 is made of.

    Its components are those of transformers: `CLIPModel.from_pretrained(folder, subfolder="clip")` and so on load them
    without this package.

    Args:
        clip: for pictures of one size.
        tokenizer: of captions.
        image_processor: of pictures of any size.
    """

    scheduler = None  # it takes no steps
    kind = "a CLIP"
    draws_pictures = False
    is_told_captions = True

    def __init__(self, clip: CLIPModel, tokenizer: CLIPTokenizer, image_processor: CLIPImageProcessorPil):
        super().__init__()
        self.register_modules(clip=clip, tokenizer=tokenizer, image_processor=image_processor)

    def check_parts(self) -> None:
        """Raises ValueError if the tokenizer is another model's."""
        text = self.clip.config.text_config
        if len(self.tokenizer) > text.vocab_size or self.tokenizer.eos_token_id != text.eos_token_id:
            raise ValueError(
                f"tokenizer must have at most {text.vocab_size} tokens, of which {text.eos_token_id} ends a caption, "
                f"as clip has, got {len(self.tokenizer)} and {self.tokenizer.eos_token_id}"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        config = self.clip.config.vision_config
        return config.num_channels, config.image_size, config.image_size

    @property
    def network(self) -> Contrastive:
        """The network as training calls it."""
        return Contrastive(self.clip)

    @property
    def conditions(self) -> Sequence[MatchedCaption]:
        """What the network is told: the caption."""
        return [MatchedCaption(tokenizer=self.tokenizer, length=self.tokenizer.model_max_length)]

    @property
    def parts(self) -> Clip:
        """The CLIP as it is used."""
        return Clip(self.clip, self.tokenizer, self.image_processor)
