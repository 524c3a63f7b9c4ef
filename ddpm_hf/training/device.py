"""The device of a run: the Accelerator with its precision and trackers, and what a card says of the machine."""

import os
import platform
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, parse_flag_from_env
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..cores import check_processes, use_cores
from ..outputs.folder import TRACKER_PROJECT
from ..settings.config import Config


def native_precision(device: torch.device) -> str:
    """ "bf16" if the device has instructions for it, else "no": emulated, it is slower than float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return "bf16" if native else "no"


def has_fused_optimizer(device: torch.device) -> bool:
    """Whether PyTorch has a fused AdamW there; on CPUs it is three times as fast as the default."""
    return device.type in ("cpu", "cuda")


def training_attention(accelerator: Accelerator) -> AbstractContextManager:
    """In bf16 on a CPU, attention by matrix products: the fused one's backward pass takes eight times as long there as
    in float32, which made it a fifth of a small network's step."""
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device, without waiting for CUDA to finish its work.

    Elsewhere the copy blocks: Apple's GPUs may read host memory after it was freed (pytorch issue 189690).
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def make_accelerator(config: Config) -> Accelerator:
    """The Accelerator for these settings; of `--mixed_precision auto` it has the launcher's or the device's own."""
    options, precision = config.optimization, config.optimization.mixed_precision
    if precision == "auto":
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # `accelerate launch` sets it always
        # Created as Accelerator would: the state is shared, so two CPU processes wrongly taken for one would stay so.
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
        precision = native_precision(state.device) if precision == "no" else precision
    output_dir, trackers = config.run.output_dir, config.run.report_to
    accelerator = Accelerator(
        mixed_precision=precision,
        # Our data never end within an optimizer step, and Accelerate does not see our loader.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=options.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=None if trackers == "none" else trackers,
        project_config=ProjectConfiguration(output_dir, f"{output_dir}/{config.run.logging_dir}"),
    )
    check_processes()
    use_cores(accelerator.device, config.run.num_cpu_threads)
    return accelerator


def start_trackers(accelerator: Accelerator, config: Config, run_id: str, step: int) -> None:
    """Start the trackers of `--report_to`; those that know this run continue it after optimizer step `step`."""
    if config.run.report_to == "none":
        return
    if accelerator.is_main_process:
        Path(accelerator.logging_dir).mkdir(parents=True, exist_ok=True)
    same_run = {
        "wandb": {"id": run_id, "resume": "allow", "dir": accelerator.logging_dir},
        "trackio": {"name": run_id, "resume": "allow"},
        # It identifies a run by its folder, and hides what an earlier session wrote for later steps.
        "tensorboard": {"purge_step": step + 1},
    }
    settings = {name: str(value) for name, value in config.flags().items()}
    accelerator.init_trackers(TRACKER_PROJECT, settings, same_run)


def describe_hardware(accelerator: Accelerator) -> str:
    """The hardware for the card: "2 x NVIDIA H100", "AMD EPYC (2 processes of 8 threads)"."""
    device, count = accelerator.device, accelerator.num_processes
    if device.type == "cuda":
        return f"{count} x {torch.cuda.get_device_name(device)}"
    if device.type != "cpu":
        return f"{processor_name()} ({device.type})"
    threads = torch.get_num_threads()
    processes = f"{count} processes of " if count > 1 else ""
    return f"{processor_name()} ({processes}{threads} thread{'s' * (threads > 1)})"


def processor_name() -> str:
    """The processor's name from Linux, or else from Python."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def peak_memory(device: torch.device) -> int | None:
    """Peak bytes of this process on its GPU, else in main memory; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
