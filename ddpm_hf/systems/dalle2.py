"""DALL·E 2 (Ramesh et al. 2022, arXiv 2204.06125)."""

from ..portable import PRIOR_FOLDER
from .clip import CLIP_STAGE
from .decoder import DECODER_STAGE
from .prior import build_prior, resolve_prior
from .system import Stage

PRIOR_STAGE = Stage(
    name="prior",
    folder=PRIOR_FOLDER,
    by_default=lambda config: config.model.init_from is None,
    captioned=lambda config: True,
    start=lambda config: None,
    resolve=resolve_prior,
    build=build_prior,
)

STAGES = (CLIP_STAGE, PRIOR_STAGE, DECODER_STAGE)
