"""What stock diffusers can do with a model, judged from the configs; the tests check it."""

from ..sampling.samplers import SHARED_SCHEDULES
from .folder import ModelFolder


def _padding(model: ModelFolder) -> tuple[int, int, int]:
    """Rows and columns that the images lack for the stock network, and the divisor that it needs of their sides."""
    (height, width), multiple = model.size, 2 ** (len(model.unet["block_out_channels"]) - 1)
    return -height % multiple, -width % multiple, multiple


def obstacles(model: ModelFolder) -> list[str]:
    """Why stock `DDPMPipeline` cannot sample from a model, as sentences; empty if it can."""
    found = []
    if model.class_names:
        found.append("The model is class-conditional, and stock `DDPMPipeline` passes no class to the network.")
    (height, width), (more, wider, multiple) = model.size, _padding(model)
    if more or wider:
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
    """The argument their `from_config` needs, in source code, for schedules that only `DDPMScheduler` has."""
    config = model.scheduler
    known = config.get("trained_betas") is not None or config["beta_schedule"] in SHARED_SCHEDULES
    owner = "scheduler" if obstacles(model) else "pipe.scheduler"
    return "" if known else f"trained_betas={owner}.betas.tolist(), "


def network_lines(model: ModelFolder) -> list[str]:
    """Source code that makes `output` of `x`, `t` and, for a model with classes, `labels`, by the stock `unet`."""
    channels, (height, width), (more, wider, _) = model.channels, model.size, _padding(model)
    top, left = more // 2, wider // 2
    arguments = ["x", "t", "labels"] if model.class_names else ["x", "t"]
    lines = []
    if more or wider:
        arguments[0] = "padded"
        sides = (left, wider - left, top, more - top)
        lines.append(f'padded = torch.nn.functional.pad(x, {sides}, mode="reflect")')
    lines.append(f"output = unet({', '.join(arguments)}).sample")
    if model.is_guided:
        null = f"torch.full_like(labels, {len(model.class_names)})"
        lines.append(f"unguided = unet({', '.join(arguments[:-1])}, {null}).sample")
        guided = "unguided + guidance_scale * (output - unguided)"
        mean = f"[:, :{channels}]"  # a learned variance is not guided
        lines.append(f"output{mean} = ({guided}){mean}" if model.learns_variance else f"output = {guided}")
    if more or wider:
        lines.append(f"output = output[..., {top}:{top + height}, {left}:{left + width}]")
    if model.scheduler.get("variance_type") == "learned":
        lines.append(f"output[:, {channels}:] = output[:, {channels}:].exp()  # diffusers expects no logarithm")
    return lines
