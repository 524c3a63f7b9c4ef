"""Presets: the networks of Ho et al. 2020 (arXiv 2006.11239), and small ones of our own.

The paper's numbers are from its appendix B and the authors' code (github.com/hojonathanho/diffusion,
`scripts/run_cifar.py`, `run_lsun.py`, `run_celebahq.py`). All presets are unconditional with T = 1000, so a trained
network runs in stock diffusers as `DDPMPipeline.from_pretrained(folder)()`.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings of a network, its diffusion process and its training.

    Attributes:
        description: one line for a list of choices.
        system: that it is for.
        model: arguments of `ddpm_hf.models.unet.paper_config`, or of `new_autoencoder`.
        process: arguments of `LinearDDPMScheduler` and `DDPMScheduler`; an autoencoder has none.
        training: values of the training script's other flags, all that it leaves to presets, under diffusers' names
            where diffusers has the flag. Batch size and step counts are of optimizer steps over all processes.
        upsampler: of the network that enlarges its pictures; its resolution is that of the small ones.
        autoencoder: of the network whose latents it works on.
    """

    description: str
    system: str = "ddpm"
    model: dict[str, Any]
    process: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any]
    upsampler: "Preset | None" = None
    autoencoder: "Preset | None" = None


# Spacing is explicit, because diffusers' default, "leading", starts short chains below T - 1, where x_t is not pure
# noise.
_PROCESS = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "rescale_betas_zero_snr": False,
    "clip_sample": True,
    "timestep_spacing": "linspace",
}

# Plain Adam. The authors clip gradients on each replica before averaging; here the average is clipped.
_TRAINING = {
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "adam_weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "loss_weighting": "none",
    "condition_dropout": 0.1,
    "preview_guidance_scale": 1.0,
    "eval_metrics": ["nll"],
}

# Captions are hidden as often as in GLIDE (Nichol et al. 2021, arXiv 2112.10741, §4), and guided as in its figures.
_TEXT_TRAINING = {
    "condition_dropout": 0.2,
    "preview_guidance_scale": 3.0,
    "text_encoder": "train",
    "text_rate": 0.1,
}

# The upsampler is not guided, as in GLIDE's published code, and has the linear schedule (arXiv 2112.10741, §4).
_UPSAMPLER_TRAINING = {"condition_dropout": 0.2, "preview_guidance_scale": 1.0}

_PAPER_MODEL = {"channels": 3, "base_channels": 128, "attention_resolutions": (16,), "blocks_per_level": 2}

_PAPER_PROCESS = {**_PROCESS, "beta_schedule": "linear", "prediction_type": "epsilon"}

_PAPER_TRAINING = {
    **_TRAINING,
    "lr_scheduler": "constant_with_warmup",
    "lr_warmup_steps": 5000,
    "ema_decay": 0.9999,
    "ema_warmup": False,
    "timestep_sampling": "uniform",
    "random_flip": True,
}

# For a user's own images at 32 or 64 pixels. The paper's dropout, because small sets are soon memorized.
_SMALL_MODEL = {"channels": 3, "base_channels": 64, "dropout": 0.1}

# - The cosine schedule, because at these sizes the linear one spends many of its last steps near pure noise (Nichol &
#   Dhariwal 2021, arXiv 2102.09672, §3.2).
# - v-prediction (Salimans & Ho 2022, arXiv 2202.00512), because at large t an epsilon network's error is multiplied by
#   1/√ᾱ in x_0 and shows as a colour cast, worst on data of low variance; v has no such factor.
# - The small variance, because few-step ancestral sampling fails with the large one (Song et al. 2021,
#   arXiv 2010.02502, table 1: FID 41 against 367 at 10 steps on CIFAR-10).
_SMALL_PROCESS = {
    **_PROCESS,
    "beta_schedule": "squaredcos_cap_v2",
    "variance_type": "fixed_small",
    "prediction_type": "v_prediction",
}

# - Learning rate: 1e-3 at batch 512 (Karras et al. 2022, arXiv 2206.00364), scaled by the square root of the batch.
# - Cosine decay, because the run is short and a low final rate averages out gradient noise.
# - EMA over about the last 2,000 steps; the paper's 0.9999 averages 10,000, a third of such a run.
# - No flips: images may contain text, digits or logos.
_SMALL_TRAINING = {
    **_TRAINING,
    "learning_rate": 3.5e-4,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 500,
    "train_batch_size": 64,
    "ema_decay": 0.9995,
    "ema_warmup": True,
    "timestep_sampling": "stratified",
    "random_flip": False,
}

# For runs of minutes: adam_beta2 averages 20 squared gradients, because 1,000 are the whole run.
_MINUTES_TRAINING = {**_SMALL_TRAINING, "lr_warmup_steps": 100, "adam_beta2": 0.95, "ema_decay": 0.995}

# Of autoencoders. Rombach et al. 2022 (arXiv 2112.10752) train with L1, a perceptual term and a discriminator.
_AUTOENCODER_TRAINING = {
    **_TRAINING,
    "kl_weight": 1e-6,
    "ema_warmup": True,
    "random_flip": False,
    "eval_metrics": ["reconstruction"],
}

# A quarter of the height and width, and squared error: drafts with the absolute one drew nothing but the ground in as
# many steps. After 2,000 steps 90 % of the held-out pictures could be read, after 1,200 more 95 %.
_VAE_DIGITS = Preset(
    description="autoencoder of captioned digits, 32x32 to 8x8x4, 0.5 M parameters, minutes on two CPU cores",
    system="stable-diffusion",
    model={
        "resolution": 32,
        "channels": 3,
        "latent_channels": 4,
        "base_channels": 24,
        "channel_multipliers": (1, 2, 2),
        "blocks_per_level": 1,
    },
    training={
        **_AUTOENCODER_TRAINING,
        "rec_loss": "l2",
        "learning_rate": 2e-3,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 50,
        "adam_beta2": 0.95,
        "train_batch_size": 16,
        "max_train_steps": 4000,
        "ema_decay": 0.995,
    },
)

# f = 8, c = 4 of Rombach et al. 2022, which Stable Diffusion took over; learning rate as in their code, 4.5e-6 times
# the batch.
_VAE_F8 = Preset(
    description="autoencoder of Rombach et al. 2022 and Stable Diffusion, 256x256 to 32x32x4: 83.7 M parameters",
    system="stable-diffusion",
    model={
        "resolution": 256,
        "channels": 3,
        "latent_channels": 4,
        "base_channels": 128,
        "channel_multipliers": (1, 2, 4, 4),
        "blocks_per_level": 2,
    },
    training={
        **_AUTOENCODER_TRAINING,
        "rec_loss": "l1",
        "learning_rate": 5.4e-5,
        "lr_scheduler": "constant_with_warmup",
        "lr_warmup_steps": 1000,
        "train_batch_size": 12,
        "max_train_steps": 250_000,
        "ema_decay": 0.9999,
    },
)

PRESETS: dict[str, Preset] = {
    "ddpm-cifar10": Preset(
        description="Ho et al. 2020 on CIFAR-10: 32x32, 35.7 M parameters, 800,000 steps of batch 128",
        model={**_PAPER_MODEL, "resolution": 32, "channel_multipliers": (1, 2, 2, 2), "dropout": 0.1},
        process={**_PAPER_PROCESS, "variance_type": "fixed_large"},
        training={**_PAPER_TRAINING, "learning_rate": 2e-4, "train_batch_size": 128, "max_train_steps": 800_000},
    ),
    "ddpm-256": Preset(
        description="Ho et al. 2020 on CelebA-HQ and LSUN: 256x256, 114 M parameters, 500,000 steps of batch 64",
        model={**_PAPER_MODEL, "resolution": 256, "channel_multipliers": (1, 1, 2, 2, 4, 4), "dropout": 0.0},
        process={**_PAPER_PROCESS, "variance_type": "fixed_small"},
        # CelebA-HQ's steps. The paper's LSUN runs: 2.4 M (bedroom), 1.8 M (cat, without flips) and 1.2 M (church).
        training={**_PAPER_TRAINING, "learning_rate": 2e-5, "train_batch_size": 64, "max_train_steps": 500_000},
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
        process=_SMALL_PROCESS,
        training={
            **_MINUTES_TRAINING,
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
            **_SMALL_MODEL,
            "resolution": 32,
            "channel_multipliers": (1, 2, 2),
            "attention_resolutions": (16,),
            "blocks_per_level": 2,
        },
        process=_SMALL_PROCESS,
        training={**_SMALL_TRAINING, "max_train_steps": 30_000},
    ),
    # One level more for the doubled side, wider at the lower levels where width is cheap, and one block per level,
    # because the 64x64 level takes most of the time.
    "small-64": Preset(
        description="your own images at 64x64: 15.1 M parameters, 50,000 steps of batch 64",
        model={
            **_SMALL_MODEL,
            "resolution": 64,
            "channel_multipliers": (1, 2, 3, 4),
            "attention_resolutions": (16, 8),
            "blocks_per_level": 1,
        },
        process=_SMALL_PROCESS,
        training={**_SMALL_TRAINING, "max_train_steps": 50_000},
    ),
    "glide-digits": Preset(
        description="captioned digits, 16x16, 1.7 M parameters, minutes on two CPU cores",
        system="glide",
        model={
            "resolution": 16,
            "channels": 3,
            "base_channels": 32,
            "channel_multipliers": (1, 1, 2),
            "attention_resolutions": (8, 4),
            "blocks_per_level": 1,
            "dropout": 0.0,
            "text_width": 128,
            "text_layers": 2,
        },
        process=_SMALL_PROCESS,
        training={
            **_MINUTES_TRAINING,
            **_TEXT_TRAINING,
            "learning_rate": 2e-3,
            "train_batch_size": 32,
            "max_train_steps": 2500,
        },
        upsampler=Preset(
            description="16x16 to 32x32",
            system="glide",
            model={
                "resolution": 16,
                "upsampling": 2,
                "channels": 3,
                "base_channels": 32,
                "channel_multipliers": (1, 1, 2),
                "attention_resolutions": (8,),
                "blocks_per_level": 1,
                "dropout": 0.0,
            },
            process={**_SMALL_PROCESS, "beta_schedule": "linear"},
            training={
                **_MINUTES_TRAINING,
                **_UPSAMPLER_TRAINING,
                "learning_rate": 2e-3,
                "train_batch_size": 32,
                "max_train_steps": 300,
            },
        ),
    ),
    "glide-64": Preset(
        description="your own captioned images at 64x64: 115 M parameters, 50,000 steps of batch 64 on a GPU",
        system="glide",
        model={
            **_SMALL_MODEL,
            "resolution": 64,
            "base_channels": 128,
            "channel_multipliers": (1, 2, 3, 4),
            "attention_resolutions": (32, 16, 8),
            "blocks_per_level": 2,
            "text_width": 256,
            "text_layers": 4,
        },
        process=_SMALL_PROCESS,
        training={**_SMALL_TRAINING, **_TEXT_TRAINING, "max_train_steps": 50_000},
        # Half the base's width, and attention only where it is nearly free: the small picture says most.
        upsampler=Preset(
            description="64x64 to 256x256",
            system="glide",
            model={
                **_SMALL_MODEL,
                "resolution": 64,
                "upsampling": 4,
                "channel_multipliers": (1, 1, 2, 3, 4),
                "attention_resolutions": (16,),
                "blocks_per_level": 1,
            },
            process={**_SMALL_PROCESS, "beta_schedule": "linear"},
            training={**_SMALL_TRAINING, **_UPSAMPLER_TRAINING, "train_batch_size": 32, "max_train_steps": 50_000},
        ),
    ),
    "vae-digits": _VAE_DIGITS,
    "vae-f8": _VAE_F8,
}


def get_preset(name: str) -> Preset:
    """The preset of this name; ValueError with the choices if there is none."""
    if name not in PRESETS:
        raise ValueError(f"The preset's `name` must be one of {', '.join(PRESETS)}, got {name!r}.")
    return PRESETS[name]
