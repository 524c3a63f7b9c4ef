"""What a run will cost, before its first step: bytes of memory and floating-point operations, estimated."""

from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
from accelerate import Accelerator
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from .plan import Plan

# Resident bytes of a step on a CPU for each one that is kept, without and with gradient checkpointing: temporaries and
# gaps between blocks come on top. Measured on Linux with glibc.
_ON_CPU = {False: 1.8, True: 2.3}


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What one process needs while it trains, in bytes, and what a step of all processes together computes.

    Libraries, decoded images in the file cache, and pictures drawn on the way are not in it.

    Attributes:
        parameters, gradients, optimizer, ema: float32 weights, their gradients with the buckets of
            DistributedDataParallel, Adam's two moments, the moving average. Exact.
        activations: what the forward pass of a micro-step keeps for the backward pass; on a CPU with temporaries.
        flops: floating-point operations of an optimizer step, forwards and backwards, a multiplication and an addition
            counted as two.
    """

    parameters: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    flops: int

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return self.parameters + self.gradients + self.optimizer + self.ema + self.activations


def forecast(plan: Plan, accelerator: Accelerator) -> Forecast:
    """An estimate of what the run of this plan will need and compute.

    On a CPU its total was within a quarter of the peak of resident memory: 5 % below to 21 % above with the presets
    `small-32` and `ddpm-cifar10` (benchmarks/memory.py), 1 to 22 % below with `digits`, in float32 and bf16, with and
    without gradient checkpointing. On a GPU it has not been measured, and temporaries come on top of it. Sharding by
    FSDP or DeepSpeed is not counted.
    """
    options = plan.config.optimization
    half = options.mixed_precision in ("bf16", "fp16")
    again = plan.config.model.gradient_checkpointing
    kept, flops = count_pass(plan.unet, plan.images.shape, half, again)
    factor = _ON_CPU[again] if accelerator.device.type == "cpu" else 1
    weights = sum(parameter.numel() for parameter in plan.unet.parameters())
    return Forecast(
        parameters=4 * weights,
        gradients=4 * weights * (2 if accelerator.num_processes > 1 else 1),
        optimizer=8 * weights,
        ema=4 * weights if options.use_ema else 0,
        # Autocast keeps a half-precision copy of the weights for the backward pass.
        activations=round(kept * options.train_batch_size * factor) + (2 * weights if half else 0),
        flops=flops * plan.facts["global_batch_size"],
    )


def count_pass(
    unet: nn.Module, shape: tuple[int, int, int], half: bool = False, gradient_checkpointing: bool = False
) -> tuple[int, int]:
    """What a training pass keeps and computes for one image, counted on tensors without values (device "meta").

    Args:
        unet: the network; only its configuration is looked at.
        shape: (channels, height, width) of an image.
        half: computes in a precision of 16 bits.
        gradient_checkpointing: drops what is inside a block, and computes it again in the backward pass.

    Returns:
        Bytes kept for the backward pass, and floating-point operations of both passes, the backward one counted as two
        forward ones: a layer computes the gradients of its input and of its weights, each as much work as its output.
    """
    with torch.device("meta"):
        unet = type(unet).from_config(unet.config).train()
        dtype = torch.bfloat16 if half else torch.float32
        image, timestep = torch.empty(1, *shape, dtype=dtype), torch.zeros(1, dtype=torch.int64)
    nn.Module.to(unet, dtype)
    weights = {parameter.untyped_storage() for parameter in unet.parameters()}
    kept, again, repeated_flops = set(), [0], 0  # memory once, however many tensors share it
    counter = FlopCounterMode(display=False)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage() not in weights:
            kept.add(tensor.untyped_storage())
        return tensor

    def checkpointed(block: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        nonlocal repeated_flops
        kept.update(tensor.untyped_storage() for tensor in inputs)
        before, flops = set(kept), counter.get_total_flops()
        output = block(*inputs)
        repeated_flops += counter.get_total_flops() - flops
        again.append(_bytes(kept - before))
        kept.intersection_update(before)
        return output

    if gradient_checkpointing:
        unet.enable_gradient_checkpointing(checkpointed)
    with counter, _FusedAttention(keep), saved_tensors_hooks(keep, lambda tensor: tensor):
        unet(image, timestep, None if unet.config.num_class_embeds is None else timestep)
    return _bytes(kept) + max(again), 3 * counter.get_total_flops() + repeated_flops


def _bytes(storages: set[torch.UntypedStorage]) -> int:
    return sum(storage.nbytes() for storage in storages)


class _FusedAttention(TorchFunctionMode):
    """Keeps query, key and value but no attention map, as kernels of CPUs and GPUs do and device "meta" does not."""

    def __init__(self, keep: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.keep = keep

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is not scaled_dot_product_attention:
            return function(*args, **kwargs)
        for tensor in filter(torch.is_tensor, (*args, *kwargs.values())):
            self.keep(tensor)
        with saved_tensors_hooks(lambda tensor: None, lambda nothing: nothing):
            return function(*args, **kwargs)


def available_memory(device: torch.device) -> tuple[int, int]:
    """Bytes that a process could still have on its device, and that the device has in all."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    memory = psutil.virtual_memory()
    return memory.available, memory.total
