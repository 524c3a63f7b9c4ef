"""Presets of DALL·E 2 (Ramesh et al. 2022, arXiv 2204.06125)."""

from .glide_presets import GLIDE_PRESETS
from .preset import MINUTES_TRAINING, SMALL_MODEL, SMALL_PROCESS, SMALL_TRAINING, Preset

_CLIP_TRAINING = {"eval_metrics": ["retrieval"], "random_flip": False}

# A prior takes the states of the part that reads as they are, so that its width is that of the embedding.
_CLIP_DIGITS = Preset(
    description="CLIP of captioned digits, 16x16, 0.4 M parameters, minutes on two CPU cores",
    system="dalle2",
    model={
        "resolution": 16,
        "channels": 3,
        "patch_size": 4,
        "clip_width": 64,
        "clip_layers": 4,
        "text_width": 64,
        "text_layers": 2,
        "text_length": 12,
        "embedding_width": 64,
    },
    training={
        **MINUTES_TRAINING,
        **_CLIP_TRAINING,
        "learning_rate": 2e-3,
        "train_batch_size": 256,
        "max_train_steps": 1400,
    },
)

# ViT-B of Radford et al. 2021 with their settings of Adam (tables 18 and 19), for smaller pictures and batches. Here
# gains and biases decay too.
_CLIP_64 = Preset(
    description="CLIP, 64x64, 128 M parameters, on GPUs",
    system="dalle2",
    model={
        "resolution": 64,
        "channels": 3,
        "patch_size": 8,
        "clip_width": 768,
        "clip_layers": 12,
        "text_width": 512,
        "text_layers": 12,
        "text_length": 77,
        "embedding_width": 512,
    },
    training={
        **SMALL_TRAINING,
        **_CLIP_TRAINING,
        "learning_rate": 5e-4,
        "lr_warmup_steps": 2000,
        "adam_beta2": 0.98,
        "adam_epsilon": 1e-6,
        "adam_weight_decay": 0.2,
        "train_batch_size": 1024,
        "max_train_steps": 50_000,
        "ema_decay": 0.9999,
    },
)

# Captions are hidden as often as in the paper (§2.2), whose prior has the cosine schedule and predicts x_0 too.
_PRIOR_PROCESS = {**SMALL_PROCESS, "prediction_type": "sample"}
_PRIOR_TRAINING = {"eval_metrics": ["prior"], "condition_dropout": 0.1, "preview_guidance_scale": 2.0}

_PRIOR_DIGITS = Preset(
    description="prior of captioned digits, 0.5 M parameters, minutes on two CPU cores",
    system="dalle2",
    model={"resolution": 16, "channels": 3, "prior_width": 96, "prior_layers": 4, "dropout": 0.0},
    process=_PRIOR_PROCESS,
    training={
        **MINUTES_TRAINING,
        **_PRIOR_TRAINING,
        "learning_rate": 1e-3,
        "train_batch_size": 256,
        "max_train_steps": 900,
    },
)

# Half the paper's width and layers (table 3), so an eighth of its parameters.
_PRIOR_64 = Preset(
    description="prior, 155 M parameters, on GPUs",
    system="dalle2",
    model={"resolution": 64, "channels": 3, "prior_width": 1024, "prior_layers": 12, "dropout": 0.0},
    process=_PRIOR_PROCESS,
    training={
        **SMALL_TRAINING,
        **_PRIOR_TRAINING,
        "learning_rate": 1.1e-4,
        "adam_beta2": 0.96,
        "adam_epsilon": 1e-6,
        "adam_weight_decay": 6e-2,
        "train_batch_size": 512,
        "max_train_steps": 100_000,
    },
)

# z is hidden as often as in the paper (§2.1).
_DECODER_TRAINING = {"condition_dropout": 0.1, "preview_guidance_scale": 3.0}

DALLE2_PRESETS = {
    # The network of glide-digits, told another thing.
    "dalle2-digits": Preset(
        description="captioned digits, 16x16, decoder of 1.6 M parameters, minutes on two CPU cores",
        system="dalle2",
        model={
            "resolution": 16,
            "channels": 3,
            "base_channels": 32,
            "channel_multipliers": (1, 2, 2),
            "attention_resolutions": (8, 4),
            "blocks_per_level": 1,
            "dropout": 0.0,
        },
        process=SMALL_PROCESS,
        training={
            **MINUTES_TRAINING,
            **_DECODER_TRAINING,
            "learning_rate": 2e-3,
            "train_batch_size": 32,
            "max_train_steps": 2400,
        },
        clip=_CLIP_DIGITS,
        prior=_PRIOR_DIGITS,
        upsampler=Preset(
            description="16x16 to 32x32",
            system="dalle2",
            model={**GLIDE_PRESETS["glide-digits"].upsampler.model, "attention_resolutions": ()},
            process=SMALL_PROCESS,
            training={
                **MINUTES_TRAINING,
                "learning_rate": 2e-3,
                "train_batch_size": 32,
                "max_train_steps": 300,
            },
        ),
    ),
    # Less than a third of the paper's width (table 3), 512 channels, with its levels, blocks and attention.
    "dalle2-64-256": Preset(
        description="your own captioned images at 64x64: decoder of 229 M parameters, 50,000 steps on a GPU",
        system="dalle2",
        model={
            **SMALL_MODEL,
            "resolution": 64,
            "base_channels": 160,
            "channel_multipliers": (1, 2, 3, 4),
            "attention_resolutions": (32, 16, 8),
            "blocks_per_level": 3,
        },
        process=SMALL_PROCESS,
        training={**SMALL_TRAINING, **_DECODER_TRAINING, "max_train_steps": 50_000},
        clip=_CLIP_64,
        prior=_PRIOR_64,
        # Likewise less than a third of the paper's 320 channels.
        upsampler=Preset(
            description="64x64 to 256x256",
            system="dalle2",
            model={
                **SMALL_MODEL,
                "resolution": 64,
                "upsampling": 4,
                "base_channels": 96,
                "channel_multipliers": (1, 2, 3, 4),
                "attention_resolutions": (),
                "blocks_per_level": 3,
            },
            process=SMALL_PROCESS,
            training={**SMALL_TRAINING, "train_batch_size": 32, "max_train_steps": 50_000},
        ),
    ),
    "clip-digits": _CLIP_DIGITS,
    "clip-64": _CLIP_64,
}
