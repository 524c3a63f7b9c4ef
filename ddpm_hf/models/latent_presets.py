"""Presets of latent diffusion (Rombach et al. 2022, arXiv 2112.10752)."""

from collections.abc import Mapping
from typing import Any

from .autoencoder_presets import VAE_DIGITS, VAE_F8
from .preset import MINUTES_TRAINING, SMALL_MODEL, SMALL_PROCESS, SMALL_TRAINING, Preset

# Captions are hidden as often as for Stable Diffusion.
_TRAINING = {"condition_dropout": 0.1, "preview_guidance_scale": 3.0, "text_encoder": "train"}


def _measured_otherwise(training: Mapping[str, Any]) -> dict[str, Any]:
    """Without a metric: latents have no bits/dim, and what else can be measured depends on the data."""
    return {name: value for name, value in training.items() if name != "eval_metrics"}


LATENT_PRESETS = {
    # A small digit is three latents wide, so that its strokes need wide layers at the latents' own size. In bf16 on a
    # CPU a step of this network takes three fifths of the time of one with 48, 96 and 96 channels at three sizes.
    # After these steps 88 % of captions of unseen combinations were followed.
    "stable-diffusion-digits": Preset(
        description="captioned digits, 32x32 in latents of 8x8, 4.2 M parameters, minutes on two CPU cores",
        system="stable-diffusion",
        model={
            "resolution": 32,
            "channels": 3,
            "base_channels": 96,
            "channel_multipliers": (1, 1),
            "attention_resolutions": (4,),
            "blocks_per_level": 1,
            "dropout": 0.0,
            "text_width": 128,
            "text_layers": 2,
            "text_length": 16,
        },
        process=SMALL_PROCESS,
        training={
            **_measured_otherwise(MINUTES_TRAINING),
            **_TRAINING,
            "text_warmup_steps": 300,
            "text_rate": 0.01,
            "learning_rate": 2e-3,
            "train_batch_size": 32,
            "max_train_steps": 4000,
        },
        inpainting={"learning_rate": 1e-3, "max_train_steps": 1000},
        autoencoder=VAE_DIGITS,
    ),
    # Three fifths of the width of Stable Diffusion's network, and attention at all of its levels.
    "stable-diffusion-256": Preset(
        description="your own captioned images at 256x256, in latents of 32x32: 232 M parameters, on a GPU",
        system="stable-diffusion",
        model={
            **SMALL_MODEL,
            "resolution": 256,
            "base_channels": 192,
            "channel_multipliers": (1, 2, 4),
            "attention_resolutions": (32, 16, 8),
            "blocks_per_level": 2,
            "dropout": 0.0,
            "text_width": 512,
            "text_layers": 4,
            "text_length": 77,
        },
        process=SMALL_PROCESS,
        training={
            **_measured_otherwise(SMALL_TRAINING),
            **_TRAINING,
            "text_warmup_steps": 0,
            "text_rate": 0.1,
            "learning_rate": 1e-4,
            "max_train_steps": 100_000,
        },
        inpainting={"max_train_steps": 20_000},
        autoencoder=VAE_F8,
    ),
}
