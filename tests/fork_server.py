"""Processes that have their imports behind them, which cost more than any tiny run does: fork_server.py FOLDER

The server listens on two sockets in FOLDER and is forked for every command of a test session. "bare" gives a process
that has imported PyTorch and the like, and nothing of Hugging Face, which reads the environment on import, or of ours;
"full" one that has imported all. A command is three standard streams and a line of JSON, the arguments of `become`;
the answers are the process's id and, once it has ended, its exit status, four bytes each. forked.py gives commands.
Nothing is imported before the first one. The server ends when its stdin does.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import traceback
from pathlib import Path


def main(folder: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path[0] = str(Path(__file__).parents[1])  # the package beside these tests, if another one is installed
    bare, full = (listen(Path(folder, name)) for name in ("bare", "full"))
    print(flush=True)
    wait_for(bare, full)
    import_others()
    mine = bare
    if os.fork() == 0:
        mine = full
        wait_for(full)
        import_all()
    signal.signal(signal.SIGCHLD, reap)
    gc.freeze()  # Accelerate collects garbage at the end of a run: not among all these imports
    while True:
        wait_for(mine)
        connection, _ = mine.accept()
        if os.fork() == 0:
            serve(connection)
        connection.close()


def import_others() -> None:
    import matplotlib.backends.backend_agg  # noqa: F401
    import pandas  # noqa: F401
    import pyarrow.dataset  # noqa: F401
    import scipy.optimize
    import scipy.stats  # noqa: F401
    import torch._dynamo
    import torch.distributed.fsdp  # noqa: F401


def import_all() -> None:
    import datasets  # noqa: F401

    import ddpm_hf.evaluation.evaluator
    import ddpm_hf.systems.imagen
    import ddpm_hf.systems.stable_diffusion
    import ddpm_hf.training.start  # noqa: F401


def listen(file: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(file))
    listener.listen(100)
    return listener


def wait_for(*listeners: socket.socket) -> None:
    if sys.stdin in select.select([sys.stdin, *listeners], [], [])[0]:
        os._exit(0)


def reap(*_: object) -> None:
    """Those that `serve`."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def serve(connection: socket.socket) -> None:
    """Start the process that is asked for, and wait for its end. Does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    command = json.loads(connection.makefile().readline())
    pid = os.fork()
    if pid == 0:
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        connection.sendall(os.getpid().to_bytes(4, "little"))
        connection.close()
        os._exit(status_of(command))
    for stream in streams:
        os.close(stream)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):  # there may be nobody any more
        connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "little", signed=True))
    os._exit(0)


def status_of(command: dict) -> int:
    """Do it to the end, as Python does but for the half second in which it takes itself apart."""
    status = 1
    try:
        become(**command)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def become(words: list[str], variables: dict[str, str], folder: str, processes: int = 1) -> None:
    """As if Python had been started in this folder with these words and variables.

    Args:
        words: a script, `-m` and a module or `-c` and a program, and its arguments.
        processes: that the launcher starts which this one is to become; 1 if it is none.
    """
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    if "datasets" in sys.modules and "HF_DATASETS_CACHE" in variables:  # which has read this already
        sys.modules["datasets"].config.HF_DATASETS_CACHE = Path(variables["HF_DATASETS_CACHE"])
    if processes > 1:
        fork_ranks(processes)
    words = words[1:] if words[0] == "-u" else words
    is_script = words[0] not in ("-m", "-c")
    first = str(Path(words[0]).parent) if is_script else ""
    sys.path[:1] = [first, *filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = words if is_script else words[1:]
    if is_script:
        runpy.run_path(words[0], run_name="__main__")
    elif words[0] == "-m":
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        exec(words[1], {"__name__": "__main__"})


def fork_ranks(count: int) -> None:
    """What torch's launcher does: a process for each rank, and the store in which they meet. Returns in the ranks."""
    from torch.distributed import TCPStore

    port_of, tell_port = os.pipe()
    ranks = {}
    for rank in map(str, range(count)):
        pid = os.fork()
        if pid == 0:
            os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(int(os.read(port_of, 8)))}
            os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
            os.environ |= {"ACCELERATE_MIXED_PRECISION": "no"}
            return
        ranks[pid] = None
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.write(tell_port, f"{store.port:8d}".encode() * count)
    while None in ranks.values():
        pid, status = os.wait()
        ranks[pid] = os.waitstatus_to_exitcode(status)
        if ranks[pid] != 0:  # one that fails takes the others along
            for other in (pid for pid, status in ranks.items() if status is None):
                os.kill(other, signal.SIGKILL)
            sys.exit(ranks[pid] if ranks[pid] > 0 else 1)
    sys.exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
