"""DALL·E 2 (Ramesh et al. 2022, arXiv 2204.06125): a CLIP, a prior over its embeddings of pictures, a decoder, and an
upsampler."""

from .clip import CLIP_STAGE
from .decoder import DECODER_STAGE
from .prior import PRIOR_STAGE
from .unclip_upsampler import UPSAMPLER_STAGE

STAGES = (CLIP_STAGE, PRIOR_STAGE, DECODER_STAGE, UPSAMPLER_STAGE)
