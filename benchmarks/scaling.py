"""Estimated throughput on 1, 8 and 64 GPUs, COMPUTED from counts of a real step and not measured on a GPU.

    python benchmarks/scaling.py

Counted: the floating-point operations, bytes and kernels of a bf16 training step, by running it on tensors without
values; and the bytes that DistributedDataParallel reduces, by a hook in a real step. Assumed: the hardware in
`Assumptions`. An operation takes the time of its arithmetic or its memory traffic, whichever is longer; a step takes
the time of its operations, of their launch by the host, or of its exposed communication, whichever is longest. `binds`
names that one.
"""

import copy
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from measuring import finish, make_parser, start
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ddpm_hf import DDPMUNet2D, get_preset
from ddpm_hf.models.unet import paper_config


def _attention_flops(query, key, value, *args, **kwargs) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(gradient, query, key, value, *args, **kwargs) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# PyTorch's formulas by operation, and two for the CPU's attention kernel, which they leave out.
FLOP_FORMULAS = FlopCounterMode(
    display=False,
    custom_mapping={
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    },
).flop_registry


@dataclass(frozen=True)
class Assumptions:
    """H100 SXM 80 GB, eight per machine, from NVIDIA's data sheet, and the shares of it usually reached in practice.

    Attributes:
        flops, memory: bf16 operations per second without sparsity, and bytes per second.
        arithmetic_share, memory_share: the shares of these that convolutions and elementwise kernels reach.
        launch: seconds for the host to launch an operation in eager mode.
        nvlink, network: bytes per second that a GPU sends within its machine, and to others (400 Gbit/s each).
        link_share: the share of these that collectives reach.
        latency: seconds of a collective within a machine and between machines.
        gpus_per_machine: GPUs on one switch.
    """

    flops: float = 989e12
    arithmetic_share: float = 0.4
    memory: float = 3.35e12
    memory_share: float = 0.7
    launch: float = 5e-6
    nvlink: float = 450e9
    network: float = 50e9
    link_share: float = 0.7
    latency: tuple[float, float] = (30e-6, 100e-6)
    gpus_per_machine: int = 8


@dataclass
class Cost:
    """A step on one GPU: seconds of compute-bound and of memory-bound operations."""

    operations: int = 0
    flops: float = 0.0
    arithmetic: float = 0.0
    memory: float = 0.0

    @property
    def seconds(self) -> float:
        return self.arithmetic + self.memory


class _Counter(TorchDispatchMode):
    """Counts the arithmetic and bytes of every operation."""

    def __init__(self, machine: Assumptions):
        super().__init__()
        self.machine, self.cost = machine, Cost()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function.is_view or function._schema.name in ("aten::detach", "prim::device"):
            return result
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        formula = FLOP_FORMULAS.get(function._overloadpacket)
        self.add(float(formula(*args, **kwargs, out_val=result)) if formula else 0.0, size)
        return result

    def add(self, flops: float, size: float) -> None:
        self.cost.operations += 1
        self.cost.flops += flops
        arithmetic = flops / (self.machine.flops * self.machine.arithmetic_share)
        memory = size / (self.machine.memory * self.machine.memory_share)
        if arithmetic > memory:
            self.cost.arithmetic += arithmetic
        else:
            self.cost.memory += memory


def make_network(preset: str) -> DDPMUNet2D:
    return DDPMUNet2D(**paper_config(**get_preset(preset).model)).train()


def step_cost(unet: DDPMUNet2D, batch: int, machine: Assumptions) -> Cost:
    """Count a forward and backward pass in bf16 without computing it."""
    side, channels = unet.config.sample_size, unet.config.in_channels
    with FakeTensorMode(allow_non_fake_inputs=True):
        unet = copy.deepcopy(unet)
        images, timesteps = torch.empty(batch, channels, side, side), torch.zeros(batch, dtype=torch.int64)
        with _Counter(machine) as counter:
            with torch.autocast("cpu", torch.bfloat16):
                output = unet(images, timesteps).sample
            output.float().square().mean().backward()
    return counter.cost


def update_seconds(parameters: int, share: float, machine: Assumptions) -> float:
    """Fused AdamW (7 float32 values a weight), clipping (2) and the moving average (3); AdamW only on one's share."""
    return parameters * 4 * (9 * share + 3) / (machine.memory * machine.memory_share)


def reduced_bytes(unet: DDPMUNet2D) -> tuple[int, int]:
    """Bytes and collectives of a real DistributedDataParallel step of this network."""
    seen = []

    def hook(_, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        seen.append(bucket.buffer().numel() * bucket.buffer().element_size())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    model = DistributedDataParallel(unet)
    model.register_comm_hook(None, hook)
    side = 2 ** (len(unet.config.block_out_channels) + 1)
    for _ in range(2):  # buckets are put in order after the first step
        seen.clear()
        images = torch.zeros(1, unet.config.in_channels, side, side)
        model(images, torch.zeros(1, dtype=torch.int64)).sample.square().mean().backward()
    return sum(seen), len(seen)


def collective_seconds(sent: float, collectives: int, gpus: int, machine: Assumptions) -> tuple[float, str]:
    """Seconds of all-gathers and reduce-scatters of `sent` bytes (an all-reduce is one of each), and what limits them.

    Between machines every GPU sends its eighth of the tensor, so that all network cards of a machine are used.
    """
    if gpus == 1:
        return 0.0, ""
    inside = min(gpus, machine.gpus_per_machine)
    machines = gpus // inside
    nvlink = sent * (inside - 1) / inside / (machine.nvlink * machine.link_share)
    network = sent / inside * (machines - 1) / machines / (machine.network * machine.link_share)
    waiting = collectives * machine.latency[machines > 1]
    parts = {"NVLink": nvlink, "network": network, "latency of collectives": waiting}
    return sum(parts.values()), max(parts, key=parts.get)


def row(preset: str, cost: Cost, volume: tuple[int, int, int], batch: int, gpus: int, way: str) -> dict[str, Any]:
    """One row: seconds per step, what limits it, images per second."""
    machine = Assumptions()
    parameters, reduced, buckets = volume
    update = update_seconds(parameters, 1 / gpus if way == "FSDP" else 1.0, machine)
    if way == "DDP":  # all-reduce of float32 gradients, while the rest is still going backwards
        talk, link = collective_seconds(2 * reduced, 2 * buckets, gpus, machine)
        hides = cost.seconds * 2 / 3
    else:  # bf16 weights gathered twice, bf16 gradients scattered, float32 weights gathered for the average
        talk, link = collective_seconds(parameters * (2 + 2 + 2 + 4), 4 * buckets, gpus, machine)
        hides = cost.seconds
    host = cost.operations * machine.launch
    device = cost.seconds + update + max(0.0, talk - hides)
    binds = "arithmetic of the GPU" if cost.arithmetic > cost.memory else "memory bandwidth of the GPU"
    if talk - hides > cost.seconds:
        binds = link
    if host > device:
        binds = "the host, which starts operations"
    seconds = max(host, device)
    return {
        "network": preset,
        "way": way if gpus > 1 else "alone",
        "GPUs": gpus,
        "images a GPU": batch,
        "GPU ms": cost.seconds * 1e3,
        "update ms": update * 1e3,
        "exchange ms": talk * 1e3,
        "host ms": host * 1e3,
        "images/s": round(gpus * batch / seconds),
        "binds": binds,
    }


def main(argv: list[str]) -> None:
    options = make_parser(__doc__, "scaling").parse_args(argv)
    facts = start(options)
    machine = Assumptions()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    rows = []
    for preset, largest in (("ddpm-cifar10", 128), ("ddpm-256", 16))[: 1 if options.size == "quick" else 2]:
        unet = make_network(preset)
        paper = get_preset(preset).training["train_batch_size"]
        parameters = sum(parameter.numel() for parameter in unet.parameters())
        volume = (parameters, *reduced_bytes(unet))
        print(
            f"{preset}: {parameters:,} parameters, DDP reduces {volume[1]:,} bytes a step in {volume[2]} collectives"
        )
        # As many images as keep a GPU busy, then the paper's batch divided among all.
        cases = [(gpus, largest) for gpus in (1, 8, 64)] + [(gpus, max(1, paper // gpus)) for gpus in (8, 64)]
        costs = {batch: step_cost(unet, batch, machine) for batch in {batch for _, batch in cases}}
        one = step_cost(unet, 1, machine)
        print(f"{preset}: {one.flops / 1e9:.1f} GFLOP and {one.operations} operations in a step of one image\n")
        rows += [
            row(preset, costs[batch], volume, batch, gpus, way)
            for gpus, batch in cases
            for way in (("DDP", "FSDP") if gpus > 1 else ("DDP",))
        ]
    dist.destroy_process_group()
    options.assumptions = asdict(machine)
    print(f"COMPUTED, not measured, with {machine}\n")
    finish(options, rows, facts)


if __name__ == "__main__":
    main(sys.argv[1:])
