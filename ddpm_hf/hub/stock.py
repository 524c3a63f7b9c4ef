"""What diffusers alone can do with a model, and what it cannot: known from the configs, shown by the tests."""

import shutil
from pathlib import Path

from ..pipelines.samplers import SHARED_SCHEDULES
from . import standalone
from .folder import STANDALONE_FILE, ModelFolder


def obstacles(model: ModelFolder) -> list[str]:
    """Why stock `DDPMPipeline` cannot draw with a model, one sentence each; empty if it can."""
    found = []
    if model.class_names:
        found.append("The model is class-conditional, and stock `DDPMPipeline` passes no class to the network.")
    (height, width), multiple = model.size, 2 ** (len(model.unet["block_out_channels"]) - 1)
    if height % multiple or width % multiple:
        found.append(
            f"Stock `UNet2DModel` runs only sides that {multiple} divides; these images are {width}x{height}."
        )
    variance_type = model.scheduler.get("variance_type")
    if variance_type == "learned":
        found.append(
            "Stock `DDPMScheduler` takes the learned log-variance for a variance: the images are empty (NaN)."
        )
    if variance_type == "fixed_large_log":
        found.append("Stock `DDPMScheduler` takes the root of a log-variance: the images are empty (NaN).")
    return found


def fast_samplers(model: ModelFolder) -> list[str]:
    """diffusers' samplers for fewer steps that work in stock `DDPMPipeline` with this model, if the pipeline does.

    The pipeline hands every sampler a generator and scales no input, so that of the fast ones these two families can
    be used. With a learned variance the solvers cut the output at three channels, and DDIM does not cut it at all.
    The single-step solver knows no zero terminal SNR.
    """
    solvers = ["DPMSolverMultistepScheduler"]
    if not model.scheduler.get("rescale_betas_zero_snr"):
        solvers.append("DPMSolverSinglestepScheduler")
    if model.learns_variance:
        return solvers if model.channels == 3 else []
    return [*solvers, "DDIMScheduler"]


def betas_argument(model: ModelFolder) -> str:
    """What their `from_config` needs, as Python source, for a schedule that only diffusers' `DDPMScheduler` has."""
    config = model.scheduler
    known = config.get("trained_betas") is not None or config["beta_schedule"] in SHARED_SCHEDULES
    return "" if known else "trained_betas=pipe.scheduler.betas.tolist(), "


def needs_standalone(model: ModelFolder) -> bool:
    """Whether stock classes leave something out that the one-file pipeline can do."""
    return bool(obstacles(model)) or not fast_samplers(model)


def write_standalone(model: ModelFolder) -> None:
    """Put the one-file pipeline beside a model that needs it, under the name that diffusers looks for."""
    if needs_standalone(model):
        shutil.copyfile(Path(standalone.__file__), model.path / STANDALONE_FILE)
