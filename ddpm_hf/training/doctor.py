"""Problems that can be found before the first step of a run, each with what to change.

A finding is a fact about the data and settings, not a matter of taste: presets used with the data they are made for
have none. What building the system refuses is not repeated here.
"""

import dataclasses
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from PIL import Image

from ..data.examples import TrainingImages
from ..data.sources import ImageData, RawRow
from ..data.transforms import DECODING_ERRORS, FORMATS, open_image
from ..systems.forecast import Forecast, available_memory
from ..systems.plan import Plan
from .ema import ema_decay

_SIZES_LOOKED_AT = 64
_EXIF_ORIENTATION, _LYING = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that spoils a run.

    Attributes:
        name: the kind of finding, in lower case with hyphens.
        what: the fact, with numbers.
        why: why it matters.
        change: what to do, naming flags.
        severity: an "error" stops the run before its first step; a "warning" does not.
    """

    name: str
    what: str
    why: str
    change: str
    severity: Literal["error", "warning"] = "warning"

    def __str__(self) -> str:
        return f"{self.severity} ({self.name}): {self.what}. {self.why}. {self.change}."


def examine(plan: Plan, accelerator: Accelerator, forecast: Forecast) -> list[Finding]:
    """All findings about a run, errors first; the same in every process, except for free memory."""
    findings = [
        *_process(plan),
        *_pixels(plan.images.some_pixels()),
        *_sizes(sample_stretches(plan.images), plan.images.shape[1:]),
        *_captions(plan),
        *_clock(plan),
        *_sharding(plan, accelerator),
        *_memory(forecast, accelerator, *available_memory(accelerator.device)),
    ]
    return sorted(findings, key=lambda finding: finding.severity)


def merged(findings: list[Finding], earlier: list[dict[str, str]]) -> list[dict[str, str]]:
    """Findings as stored in `training_summary.json`, after those of earlier sessions; the newest of each name."""
    by_name = {entry["name"]: entry for entry in earlier} | {
        entry.name: dataclasses.asdict(entry) for entry in findings
    }
    return list(by_name.values())


# What is examined


def sample_stretches(images: TrainingImages) -> np.ndarray:
    """The factors by which up to 64 images are scaled to cover the resolution, float64 (n,)."""
    _, height, width = images.shape
    sizes = [_height_width(images.source, row) for row in images.some_rows(_SIZES_LOOKED_AT)]
    return np.array([max(height / size[0], width / size[1]) for size in filter(None, sizes)])


def _height_width(source: ImageData, row: RawRow) -> tuple[int, int] | None:
    """Size of an image after EXIF rotation, from its header alone; None if it is not an image."""
    try:
        payload = source.payload(row)
        if isinstance(payload, np.ndarray):
            return open_image(payload).size[::-1]
        image = Image.open(io.BytesIO(payload), formats=FORMATS)
        lying = image.getexif().get(_EXIF_ORIENTATION) in _LYING
    except DECODING_ERRORS:
        return None
    return image.size if lying else image.size[::-1]


# The process


def _captions(plan: Plan) -> Iterator[Finding]:
    if not any(condition.name == "prompt" for condition in plan.system.conditions):
        return
    count, names = plan.images.uncaptioned()
    if count:
        yield Finding(
            name="no-caption",
            what=f"{count} training images have no caption, such as {', '.join(names)}",
            why="They are trained on as if their captions were hidden",
            change="Add captions, or leave the images out",
        )
    cut = [word for condition in plan.system.conditions for word in condition.cut(plan.images.captions())]
    if cut:
        yield Finding(
            name="long-caption",
            what=f"{len(cut)} different captions are too long and lose their end, such as {cut[0][:60]!r}…",
            why="The text encoder reads no more of a caption than --text_length, or for glide and imagen 77 tokens",
            change="Shorten them, the most important words first",
        )


def _process(plan: Plan) -> Iterator[Finding]:
    if plan.system.scheduler is None:
        return
    amplitude, noise = (
        plan.system.scheduler.coefficients.table(name, "cpu", torch.float64)
        for name in ("root_alpha_bar", "root_noise")
    )
    left, is_tuned = float(amplitude[-1]), plan.config.model.init_from is not None
    if left > 0.05:
        yield Finding(
            name="terminal-signal",
            severity="error" if left > 0.3 and not is_tuned else "warning",
            what=f"the last of {len(noise)} timesteps keeps {left:.1%} of the image's amplitude (alpha_bar_T is "
            f"{left**2:.3g})",
            why="Sampling starts from pure noise, which the network never sees in training: brightness and colour "
            "come out wrong (Lin et al. 2023, arXiv 2305.08891)",
            change="It is the process of --init_from, which fine-tuning keeps: train a model anew if that matters"
            if is_tuned
            else "Leave out --beta_start and --beta_end, whose defaults fit the number of timesteps, or choose "
            "--beta_schedule squaredcos_cap_v2",
        )
    precision = plan.config.optimization.mixed_precision
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    # Half the spacing of numbers just below 1, the value of a white pixel, in this precision.
    rounding = torch.finfo(dtype).eps / 4
    lost = int((noise < rounding).sum())
    if lost:
        name = str(dtype).removeprefix("torch.")
        yield Finding(
            name="no-noise",
            what=f"at the first {lost} timestep(s) the noise is below the rounding error of {name}",
            why="The network sees clean images there and cannot know the noise it is asked for",
            change="Raise --beta_start" + (", or use --mixed_precision no" if dtype.itemsize == 2 else ""),
        )


# The pixels


def _pixels(pixels: np.ndarray) -> Iterator[Finding]:
    """pixels: uint8 (n, channels, height, width)."""
    low, high = int(pixels.min()), int(pixels.max())
    among = f"in the {len(pixels)} images examined"
    if low == high:
        yield Finding(
            name="blank-images",
            severity="error",
            what=f"every pixel {among} has the value {low}",
            why="There is nothing to learn",
            change="Check the files; 16-bit images may only use small values",
        )
        return
    if high - low < 64:
        yield Finding(
            name="pixel-range",
            what=f"pixel values {among} range only from {low} to {high}, not from 0 to 255",
            why="Unit noise drowns such low contrast at almost every timestep, so most of the training is wasted",
            change="Stretch the values to 0 to 255 before training (12-bit images stored as 16-bit need a factor of "
            "16, masks with small class numbers a larger one)",
        )
    spans = np.ptp(pixels, axis=(0, 2, 3))
    flat = [channel for channel, span in enumerate(spans) if span == 0]
    if flat:
        names = ", ".join("red green blue alpha".split()[channel] for channel in flat)
        yield Finding(
            name="constant-channel",
            what=f"the {names} channel has the same value in every pixel {among}",
            why="The network wastes capacity on an empty channel, and samples show faint noise in it",
            change="Use fewer --channels: 3 drops alpha, 1 converts to grey",
        )
    elif pixels.shape[1] >= 3 and (pixels[:, :1] == pixels[:, 1:3]).all():
        yield Finding(
            name="grey-as-colour",
            what=f"red, green and blue are equal {among}",
            why="Grey images trained as colour come out tinted, since nothing keeps the channels equal "
            "(huggingface/diffusers#10677)",
            change="Use --channels 1; a network from --init_from keeps its channels and may tint",
        )


def _sizes(stretches: np.ndarray, size: tuple[int, int]) -> Iterator[Finding]:
    enlarged = stretches >= 1.25
    if len(stretches) and enlarged.mean() >= 0.1:
        yield Finding(
            name="small-images",
            what=f"{enlarged.sum()} of {len(stretches)} images examined are smaller than {size[1]}x{size[0]} and are "
            f"enlarged, up to {stretches.max():.1f} times",
            why="The network learns the blur of the enlargement",
            change="Use a smaller --resolution, or leave small images out of the data",
        )


# The clock


def _clock(plan: Plan) -> Iterator[Finding]:
    options, steps = plan.config.optimization, plan.clock.steps
    if options.lr_scheduler != "constant" and options.lr_warmup_steps > steps / 2:
        reached = plan.clock.learning_rate_at(min(options.lr_warmup_steps, steps - 1)) / options.learning_rate
        yield Finding(
            name="long-warm-up",
            what=f"the warm-up takes {options.lr_warmup_steps} of {steps} steps, and the learning rate reaches "
            f"{reached:.0%} of --learning_rate",
            why="Most of the run learns too slowly",
            change="Lower --lr_warmup_steps or raise --max_train_steps",
        )
    if options.lr_scheduler == "cosine_with_restarts" and options.lr_num_cycles * 10 > steps - options.lr_warmup_steps:
        yield Finding(
            name="short-cycles",
            what=f"{options.lr_num_cycles} cycles of the learning rate share {steps} steps",
            why="Cycles of under ten steps only make the rate jump up and down",
            change="Lower --lr_num_cycles",
        )
    if options.use_ema and (share := _initial_share(plan)) > 0.01:
        yield Finding(
            name="slow-average",
            what=f"after the last step {share:.0%} of the moving average is still the initial weights",
            why="Samples and the saved pipeline use the average and will be noisier than the network itself "
            "(huggingface/diffusers#1772)",
            change="Use --ema_warmup, a lower --ema_decay or more --max_train_steps",
        )
    count = plan.images.count
    seen = plan.clock.steps * plan.facts.global_batch_size
    if count is not None and count < 1000 and seen > 100 * count and plan.system.scheduler is not None:
        yield Finding(
            name="few-images",
            what=f"each of the {count} images is seen {seen / count:,.0f} times",
            why="Trained on fewer than 1,000 images, diffusion models have been found to copy them (Kadkhodaie et al. "
            "2023, arXiv 2310.02557), the sooner the fewer there are (Favero et al. 2025, arXiv 2505.16959)",
            change="Add images, lower --max_train_steps, or fine-tune with --init_from; compare samples with the data",
        )


def _initial_share(plan: Plan) -> float:
    """The initial weights' share of the moving average after the last step: the product of all decays."""
    options = plan.config.optimization
    inv_gamma = options.ema_inv_gamma if options.ema_warmup else None
    warming = range(1, min(plan.clock.steps, 10_000) + 1)
    decays = [ema_decay(step, options.ema_decay, inv_gamma, options.ema_power) for step in warming]
    return math.prod(decays) * decays[-1] ** (plan.clock.steps - len(decays))


# The machine


def _sharding(plan: Plan, accelerator: Accelerator) -> Iterator[Finding]:
    sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if sharded and plan.system.trained is not None:
        yield Finding(
            name="sharded-discriminator",
            severity="error",
            what=f"--adversarial_start {plan.config.optimization.adversarial_start} is not for weights that "
            f"{accelerator.distributed_type.value} shards over the processes",
            why="The discriminator's weight needs the gradients of a whole layer",
            change="Use --adversarial_weight 0, or launch with scripts/accelerate/multi_gpu.yaml",
        )
    if accelerator.distributed_type == DistributedType.FSDP and not plan.config.optimization.use_ema:
        yield Finding(
            name="sharded-weights",
            severity="error",
            what="--use_ema false leaves no complete copy of the weights, which FSDP shards over the processes",
            why="Sampling and saving the pipeline need one",
            change="Leave --use_ema on, or launch with scripts/accelerate/multi_gpu.yaml",
        )


def _memory(forecast: Forecast, accelerator: Accelerator, available: int, total: int) -> Iterator[Finding]:
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return  # the forecast does not account for sharding
    shared = accelerator.device.type != "cuda"
    processes = int(getattr(accelerator.state, "local_num_processes", 1)) if shared else 1
    needed = forecast.total * processes
    if needed <= available:
        return
    yield Finding(
        name="memory",
        # Decided by total memory, the same in all processes, with a margin for the error of the forecast.
        severity="error" if needed > 1.5 * total else "warning",
        what=f"the run needs about {needed / 1e9:.1f} GB of memory, {forecast.activations / 1e9:.1f} GB of it for the "
        f"activations of each process; {available / 1e9:.1f} GB of {total / 1e9:.1f} GB are free",
        why="The system kills a process that runs out of memory",
        change="Lower --train_batch_size and raise --gradient_accumulation_steps by the same factor, which gives the "
        "same training, or use --gradient_checkpointing or --mixed_precision bf16",
    )
