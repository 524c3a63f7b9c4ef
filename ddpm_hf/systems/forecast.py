"""An estimate of what a run will cost: bytes of memory and floating-point operations."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil
import torch
from accelerate import Accelerator
from diffusers import ModelMixin
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from ..conditions.condition import Told, usual
from .plan import Plan

# Resident bytes of a step on a CPU per byte kept for the backward pass, without and with gradient checkpointing; the
# excess is temporaries and fragmentation. Measured on Linux with glibc.
_ON_CPU = {False: 1.8, True: 2.3}


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Bytes that one process needs for training, and the operations of a step of all processes together.

    Libraries, decoded images in the file cache, what is frozen (text encoders, LPIPS) and previews are not included.

    Attributes:
        parameters, gradients, optimizer, ema: float32 weights, their gradients with the buckets of
            DistributedDataParallel, Adam's two moments, the moving average. Exact, but for small weights and scales
            of moments in 8 bits.
        activations: what the forward pass of a micro-step keeps for the backward pass; on a CPU with temporaries.
        flops: floating-point operations of an optimizer step, forward and backward; a multiply-add counts as two.
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
    """Estimate the memory and operations of a run.

    On a CPU the total was within a quarter of peak resident memory: 5 % below to 21 % above for the presets `small-32`
    and `ddpm-cifar10` (benchmarks/memory.py), 1 to 22 % below for `digits`, in float32 and bf16, with and without
    gradient checkpointing. On a GPU it has not been measured, and does not include temporaries. Sharding by FSDP or
    DeepSpeed is ignored.
    """
    options = plan.config.optimization
    half = options.mixed_precision in ("bf16", "fp16")
    again = plan.config.model.gradient_checkpointing
    network, told = plan.system.trained or plan.system.network, usual(plan.system.conditions, 1, torch.device("meta"))
    told.pop("attention_mask", None)  # transformers looks at its values, which tensors on "meta" do not have
    kept, flops = count_pass(network, plan.system.codec.shape, told | plan.system.told_from[1], half, again)
    factor = _ON_CPU[again] if accelerator.device.type == "cpu" else 1
    weights = sum(weight.numel() for weight in network.parameters())
    return Forecast(
        parameters=4 * weights,
        gradients=4 * weights * (2 if accelerator.num_processes > 1 else 1),
        optimizer=(2 if options.use_8bit_adam else 8) * weights,
        ema=4 * plan.facts.parameters if options.use_ema else 0,
        # Autocast keeps a half-precision copy of the weights for the backward pass.
        activations=round(kept * options.train_batch_size * factor) + (2 * weights if half else 0),
        flops=flops * plan.facts.global_batch_size,
    )


def count_pass(
    network: nn.Module, shape: Sequence[int], told: Told, half: bool = False, gradient_checkpointing: bool = False
) -> tuple[int, int]:
    """Memory and operations of a training pass for one image, counted on the device "meta".

    Args:
        network: (x_t, t, **told) -> output; copied without its weights.
        shape: of x_0, without the batch.
        told: what it is told about one image, on the device "meta".
        half: compute in 16-bit precision.
        gradient_checkpointing: keep only the inputs of blocks, and recompute the rest in the backward pass.

    Returns:
        Bytes kept for the backward pass, and floating-point operations of both passes. The backward pass counts as two
        forward passes: the gradients of a layer's input and of its weights each take as much work as its output.
    """
    shapes = {id(buffer): buffer.to("meta") for buffer in network.buffers()}
    shapes |= {id(weight): nn.Parameter(weight.to("meta"), weight.requires_grad) for weight in network.parameters()}
    network = copy.deepcopy(network, shapes).train().to(torch.bfloat16 if half else torch.float32)
    dtype = next(network.parameters()).dtype
    told = {
        name: each.to(dtype) if torch.is_tensor(each) and each.is_floating_point() else each
        for name, each in told.items()
    }
    image = torch.empty(1, *shape, device="meta")
    timestep = torch.zeros(1, dtype=torch.int64, device="meta")
    weights = {parameter.untyped_storage() for parameter in network.parameters()}
    kept, again, repeated_flops = set(), [0], 0  # storages: tensors may share one
    counter = FlopCounterMode(display=False)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage() not in weights:
            kept.add(tensor.untyped_storage())
        return tensor

    def checkpointed(block: nn.Module, *inputs: torch.Tensor | None) -> torch.Tensor:
        nonlocal repeated_flops
        kept.update(given.untyped_storage() for given in inputs if torch.is_tensor(given))
        before, flops = set(kept), counter.get_total_flops()
        output = block(*inputs)
        repeated_flops += counter.get_total_flops() - flops
        again.append(_bytes(kept - before))
        kept.intersection_update(before)
        return output

    if gradient_checkpointing:
        for part in filter(lambda part: isinstance(part, ModelMixin), network.children()):
            part.enable_gradient_checkpointing(checkpointed)
    with counter, _FusedAttention(keep), saved_tensors_hooks(keep, lambda tensor: tensor):
        network(image, timestep, **told)
    return _bytes(kept) + max(again), 3 * counter.get_total_flops() + repeated_flops


def _bytes(storages: set[torch.UntypedStorage]) -> int:
    return sum(storage.nbytes() for storage in storages)


class _FusedAttention(TorchFunctionMode):
    """Keeps query, key and value but no attention map, like the kernels of CPUs and GPUs, unlike device "meta"."""

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
    """Free and total bytes of memory on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    memory = psutil.virtual_memory()
    return memory.available, memory.total
