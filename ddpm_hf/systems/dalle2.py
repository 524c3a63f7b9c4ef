"""DALL·E 2 (Ramesh et al. 2022, arXiv 2204.06125)."""

from .clip import CLIP_STAGE
from .prior import PRIOR_STAGE

STAGES = (CLIP_STAGE, PRIOR_STAGE)
