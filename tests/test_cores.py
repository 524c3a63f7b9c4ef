"""How many threads a process takes: against real launcher processes, affinities and quotas."""

import ctypes
import os
import subprocess
import sys

import psutil
import pytest
import torch
from accelerate import PartialState

from ddpm_hf import cores
from ddpm_hf.cores import available_cores, check_processes, describe_processes, idle_cpus, use_cores

CPU = torch.device("cpu")
LAUNCHED = {"ACCELERATE_MIXED_PRECISION": "no"}  # as accelerate launch marks its processes
ONE, FLAG = {"OMP_NUM_THREADS": "1"}, ("--num_cpu_threads_per_process", "1")


@pytest.fixture
def threads_of(monkeypatch):
    """Threads that `use_cores` gives a process on a machine of eight cores; the launcher is a process of its own."""
    before = torch.get_num_threads()
    launchers = []

    def run(
        variables: dict,
        launcher: dict | None = None,
        flags: tuple[str, ...] = (),
        wanted: int | None = None,
        program: str = "accelerate",
        idle: float = 16.0,
    ) -> int:
        for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE", *LAUNCHED):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        if launcher is not None:
            command = [sys.executable, "-S", "-c", "print(flush=True); input()", program, *flags]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            launchers.append(subprocess.Popen(command, env=launcher, **pipes))
            launchers[-1].stdout.readline()  # from now on its command line can be read
            monkeypatch.setattr(os, "getppid", lambda: launchers[-1].pid)
        monkeypatch.setattr(cores, "available_cores", lambda: 8)
        monkeypatch.setattr(cores, "idle_cpus", lambda: idle)
        torch.set_num_threads(1)  # what PyTorch makes of OMP_NUM_THREADS=1 when it starts
        use_cores(CPU, wanted)
        return torch.get_num_threads()

    yield run
    for process in launchers:
        process.communicate(b"\n")
    torch.set_num_threads(before)


def test_the_cores_are_shared_by_the_processes_of_a_launcher_that_was_told_nothing(threads_of):
    assert threads_of({}) == 8
    assert threads_of(LAUNCHED | ONE, launcher={}) == 8
    assert threads_of(LAUNCHED | ONE | {"LOCAL_WORLD_SIZE": "3"}, launcher={}) == 2
    assert threads_of(LAUNCHED | ONE | {"LOCAL_WORLD_SIZE": "16"}, launcher={}) == 1
    assert describe_processes(CPU, 16) == "16 process(es) on cpu, 1 thread(s) each"


def test_a_process_on_its_own_leaves_busy_cores_to_others(threads_of):
    # Of 16 logical CPUs on 8 cores.
    assert [threads_of({}, idle=idle) for idle in (16, 8.4, 7.6, 5.1, 0.2)] == [8, 8, 8, 5, 1]
    assert threads_of(LAUNCHED | ONE | {"LOCAL_WORLD_SIZE": "2"}, launcher={}, idle=4) == 4, "it may be the other one"
    assert threads_of(ONE, idle=4) == 1 and threads_of({}, wanted=3, idle=0) == 3


def test_only_cpus_that_a_process_may_use_count_as_idle(monkeypatch):
    assert (
        0 <= idle_cpus() <= len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count()))
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(psutil, "cpu_percent", lambda seconds, percpu: [0.0, 100.0, 25.0, 0.0] + [100.0] * 60)
    assert idle_cpus() == 2.75


def test_what_the_user_chose_is_respected(threads_of):
    assert threads_of(ONE) == 1
    assert threads_of(LAUNCHED | ONE, launcher={}, program="bash") == 1, "of a shell that exports the launcher's mark"
    assert threads_of(LAUNCHED | ONE, launcher=ONE) == 1
    assert threads_of(LAUNCHED | ONE, launcher={}, flags=FLAG) == 1
    assert threads_of(LAUNCHED | ONE, launcher={}, flags=("--num-cpu-threads-per-process=1",)) == 1
    assert threads_of(LAUNCHED | ONE, launcher=ONE, flags=FLAG, wanted=3) == 3
    with pytest.raises(ValueError, match="--num_cpu_threads must be at least 1, got 0"):
        use_cores(CPU, 0)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds a process to CPUs")
def test_affinity_and_quota_leave_fewer_cores_than_the_machine_has(monkeypatch, tmp_path):
    allowed, quota = os.sched_getaffinity(0), tmp_path / "cpu.max"
    monkeypatch.setattr(cores, "_CPU_QUOTA", quota)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert available_cores() == 8
    for text, count in (("max 100000", 8), ("350000 100000", 3), ("50000 100000", 1)):
        quota.write_text(f"{text}\n")
        assert available_cores() == count
    monkeypatch.undo()
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="only glibc is told to keep memory")
def test_large_blocks_come_from_memory_that_the_process_keeps(command, tmp_path):
    """glibc gets a block from the kernel, and gives it back when it is freed, or takes it from its heap."""
    script = tmp_path / "script.py"
    script.write_text("""
import ctypes, torch
from ddpm_hf.cores import use_cores

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks from_kernel e f g h i".split()]

def megabytes_from_kernel(block):
    before = info().from_kernel
    blocks.append(torch.ones(block, 1 << 18))
    return (info().from_kernel - before) >> 20

info, blocks = ctypes.CDLL(None).mallinfo2, []
info.restype = Info
first = megabytes_from_kernel(28)
use_cores(torch.device("cpu"))
print(first, megabytes_from_kernel(28))
""")
    run = command(script)
    assert run.wait() == 0, run.err
    assert run.out.split() == ["28", "0"]


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch):
    """As `accelerate launch --num_processes 2` leaves them on a machine without GPUs."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    state = PartialState(cpu=True)
    for alone in ("1", ""):
        monkeypatch.setenv("WORLD_SIZE", alone)
        check_processes()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE=2 says .*; set ACCELERATE_USE_CPU=true .* or unset WORLD_SIZE"):
        check_processes()
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setitem(state._shared_state, "num_processes", 8)  # as on TPUs, which torch_xla starts without it
    check_processes()
