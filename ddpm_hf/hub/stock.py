"""A DDPM by its configs, and what stock diffusers can do with it; the tests check that."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..conditions.class_labels import ClassLabels
from ..diffusion.process import LEARNED_VARIANCES
from ..models.text_unet import LOW_SIDE
from ..sampling.samplers import SHARED_SCHEDULES


@dataclass(frozen=True)
class DDPM:
    """What the index and the configs of a DDPM say: `DDPM(folder.index, **folder.configs)` of a `ModelFolder`."""

    index: dict[str, Any]
    unet: dict[str, Any]
    scheduler: dict[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images in pixels."""
        size = self.unet["sample_size"]
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.unet["in_channels"] // (2 if LOW_SIDE in self.unet else 1)

    @property
    def timesteps(self) -> int:
        """T."""
        return self.scheduler["num_train_timesteps"]

    @property
    def learns_variance(self) -> bool:
        """Whether the network also predicts a variance."""
        return self.scheduler.get("variance_type") in LEARNED_VARIANCES

    @cached_property
    def classes(self) -> ClassLabels | None:
        """The condition of a class-conditional model."""
        names = self.index.get("id2label")
        names = names and {int(number): name for number, name in names.items()}
        return next(iter(ClassLabels.of_model(self.unet, names)), None)

    @property
    def class_names(self) -> list[str]:
        """Class names by number, or the numbers if there are no names; empty for an unconditional model."""
        if self.classes is None:
            return []
        return [(self.classes.names or {}).get(number, str(number)) for number in self.classes.usual()]

    @property
    def is_guided(self) -> bool:
        """Whether the network has a null class, which guidance needs."""
        return self.classes is not None and self.classes.has_null


def _padding(model: DDPM) -> tuple[int, int, int]:
    """Rows and columns that the images lack for the stock network, and the divisor that it needs of their sides."""
    (height, width), multiple = model.size, 2 ** (len(model.unet["block_out_channels"]) - 1)
    return -height % multiple, -width % multiple, multiple


def obstacles(model: DDPM) -> list[str]:
    """Why the stock pipeline of a model cannot sample from it, as sentences; empty if it can."""
    found = []
    if model.class_names:
        found.append("The model is class-conditional, and stock `DDPMPipeline` passes no class to the network.")
    (height, width), (more, wider, multiple) = model.size, _padding(model)
    if (more or wider) and model.index["_class_name"] == "DDPMPipeline":  # `UNet2DConditionModel` crops
        found.append(f"Stock `UNet2DModel` needs sides divisible by {multiple}; these images are {width}x{height}.")
    if model.index["_class_name"] == "IFInpaintingPipeline" and (height % 8 or width % 8):
        found.append(f"Stock `IFInpaintingPipeline` needs sides divisible by 8; these images are {width}x{height}.")
    variance_type = model.scheduler.get("variance_type")
    if variance_type == "learned":
        found.append("Stock `DDPMScheduler` takes the learned log-variance for a variance, giving NaN images.")
    if variance_type == "fixed_large_log":
        found.append("Stock `DDPMScheduler` takes the root of a log-variance, giving NaN images.")
    return found


def fast_samplers(model: DDPM) -> list[str]:
    """diffusers' fast samplers that work in stock `DDPMPipeline` with this model, provided the pipeline itself does.

    The pipeline passes a generator and does not scale inputs, which leaves DPM-Solver and DDIM. With a learned
    variance the solvers cut an output of epsilon at three channels, and nothing else is cut. The single-step solver
    does not support zero terminal SNR.
    """
    solvers = ["DPMSolverMultistepScheduler"]
    if not model.scheduler.get("rescale_betas_zero_snr"):
        solvers.append("DPMSolverSinglestepScheduler")
    if model.learns_variance:
        return solvers if model.channels == 3 and model.scheduler.get("prediction_type") == "epsilon" else []
    return [*solvers, "DDIMScheduler"]


def betas_argument(model: DDPM) -> str:
    """The argument their `from_config` needs, in source code, for schedules that only `DDPMScheduler` has."""
    config = model.scheduler
    known = config.get("trained_betas") is not None or config["beta_schedule"] in SHARED_SCHEDULES
    owner = "scheduler" if obstacles(model) else "pipe.scheduler"
    return "" if known else f"trained_betas={owner}.betas.tolist(), "


def network_lines(model: DDPM) -> list[str]:
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
