"""Presets of Imagen (Saharia et al. 2022, arXiv 2205.11487)."""

from .glide_presets import GLIDE_PRESETS
from .preset import MINUTES_TRAINING, SMALL_MODEL, SMALL_PROCESS, SMALL_TRAINING, Preset

# Captions are hidden as often as in the paper (§3.1), whose base has the cosine schedule too.
_TEXT_TRAINING = {"condition_dropout": 0.1, "preview_guidance_scale": 3.0}

# As in GLIDE, super-resolution has the linear schedule, and is not guided.
_SUPER_PROCESS = {**SMALL_PROCESS, "beta_schedule": "linear"}
_SUPER_TRAINING = {"condition_dropout": 0.1, "preview_guidance_scale": 1.0}

_DIGITS = GLIDE_PRESETS["glide-digits"]

IMAGEN_PRESETS = {
    # The networks of glide-digits. No dynamic thresholding: these pictures are flat, with much of them at an end of
    # the range, so that a large percentile also moves the colours that were right. After 1,200 steps, of 200 pictures
    # at guidance 3, by dpm-sde in 20 steps, 97.5 % were as captioned; clipped, 94.5; with the paper's percentile,
    # 77.5; with 0.95 and a cap of 1.5, as in DeepFloyd IF, 92.5.
    "imagen-digits": Preset(
        description="captioned digits, 16x16, 1.5 M parameters and a text encoder of 0.6 M, minutes on two CPU cores",
        system="imagen",
        model=_DIGITS.model,
        process=SMALL_PROCESS,
        training={
            **MINUTES_TRAINING,
            **_TEXT_TRAINING,
            "text_encoder": "taught",
            "text_warmup_steps": 300,
            "text_rate": 0.01,
            "learning_rate": 2e-3,
            "train_batch_size": 32,
            "max_train_steps": 1400,
        },
        upsampler=Preset(
            description="16x16 to 32x32",
            system="imagen",
            model=_DIGITS.upsampler.model,
            process=_SUPER_PROCESS,
            training={
                **MINUTES_TRAINING,
                **_SUPER_TRAINING,
                "learning_rate": 2e-3,
                "train_batch_size": 32,
                "max_train_steps": 500,
            },
        ),
    ),
    # Smaller than the 300 M base of the paper's ablations (§4.4), and half the width of the Efficient U-Net of its
    # super-resolution (appendix F.1), which has attention at the lowest level alone.
    "imagen-64-256": Preset(
        description="your own captioned images at 64x64: 221 M parameters, 50,000 steps of batch 64 on a GPU",
        system="imagen",
        model={
            **SMALL_MODEL,
            "resolution": 64,
            "base_channels": 160,
            "channel_multipliers": (1, 2, 3, 4),
            "attention_resolutions": (32, 16, 8),
            "blocks_per_level": 3,
            "text_width": 256,
            "text_layers": 4,
        },
        process={
            **SMALL_PROCESS,
            **{"thresholding": True, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 100.0},  # §2.3, no cap
        },
        training={
            **SMALL_TRAINING,
            **_TEXT_TRAINING,
            "text_encoder": "google/t5-v1_1-base",
            "text_warmup_steps": 1000,
            "text_rate": 0.1,
            "max_train_steps": 50_000,
        },
        upsampler=Preset(
            description="64x64 to 256x256",
            system="imagen",
            model={
                **SMALL_MODEL,
                "resolution": 64,
                "upsampling": 4,
                "channel_multipliers": (1, 2, 4, 8),
                "attention_resolutions": (32,),
                "blocks_per_level": 2,
                "efficient_unet": True,
            },
            process=_SUPER_PROCESS,
            training={**SMALL_TRAINING, **_SUPER_TRAINING, "train_batch_size": 32, "max_train_steps": 50_000},
        ),
    ),
}
