"""Latent diffusion (Rombach et al. 2022, arXiv 2112.10752) in the form of Stable Diffusion."""

from .autoencoder import FOLDER, build_autoencoder, resolve_autoencoder
from .system import Stage

STAGES = (
    Stage(
        name="autoencoder",
        folder=FOLDER,
        start=lambda config: None,
        resolve=resolve_autoencoder,
        build=build_autoencoder,
    ),
)
