"""What stock diffusers can do with a model, judged from the configs; the tests check it."""

import shutil
from pathlib import Path

from ..sampling.samplers import SHARED_SCHEDULES
from . import standalone
from .folder import STANDALONE_FILE, ModelFolder


def obstacles(model: ModelFolder) -> list[str]:
    """Why stock `DDPMPipeline` cannot sample from a model, as sentences; empty if it can."""
    found = []
    if model.class_names:
        found.append("The model is class-conditional, and stock `DDPMPipeline` passes no class to the network.")
    (height, width), multiple = model.size, 2 ** (len(model.unet["block_out_channels"]) - 1)
    if height % multiple or width % multiple:
        found.append(f"Stock `UNet2DModel` needs sides divisible by {multiple}; these images are {width}x{height}.")
    variance_type = model.scheduler.get("variance_type")
    if variance_type == "learned":
        found.append("Stock `DDPMScheduler` takes the learned log-variance for a variance, giving NaN images.")
    if variance_type == "fixed_large_log":
        found.append("Stock `DDPMScheduler` takes the root of a log-variance, giving NaN images.")
    return found


def fast_samplers(model: ModelFolder) -> list[str]:
    """diffusers' fast samplers that work in stock `DDPMPipeline` with this model, provided the pipeline itself does.

    The pipeline passes a generator and does not scale inputs, which leaves DPM-Solver and DDIM. With a learned
    variance the solvers cut the output at three channels, and DDIM does not cut it. The single-step solver does not
    support zero terminal SNR.
    """
    solvers = ["DPMSolverMultistepScheduler"]
    if not model.scheduler.get("rescale_betas_zero_snr"):
        solvers.append("DPMSolverSinglestepScheduler")
    if model.learns_variance:
        return solvers if model.channels == 3 else []
    return [*solvers, "DDIMScheduler"]


def betas_argument(model: ModelFolder) -> str:
    """The argument their `from_config` needs, as Python source, for schedules that only `DDPMScheduler` has."""
    config = model.scheduler
    known = config.get("trained_betas") is not None or config["beta_schedule"] in SHARED_SCHEDULES
    return "" if known else "trained_betas=pipe.scheduler.betas.tolist(), "


def needs_standalone(model: ModelFolder) -> bool:
    """Whether the one-file pipeline can do something that stock classes cannot."""
    return bool(obstacles(model)) or not fast_samplers(model)


def write_standalone(model: ModelFolder) -> None:
    """Copy the one-file pipeline, under the name diffusers looks for, to a model that needs it."""
    if needs_standalone(model):
        shutil.copyfile(Path(standalone.__file__), model.path / STANDALONE_FILE)
