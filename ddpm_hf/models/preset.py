"""What a preset is, and the settings that several of them share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings of a network, its diffusion process and its training.

    Attributes:
        description: one line for a list of choices.
        system: that it is for.
        model: arguments of `ddpm_hf.models.unet.paper_config`, or of `new_autoencoder`; of a CLIP, flags of train.py.
        process: arguments of `LinearDDPMScheduler` and `DDPMScheduler`; an autoencoder and a CLIP have none.
        training: values of the training script's other flags, all that it leaves to presets, under diffusers' names
            where diffusers has the flag. Batch size and step counts are of optimizer steps over all processes.
        autoencoder: of the one that makes the latents on which it works.
        clip: of the one by whose embeddings it draws.
        prior: of what draws those of captions.
        upsampler: of the network that enlarges its pictures; its resolution is that of the small ones.
        inpainting: values of `training` that are others when it is fine-tuned for inpainting.
    """

    description: str
    system: str = "ddpm"
    model: dict[str, Any]
    process: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any]
    autoencoder: "Preset | None" = None
    clip: "Preset | None" = None
    prior: "Preset | None" = None
    upsampler: "Preset | None" = None
    inpainting: Mapping[str, Any] = field(default_factory=dict)


# Spacing is explicit, because diffusers' default, "leading", starts short chains below T - 1, where x_t is not pure
# noise.
PROCESS = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "rescale_betas_zero_snr": False,
    "clip_sample": True,
    "timestep_spacing": "linspace",
}

# Plain Adam. The authors clip gradients on each replica before averaging; here the average is clipped.
TRAINING = {
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

PAPER_MODEL = {"channels": 3, "base_channels": 128, "attention_resolutions": (16,), "blocks_per_level": 2}

PAPER_PROCESS = {**PROCESS, "beta_schedule": "linear", "prediction_type": "epsilon"}

PAPER_TRAINING = {
    **TRAINING,
    "lr_scheduler": "constant_with_warmup",
    "lr_warmup_steps": 5000,
    "ema_decay": 0.9999,
    "ema_warmup": False,
    "timestep_sampling": "uniform",
    "random_flip": True,
}

# For a user's own images at 32 or 64 pixels. The paper's dropout, because small sets are soon memorized.
SMALL_MODEL = {"channels": 3, "base_channels": 64, "dropout": 0.1}

# - The cosine schedule, because at these sizes the linear one spends many of its last steps near pure noise (Nichol &
#   Dhariwal 2021, arXiv 2102.09672, §3.2).
# - v-prediction (Salimans & Ho 2022, arXiv 2202.00512), because at large t an epsilon network's error is multiplied by
#   1/√ᾱ in x_0 and shows as a colour cast, worst on data of low variance; v has no such factor.
# - The small variance, because few-step ancestral sampling fails with the large one (Song et al. 2021,
#   arXiv 2010.02502, table 1: FID 41 against 367 at 10 steps on CIFAR-10).
SMALL_PROCESS = {
    **PROCESS,
    "beta_schedule": "squaredcos_cap_v2",
    "variance_type": "fixed_small",
    "prediction_type": "v_prediction",
}

# - Learning rate: 1e-3 at batch 512 (Karras et al. 2022, arXiv 2206.00364), scaled by the square root of the batch.
# - Cosine decay, because the run is short and a low final rate averages out gradient noise.
# - EMA over about the last 2,000 steps; the paper's 0.9999 averages 10,000, a third of such a run.
# - No flips: images may contain text, digits or logos.
SMALL_TRAINING = {
    **TRAINING,
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
MINUTES_TRAINING = {**SMALL_TRAINING, "lr_warmup_steps": 100, "adam_beta2": 0.95, "ema_decay": 0.995}
