"""Presets: the networks of Ho et al. 2020 (arXiv 2006.11239), small ones of our own, and those of other systems.

The paper's numbers are from its appendix B and the authors' code (github.com/hojonathanho/diffusion,
`scripts/run_cifar.py`, `run_lsun.py`, `run_celebahq.py`). All presets of DDPMs are unconditional with T = 1000, so a
trained network runs in stock diffusers as `DDPMPipeline.from_pretrained(folder)()`.
"""

from .autoencoder_presets import VAE_DIGITS, VAE_F8
from .dalle2_presets import DALLE2_PRESETS
from .glide_presets import GLIDE_PRESETS
from .imagen_presets import IMAGEN_PRESETS
from .latent_presets import LATENT_PRESETS
from .preset import (
    MINUTES_TRAINING,
    PAPER_MODEL,
    PAPER_PROCESS,
    PAPER_TRAINING,
    SMALL_MODEL,
    SMALL_PROCESS,
    SMALL_TRAINING,
    Preset,
)

PRESETS: dict[str, Preset] = {
    "ddpm-cifar10": Preset(
        description="Ho et al. 2020 on CIFAR-10: 32x32, 35.7 M parameters, 800,000 steps of batch 128",
        model={**PAPER_MODEL, "resolution": 32, "channel_multipliers": (1, 2, 2, 2), "dropout": 0.1},
        process={**PAPER_PROCESS, "variance_type": "fixed_large"},
        training={**PAPER_TRAINING, "learning_rate": 2e-4, "train_batch_size": 128, "max_train_steps": 800_000},
    ),
    "ddpm-256": Preset(
        description="Ho et al. 2020 on CelebA-HQ and LSUN: 256x256, 114 M parameters, 500,000 steps of batch 64",
        model={**PAPER_MODEL, "resolution": 256, "channel_multipliers": (1, 1, 2, 2, 4, 4), "dropout": 0.0},
        process={**PAPER_PROCESS, "variance_type": "fixed_small"},
        # CelebA-HQ's steps. The paper's LSUN runs: 2.4 M (bedroom), 1.8 M (cat, without flips) and 1.2 M (church).
        training={**PAPER_TRAINING, "learning_rate": 2e-5, "train_batch_size": 64, "max_train_steps": 500_000},
    ),
    # Sized for two CPU cores: three levels down to 4x4, one block each, attention where it is nearly free, and more
    # width only at 4x4: at 8x8 it costs more than it gives. Batches of 64, because smaller ones leave a core waiting.
    # The small presets' process gives better digits than the paper's in such a short run.
    "digits": Preset(
        description="the demo: handwritten digits, 16x16 grey, 0.8 M parameters, minutes on two CPU cores",
        model={
            "resolution": 16,
            "channels": 1,
            "base_channels": 32,
            "channel_multipliers": (1, 1, 2),
            "attention_resolutions": (4,),
            "blocks_per_level": 1,
            "dropout": 0.0,
        },
        process=SMALL_PROCESS,
        training={
            **MINUTES_TRAINING,
            "learning_rate": 4e-3,
            "train_batch_size": 64,
            "max_train_steps": 1000,
        },
    ),
    # Half the paper's width and one level less, down to 8x8: a fifth of its parameters, for data sets of thousands of
    # images.
    "small-32": Preset(
        description="your own images at 32x32: 6.5 M parameters, 30,000 steps of batch 64",
        model={
            **SMALL_MODEL,
            "resolution": 32,
            "channel_multipliers": (1, 2, 2),
            "attention_resolutions": (16,),
            "blocks_per_level": 2,
        },
        process=SMALL_PROCESS,
        training={**SMALL_TRAINING, "max_train_steps": 30_000},
    ),
    # One level more for the doubled side, wider at the lower levels where width is cheap, and one block per level,
    # because the 64x64 level takes most of the time.
    "small-64": Preset(
        description="your own images at 64x64: 15.1 M parameters, 50,000 steps of batch 64",
        model={
            **SMALL_MODEL,
            "resolution": 64,
            "channel_multipliers": (1, 2, 3, 4),
            "attention_resolutions": (16, 8),
            "blocks_per_level": 1,
        },
        process=SMALL_PROCESS,
        training={**SMALL_TRAINING, "max_train_steps": 50_000},
    ),
    **GLIDE_PRESETS,
    **IMAGEN_PRESETS,
    **LATENT_PRESETS,
    **DALLE2_PRESETS,
    "vae-digits": VAE_DIGITS,
    "vae-f8": VAE_F8,
}


def get_preset(name: str) -> Preset:
    """The preset of this name; ValueError with the choices if there is none."""
    if name not in PRESETS:
        raise ValueError(f"The preset's `name` must be one of {', '.join(PRESETS)}, got {name!r}.")
    return PRESETS[name]
