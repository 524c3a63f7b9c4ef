"""What a run will cost, before its first step: bytes of memory and floating-point operations.

One training step is run on tensors that have a shape and a device but no values (PyTorch's FakeTensorMode), so that
every operation, cast and saved tensor is the one that the run will have, and a second is enough for any network.
"""

import copy
import weakref
from dataclasses import dataclass

import psutil
import torch
from accelerate import Accelerator
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from .plan import Plan

# Main memory that the C library keeps beside what is in use, as a share of the step's own tensors: measured on Linux
# with glibc, resident memory against live tensors, over presets `digits`, `small-32`, `small-64` and `ddpm-cifar10` in
# float32 and bfloat16 (1.31 to 1.69), and with gradient checkpointing, whose blocks come and go between those that
# stay (1.83 to 2.4). A GPU's allocator fits blocks better; 1.1 is an assumption, not measured.
_ALLOCATOR = {"cpu": {False: 1.5, True: 2.05}}
_OTHER_ALLOCATORS = {False: 1.1, True: 1.1}


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What one process needs while it trains, in bytes, and what a step of all processes together computes.

    Libraries, decoded images in the file cache, and pictures drawn on the way are not in it.

    Attributes:
        parameters, optimizer, ema: float32 weights, Adam's two moments, the moving average.
        gradients: with those of DistributedDataParallel's buckets; 0 where they are gone before the peak.
        activations: what a micro-step holds at its peak, with the allocator's share.
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
    """What the run of this plan will need and compute.

    Measured against the resident memory of real steps on a CPU it is within 15 % for the presets `digits` and
    `small-32` (tests/training/test_forecast.py) and `ddpm-cifar10` (benchmarks/memory.py). Sharding by FSDP or
    DeepSpeed is not counted.
    """
    options, config = plan.config.optimization, plan.config.model
    activations, flops = trace_step(
        plan.unet,
        (options.train_batch_size, *plan.images.shape),
        {"bf16": torch.bfloat16, "fp16": torch.float16}.get(options.mixed_precision),
        config.gradient_checkpointing,
    )
    share = _ALLOCATOR.get(accelerator.device.type, _OTHER_ALLOCATORS)[config.gradient_checkpointing]
    weights = sum(parameter.numel() * 4 for parameter in plan.unet.parameters())
    # Set to None after each step, so that they are not there when the next one's activations are the most.
    kept = weights if options.gradient_accumulation_steps > 1 else 0
    buckets = weights if accelerator.num_processes > 1 else 0
    micro_steps = options.gradient_accumulation_steps * accelerator.num_processes
    return Forecast(
        parameters=weights,
        gradients=kept + buckets,
        optimizer=2 * weights,
        ema=weights if options.use_ema else 0,
        activations=round(activations * share),
        flops=flops * micro_steps,
    )


def trace_step(
    unet: nn.Module,
    shape: tuple[int, int, int, int],
    autocast: torch.dtype | None = None,
    gradient_checkpointing: bool = False,
) -> tuple[int, int]:
    """Forwards and backwards on tensors without values, as the CPU's kernels do it; a GPU's save much the same.

    Args:
        unet: the network; a copy of it is traced.
        shape: (batch, channels, height, width) of a micro-batch.
        autocast: the precision of the computation; None for float32.
        gradient_checkpointing: whether activations are computed again on the way back.

    Returns:
        The most bytes alive at once beyond the weights, and floating-point operations.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        unet = copy.deepcopy(unet).train()
        if gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        images, timesteps = torch.empty(shape), torch.zeros(shape[0], dtype=torch.int64)
        labels = None if unet.config.num_class_embeds is None else timesteps
        with _StepCounter(unet) as counter:
            with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
                output = unet(images, timesteps, labels).sample
            output.float().square().mean().backward()
    return counter.peak, counter.flops


def _attention_flops(query, key, value, *args, **kwargs) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(gradient, query, key, value, *args, **kwargs) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# PyTorch's formulas by operation, and two for the CPU's attention kernel, which they leave out. Its counter itself is
# of no use here: it would keep alive what gradient checkpointing computes again.
FLOP_FORMULAS = FlopCounterMode(
    display=False,
    custom_mapping={
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    },
).flop_registry


class _StepCounter(TorchDispatchMode):
    """Counts the bytes of every tensor that an operation makes, until the last reference to its memory is gone, and
    floating-point operations."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.now = self.peak = self.flops = 0
        # Views of weights are results of operations too, and no new memory.
        self.known = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        results = function(*args, **kwargs)
        if formula := FLOP_FORMULAS.get(function._overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=results)
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                self._add(tensor.untyped_storage())
        return results

    def _add(self, storage: torch.UntypedStorage) -> None:
        self.known.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def available_memory(device: torch.device) -> tuple[int, int]:
    """Bytes that a process could still have on its device, and that the device has in all."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    memory = psutil.virtual_memory()
    return memory.available, memory.total
