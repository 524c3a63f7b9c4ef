"""How many of the machine's CPU cores a process takes."""

import ctypes
import os
import sys
from pathlib import Path

import psutil
import torch
from accelerate import PartialState

# `accelerate launch` sets this for the processes it starts.
LAUNCHER_MARK = "ACCELERATE_MIXED_PRECISION"
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of all CPUs in a period, and the period (cgroup v2)
# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


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


def check_processes() -> None:
    """Raises ValueError if processes that were launched together do not know of each other, which is how Accelerate
    starts several on a machine without GPUs: each would train, or draw, all there is."""
    launched, found = int(os.environ.get("WORLD_SIZE") or 1), PartialState().num_processes
    if launched > found:  # fewer are not an error: on TPUs no variable says how many there are
        raise ValueError(
            f"WORLD_SIZE={launched} says that as many processes were launched, but they do not find each other and "
            "would each do all of the work; set ACCELERATE_USE_CPU=true to use several on CPUs, launch one "
            "(--num_processes 1), or unset WORLD_SIZE if there is only this one"
        )


def describe_processes(device: torch.device, processes: int) -> str:
    """Such as "2 process(es) on cpu, 4 thread(s) each"."""
    threads = f", {torch.get_num_threads()} thread(s) each" if device.type == "cpu" else ""
    return f"{processes} process(es) on {device.type}{threads}"
