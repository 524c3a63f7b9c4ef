"""The machine of a run: processor, cores and memory, and the Accelerator with its precision and trackers."""

import ctypes
import os
import platform
import sys
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, parse_flag_from_env

from ..systems.config import Config
from .interruption import LAUNCHER_MARK
from .output import TRACKER_PROJECT

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of all CPUs in a period, and the period (cgroup v2)
# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


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


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device, without waiting for CUDA to finish its work.

    Elsewhere the copy blocks: Apple's GPUs may read host memory after it was freed (pytorch issue 189690).
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def make_accelerator(config: Config) -> Accelerator:
    """The Accelerator for these settings; of `--mixed_precision auto` it has the device's own."""
    options, precision = config.optimization, config.optimization.mixed_precision
    if precision == "auto":
        # Created as Accelerator would: the state is shared, so two CPU processes wrongly taken for one would stay so.
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
        precision = native_precision(state.device)
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
    use_cores(accelerator.device, config.run.num_cpu_threads)
    return accelerator


def use_cores(device: torch.device, wanted: int | None = None) -> None:
    """On a CPU, keep freed memory, and set PyTorch's threads; by default to this process's share of the cores.

    An `OMP_NUM_THREADS` set by the user is respected. A process on its own leaves out cores that others keep busy now:
    its threads wait for the slowest, and one that has to share a core can make a step a hundred times slower.

    Raises:
        ValueError: if `wanted` is below 1.
    """
    if wanted is not None and wanted < 1:
        raise ValueError(f"--num_cpu_threads must be at least 1, got {wanted}")
    if device.type == "cpu":
        _keep_freed_memory()
    if wanted is None and device.type == "cpu" and not _threads_are_chosen():
        processes, cores = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), available_cores()
        if processes == 1:  # several would count each other as busy
            cores = min(cores, round(idle_cpus()))
        wanted = max(1, cores // processes)
    if wanted is not None:
        torch.set_num_threads(wanted)


def _keep_freed_memory() -> None:
    """Let glibc reuse what is freed: given back to the kernel, it takes an eighth of a small network's step to return.

    A user's own settings of malloc are respected.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt") or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 25)  # the largest that glibc takes
    libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def _threads_are_chosen() -> bool:
    """Whether the user set OMP_NUM_THREADS, rather than `accelerate launch`, which sets it to 1 by default.

    The launcher's environment and command line show it; if they cannot be read, it counts as set by the user.
    """
    if not os.environ.get("OMP_NUM_THREADS"):
        return False
    if LAUNCHER_MARK not in os.environ:
        return True
    try:
        launcher = psutil.Process(os.getppid())
        words = launcher.cmdline()
        flags = (word.partition("=")[0].replace("-", "_") for word in words)
        is_chosen = launcher.environ().get("OMP_NUM_THREADS") or "__num_cpu_threads_per_process" in flags
        return bool(is_chosen) or not any("accelerate" in word for word in words)
    except psutil.Error:
        return True


def available_cores() -> int:
    """Physical cores, or fewer if CPU affinity or a container's quota limits this process."""
    limits = [psutil.cpu_count(logical=False) or os.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):  # on Linux
        limits.append(len(os.sched_getaffinity(0)))
    if _CPU_QUOTA.is_file():
        quota, period = _CPU_QUOTA.read_text().split()
        limits += [] if quota == "max" else [max(1, int(quota) // int(period))]
    return min(limits)


def idle_cpus(seconds: float = 0.3) -> float:
    """How many of the logical CPUs that this process may use nobody uses, while it sleeps for so long."""
    busy = psutil.cpu_percent(seconds, percpu=True)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(busy))
    return sum(1 - busy[cpu] / 100 for cpu in allowed if cpu < len(busy))


def describe_processes(device: torch.device, processes: int) -> str:
    """Such as "2 process(es) on cpu, 4 thread(s) each"."""
    threads = f", {torch.get_num_threads()} thread(s) each" if device.type == "cpu" else ""
    return f"{processes} process(es) on {device.type}{threads}"


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
