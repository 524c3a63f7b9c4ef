"""Every setting not given: from `--init_from` or a network's configuration, else from a preset."""

from typing import Any

from ..data.captioned_digits import level_for
from ..data.transforms import parse_resolution
from ..diffusion.noise_schedules import scaled_ends
from ..diffusion.process import LEARNED_VARIANCES
from ..models.preset import Preset
from ..models.presets import get_preset
from ..models.unet import DDPMUNet2D, default_depth
from ..pipelines.ddpm import DDPMPipeline
from ..steps.sampler import OF_THRESHOLDING
from .checks import OF_TAUGHT_ENCODER, not_of_encoder
from .config import Config

ARCHITECTURE_FLAGS = ("base_channels", "channel_multipliers", "attention_resolutions", "blocks_per_level")
FIXED_BY_START = (*ARCHITECTURE_FLAGS, "efficient_unet", *OF_TAUGHT_ENCODER, "text_length")
PROCESS_FLAGS = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end")
PROCESS_FLAGS += ("prediction_type", "variance_type", "rescale_betas_zero_snr")
# The presets of a system: for the bundled images, and for those of a user.
_PRESETS_OF = {
    "glide": ("glide-digits", "glide-64"),
    "imagen": ("imagen-digits", "imagen-64-256"),
    "stable-diffusion": ("stable-diffusion-digits", "stable-diffusion-256"),
    "dalle2": ("dalle2-digits", "dalle2-64-256"),
}


def resolve(config: Config, start: DDPMPipeline | None) -> Config:
    """The settings with every one filled in, except the number of channels, which only the images tell.

    Args:
        start: the pipeline whose weights training starts from.

    Raises:
        ValueError: if given settings contradict each other or what training starts from, naming the argument.
    """
    unet_config = given_unet_config(config, start)
    return filled(config, choose_preset(config, unet_config), unet_config, start)


def filled(
    config: Config, preset: Preset, unet_config: dict[str, Any] | None = None, start: DDPMPipeline | None = None
) -> Config:
    """As `resolve`, from this preset, which may be that of an upsampler."""
    check_architecture(config, preset)
    config = _with_network(config, preset, unet_config, start)
    process, wanted = dict(preset.process), config.process.num_train_timesteps
    if config.process.thresholding is False or start is not None:  # a model to start from has its own
        left_out = OF_THRESHOLDING if start is None else ("thresholding", *OF_THRESHOLDING)
        process = {name: value for name, value in process.items() if name not in left_out}
    if wanted not in (None, process["num_train_timesteps"]):
        ends = {name: process[name] for name in ("beta_start", "beta_end")}
        process |= scaled_ends(wanted, config.process.beta_schedule or process["beta_schedule"], **ends)
    config = config.filled(process)
    learned = config.process.variance_type in LEARNED_VARIANCES
    training = {"loss": "hybrid" if learned else "simple", **preset.training}
    if start is not None:
        training.pop("text_warmup_steps", None)  # its encoder has learned the captions' wordings, or others
    if config.optimization.num_epochs is not None:
        del training["max_train_steps"]
    if config.optimization.snr_gamma is not None:
        training["loss_weighting"] = "min_snr"
    config = config.filled(training)
    return config.with_values(dict.fromkeys(not_of_encoder(config.model.text_encoder)))


def with_level(config: Config) -> Config:
    """Of captioned digits, with the level that pictures of this size can show, if none was chosen."""
    if not config.data.is_bundled:
        return config
    return config.filled({"dataset_config_name": level_for(parse_resolution(config.data.resolution))})


def check_start(start: DDPMPipeline | None, pipeline_class: type, system: str) -> None:
    """Raises ValueError for a pipeline of another system."""
    if start is not None and not isinstance(start, pipeline_class):
        raise ValueError(f"--init_from must be a model of --system {system}, got a {type(start).__name__}")


def given_unet_config(config: Config, start: DDPMPipeline | None) -> dict[str, Any] | None:
    """The network's configuration, if `--init_from` or `--model_config_name_or_path` gives it."""
    if start is not None:
        return dict(start.unet.config)
    name = config.model.model_config_name_or_path
    if name is None:
        return None
    try:
        return DDPMUNet2D.load_config(name)
    except OSError:
        raise ValueError(
            f"--model_config_name_or_path must be a folder or repository with a U-Net's config.json, got {name}"
        ) from None


def choose_preset(config: Config, unet_config: dict[str, Any] | None = None) -> Preset:
    """The preset given, or the one that suits the data; it supplies every setting not given."""
    system = config.model.system
    if config.model.preset is not None:
        preset = get_preset(config.model.preset)
        if preset.system != system:
            raise ValueError(f"--preset {config.model.preset} is for --system {preset.system}, got {system}")
        return preset
    if system in _PRESETS_OF:
        return get_preset(_PRESETS_OF[system][0 if config.data.is_bundled else 1])
    if unet_config is None and config.data.is_bundled:
        return get_preset("digits")
    resolution = config.data.resolution or (unet_config or {}).get("sample_size") or 64
    return get_preset("small-32" if min(parse_resolution(resolution)) <= 40 else "small-64")


def check_architecture(config: Config, preset: Preset) -> None:
    """Raises ValueError for flags that give the network of a preset that was asked for another shape."""
    for name in (*ARCHITECTURE_FLAGS, "efficient_unet", "latent_channels"):
        given, fixed = getattr(config.model, name), plain(preset.model.get(name))
        if config.model.preset is not None and None not in (given, fixed) and given != fixed:
            raise ValueError(
                f"--{name} {given} contradicts --preset {config.model.preset}, which has {fixed}; leave one out"
            )


def filled_from(config: Config, preset: Preset) -> Config:
    """The settings with those of a preset filled in as they are, whatever the size of the images."""
    values = {name: plain(value) for name, value in (preset.model | preset.training).items()}
    values["resolution"] = resolution_text(preset.model["resolution"])
    if not config.data.is_bundled:
        del values["channels"]
    if config.optimization.num_epochs is not None:
        del values["max_train_steps"]
    return config.filled(values)


def _with_network(
    config: Config, preset: Preset, unet_config: dict[str, Any] | None, start: DDPMPipeline | None
) -> Config:
    """Size and architecture, and for `--init_from` the process too."""
    if unet_config is not None:
        source = config.start if start is not None else "--model_config_name_or_path"
        size, fixed = unet_config.get("sample_size") if start is None else start.image_shape[1:], {}
        fixed["resolution"] = resolution_text(size) if size else "64"
        if start is not None:
            fixed["channels"] = start.image_shape[0]
            fixed |= {name: start.scheduler.config[name] for name in PROCESS_FLAGS if name in start.scheduler.config}
        flags = config.flags()
        for name in FIXED_BY_START:
            if flags[name] is not None:
                raise ValueError(f"--{name} contradicts {source}, which fixes the architecture; leave it out")
        for name, value in fixed.items():
            given = flags[name]
            same = (
                parse_resolution(given) == parse_resolution(value)
                if name == "resolution" and given
                else given == value
            )
            if given is not None and not same:
                raise ValueError(f"--{name} {given} contradicts {source}, which has {value}; leave it out")
        return config.with_values(fixed)
    model = {name: plain(value) for name, value in preset.model.items() if name != "channels"}
    if config.data.is_bundled:
        model["channels"] = preset.model["channels"]
    model["resolution"] = resolution_text(model["resolution"])
    config = config.filled({"resolution": model["resolution"], "upsampling": model.get("upsampling")})
    is_other = config.model.preset is None and config.data.resolution != model["resolution"]
    if is_other and "channel_multipliers" in model and not preset.autoencoder:
        # No preset was asked for, so the depth may follow from the images.
        factor = config.model.upsampling if "upsampling" in model else 1
        sides = (factor * side for side in parse_resolution(config.data.resolution))
        depth, multipliers = default_depth(*sides), model["channel_multipliers"]
        model["channel_multipliers"] = (multipliers + [multipliers[-1]] * depth)[:depth]
    return config.filled(model)


def resolution_text(size: Any) -> str:
    """A size of images as `--resolution` is given."""
    height, width = parse_resolution(tuple(size) if isinstance(size, (list, tuple)) else size)
    return str(height) if height == width else f"{height}x{width}"


def plain(value: Any) -> Any:
    """A preset's value as that of a flag, which has lists."""
    return list(value) if isinstance(value, tuple) else value
