"""Which settings a run may have: ranges, and what excludes what."""

import math
from typing import Any

from ..data.transforms import parse_resolution
from ..evaluation.quality import QUALITY_METRICS
from ..steps.sampler import OF_THRESHOLDING

MAX_SIDE = 8192  # anything larger is a typing error

# (lowest value, whether that value itself is allowed, highest value, flags)
_RANGES = (
    (0, True, None, "dataloader_num_workers holdout lr_warmup_steps adam_weight_decay seed preview_steps kl_weight"),
    (0, True, None, "text_warmup_steps noise_offset"),
    (1, True, None, "shuffle_buffer base_channels max_train_steps max_bad_steps num_epochs logging_steps eval_steps"),
    (1, True, None, "gradient_accumulation_steps lr_num_cycles preview_images preview_inference_steps"),
    (1, True, None, "checkpointing_steps checkpoints_total_limit save_images_epochs save_model_epochs"),
    (1, True, None, "eval_inference_steps latent_channels clip_skip lora_rank patch_size embedding_width"),
    (0, True, None, "adversarial_start adversarial_weight"),
    (2, True, None, "eval_num_images upsampling"),
    (0, True, 1, "dropout condition_dropout adam_beta1 adam_beta2 ema_decay"),
    (0, False, 1, "beta_start beta_end ema_power"),
    (0, False, None, "learning_rate text_rate adam_epsilon max_grad_norm ema_inv_gamma snr_gamma"),
    (1, True, 100, "blocks_per_level text_layers clip_layers prior_layers"),
    (2, True, 512, "text_length"),
    (64, True, None, "text_width"),
    (32, True, None, "clip_width prior_width"),
    (0, False, 1, "dynamic_thresholding_ratio"),
    (1, True, None, "sample_max_value"),
    (1, True, 1_000_000, "num_train_timesteps train_batch_size"),
)
_EXCLUSIVE = (
    ("dataset_name", "train_data_dir"),
    ("max_train_steps", "num_epochs"),
    ("preview_steps", "save_images_epochs"),
    ("preset", "init_from"),
    ("preset", "model_config_name_or_path"),
    ("init_from", "model_config_name_or_path"),
    ("init_from", "vae"),
    ("init_from", "clip_model"),
)
OF_TAUGHT_ENCODER = ("text_width", "text_layers", "text_warmup_steps")
OF_LEARNED_ENCODER = (*OF_TAUGHT_ENCODER, "text_rate")
OF_JUDGED_AUTOENCODER = ("perceptual", "adversarial_start", "adversarial_weight")
# Flags that only some systems have.
_OF_SYSTEMS = {
    # Compiling is by block, and diffusers names none in GLIDE's U-Net.
    ("ddpm",): ("class_conditional", "model_config_name_or_path", "compile"),
    ("glide", "imagen"): ("efficient_unet",),
    ("glide", "imagen", "dalle2"): ("upsampling",),
    ("ddpm", "glide", "imagen"): ("thresholding", *OF_THRESHOLDING),  # latents have no range
    ("stable-diffusion",): (
        *("vae", "latent_channels", "rec_loss", "kl_weight", *OF_JUDGED_AUTOENCODER),
        *("noise_offset", "clip_skip", "lora_rank"),
    ),
    ("stable-diffusion", "dalle2"): ("text_length",),
    ("dalle2",): (
        *("clip_model", "clip_width", "clip_layers", "patch_size", "embedding_width", "prior_width", "prior_layers"),
    ),
    ("glide", "imagen", "stable-diffusion"): ("text_encoder", "text_warmup_steps", "text_rate"),
    ("glide", "imagen", "stable-diffusion", "dalle2"): (
        *("caption_column", "init_caption_from_labels", "stage", "validation_prompts", "text_width", "text_layers"),
    ),
}
# The stages that `--init_from` is for.
_TUNED = {"glide": ("base", "inpainting"), "imagen": ("base",), "dalle2": ("decoder",)}


def check(flags: dict[str, Any]) -> None:
    """Raises ValueError for a value out of range or flags that exclude each other."""
    for low, low_allowed, high, names in _RANGES:
        for name in names.split():
            _check_range(name, flags[name], low, low_allowed, high)
    for first, second in _EXCLUSIVE:
        if flags[first] is not None and flags[second] is not None:
            raise ValueError(f"--{first} {flags[first]} excludes --{second} {flags[second]}: give one of them")
    for systems, names in _OF_SYSTEMS.items():
        for name in names:
            if flags[name] and flags["system"] not in systems:
                raise ValueError(
                    f"--{name} is for --system {' or '.join(systems)}, got --system {flags['system']}; leave it out"
                )
    if not flags["cache_latents"] and flags["system"] not in ("stable-diffusion", "dalle2"):
        raise ValueError(
            "--no_cache_latents is for --system stable-diffusion or dalle2, got --system "
            f"{flags['system']}; leave it out"
        )
    stages = _TUNED.get(flags["system"], ("unet", "inpainting"))
    if flags["init_from"] and flags["stage"] not in (None, *([name] for name in stages)):
        raise ValueError(
            f"--init_from is for --stage {' or --stage '.join(stages)} alone, got {' '.join(flags['stage'])}; leave "
            "out --init_from or the other stages"
        )
    if flags["system"] != "ddpm" and flags["condition_dropout"] == 0:
        raise ValueError(
            f"--condition_dropout must be above 0 for --system {flags['system']}, got 0: pipelines guide by the "
            "empty caption, and nothing would train it"
        )
    if flags["gradient_checkpointing"] and flags["system"] == "dalle2" and not flags["init_from"]:
        if not {*(flags["stage"] or ["clip"])} <= {"decoder", "upsampler"}:
            raise ValueError(
                "--gradient_checkpointing is for --stage decoder or upsampler of dalle2; train CLIP and prior without"
            )
    if flags["init_caption_from_labels"] == "" and flags["dataset_name"] is flags["train_data_dir"] is None:
        raise ValueError("--init_caption_from_labels needs a template, or --train_data_dir or --dataset_name")
    if flags["stage"] in (["upsampler"], ["super-resolution"]) and not flags["thresholding"]:
        for name in OF_THRESHOLDING:  # which have no preset's thresholding here, as a base has
            if flags[name] is not None:
                raise ValueError(f"--{name} needs --thresholding: add it, or leave out --{name}")
    check_text_encoder(flags)
    if flags["snr_gamma"] and flags["loss_weighting"] not in (None, "min_snr"):
        raise ValueError(f"--snr_gamma is for --loss_weighting min_snr, got {flags['loss_weighting']}; leave one out")
    for name in ("text_width", "clip_width", "prior_width"):
        if (flags[name] or 0) % 32:
            raise ValueError(f"--{name} must be a multiple of 32, got {flags[name]}")
    if flags["max_train_time"] is not None:
        parse_duration(flags["max_train_time"])
    for name in ("hub_model_id", "hub_private_repo", "hub_token_file"):
        if flags[name] and not flags["push_to_hub"]:
            raise ValueError(f"--{name} needs --push_to_hub: add it, or leave out --{name}")
    if flags["save_best_by"] is not None and flags["eval_steps"] is None:
        raise ValueError(f"--save_best_by {flags['save_best_by']} needs --eval_steps")
    choices = ("nll", *QUALITY_METRICS, "prompt", "clip", "reconstruction", "retrieval", "prior")
    unknown = sorted(set(flags["eval_metrics"] or ()) - set(choices))
    if unknown or flags["eval_metrics"] == []:
        raise ValueError(f"--eval_metrics must be among {', '.join(choices)}, got {', '.join(unknown) or 'none'}")
    largest = max(parse_resolution(flags["resolution"] or 1)) * (flags["upsampling"] or 1)
    if largest > MAX_SIDE:
        times = f" times --upsampling {flags['upsampling']}" if flags["upsampling"] else ""
        raise ValueError(f"--resolution must be at most {MAX_SIDE} pixels a side, got {flags['resolution']}{times}")
    if flags["channels"] not in (None, 1, 3, 4):
        raise ValueError(f"--channels must be 1 (grey), 3 (RGB) or 4 (RGBA), got {flags['channels']}")


def check_text_encoder(flags: dict[str, Any]) -> None:
    """Raises ValueError for an encoder that cannot be had, or settings that it does not have."""
    encoder, start = flags["text_encoder"], flags["init_from"]
    if flags["lora_rank"] and start is None:
        raise ValueError("--lora_rank needs --init_from, the model to adapt")
    if flags["lora_rank"] and encoder == "train":
        raise ValueError("--text_encoder must be frozen with --lora_rank, which trains adapters alone, got train")
    if encoder in (None, "train"):
        if flags["clip_skip"] and (encoder == "train" or start is None):
            raise ValueError("--clip_skip needs a CLIP that is kept as it is: name it with --text_encoder")
        return
    for name in not_of_encoder(encoder):
        if flags[name] is not None:
            raise ValueError(f"--{name} is for --text_encoder train, got --text_encoder {encoder}; leave it out")
    if encoder == "frozen" and flags["stage"] == ["inpainting"]:
        return
    if (encoder == "frozen") != (start is not None):
        alone, given = "train, taught or a folder or Hub name", f"train or frozen with --init_from {start}"
        choices = alone if start is None else given
        raise ValueError(f"--text_encoder must be {choices}, got {encoder}")


def not_of_encoder(encoder: str | None) -> tuple[str, ...]:
    """Settings that a text encoder does not have: `--text_encoder`, by default one that is learned."""
    if encoder in (None, "train"):
        return ()
    return ("text_rate",) if encoder == "taught" else OF_LEARNED_ENCODER


def _check_range(name: str, value: float | None, low: float, low_allowed: bool, high: float | None) -> None:
    if value is None or (value == math.inf and name == "max_grad_norm"):  # an infinite norm: no clipping
        return
    if not (low <= value if low_allowed else low < value) or value == math.inf or (high is not None and value > high):
        bounds = f"{'at least' if low_allowed else 'above'} {low}" + (f" and at most {high}" if high else "")
        raise ValueError(f"--{name} must be {bounds}, got {value}")


def parse_duration(text: str) -> float:
    """Seconds of "90", "45:00" or "12:00:00" (hours, minutes, seconds).

    Raises:
        ValueError: for anything else.
    """
    parts = text.split(":")
    if not 1 <= len(parts) <= 3 or not all(part.isdecimal() for part in parts) or not any(map(int, parts)):
        raise ValueError(f"--max_train_time must be seconds, M:SS or H:MM:SS, got {text!r}")
    return float(sum(60**place * int(part) for place, part in enumerate(reversed(parts))))
