"""Do two processes that train end when their launcher is killed, and how soon?

    python benchmarks/orphans.py --deaths 100 --at_once 4

SIGKILL strikes the launcher at a random moment of the training; both processes then save, say so and should end by
themselves. `--launched` of the deaths are those of a real `accelerate launch`; in the others a process takes its place
that is forked from this one, which has imported everything, and that hosts the store of the process group as torch's
launcher does. `--at_once` of them run side by side, and so keep the machine busy. Prints a table and writes it as JSON
(`orphans.json`); the exit status is 1 if a process had to be killed, or did not save.
"""

import argparse
import gc
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import datasets  # noqa: F401  (imported once here, not in every process)
import matplotlib.figure  # noqa: F401
import psutil
import torch
from measuring import describe_machine, machine, print_table, write_report

from ddpm_hf.cli import train
from ddpm_hf.outputs.checkpoint import list_checkpoints

SETTINGS = (
    "--base_channels 8 --channel_multipliers 1 2 --blocks_per_level 1 --resolution 8 --train_batch_size 4 "
    "--max_train_steps 1000000 --checkpointing_steps 1000000 --preview_steps 0 --logging_steps 1 --mixed_precision no"
).split()
PROCESSES, PATIENCE = 2, 120.0
LAUNCH = "launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
TRAIN = Path(__file__).parents[1] / "scripts" / "train.py"


class IsWorker(BaseException):
    """Takes a forked process out of everything that its parent was doing, so that it ends as any Python does."""


def launched(folder: Path) -> int:
    """Process id of a real launcher."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *LAUNCH.split(), "--main_process_port", "0"]
    with (folder / "log").open("w") as log:
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        command += [str(TRAIN), *SETTINGS, "--output_dir", str(folder / "out")]
        return subprocess.Popen(command, stdout=log, stderr=log, env=variables, start_new_session=True).pid


def forked(folder: Path) -> int:
    """Process id of a forked launcher."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = os.fork()
    if launcher:
        return launcher
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    world = {"WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in world.items()})
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    for rank in range(PROCESSES):
        if os.fork() == 0:
            os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
            raise IsWorker([*SETTINGS, "--output_dir", str(folder / "out"), "--num_cpu_threads", "1"])
    # After the forks, as the workers of a launcher inherit nothing of its store.
    store = torch.distributed.TCPStore("127.0.0.1", port, None, True, timedelta(minutes=5), wait_for_workers=False)
    for _ in range(PROCESSES):
        os.wait()
    del store
    os._exit(0)


def death(folder: Path, launch, moment: random.Random) -> Iterator[dict | None]:
    """One launcher from start to end; yields None while there is something to wait for, and then what happened."""
    folder.mkdir(parents=True)
    pid, table, out = launch(folder), folder / "out" / "loss.csv", folder / "out"
    while not (table.is_file() and table.read_text().count("\n") > 3):
        yield None
    later = time.monotonic() + moment.uniform(0, 1)
    while time.monotonic() < later:
        yield None
    workers = psutil.Process(pid).children()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    killed, saved = time.monotonic(), None
    while any(map(is_running, workers)) and time.monotonic() < killed + PATIENCE:
        if saved is None and list_checkpoints(out):
            saved = time.monotonic()
        yield None
    ended = time.monotonic()
    stragglers = [worker for worker in workers if is_running(worker)]
    for worker in stragglers:
        worker.kill()
    text = (folder / "log").read_text()
    yield {
        "launcher": launch.__name__,
        "workers": len(workers),
        "stragglers": len(stragglers),
        "saved": bool(list_checkpoints(out)) and "stopped by the end of its launcher at step" in text,
        "clean": "Traceback" not in text,
        "seconds from death to checkpoint": (saved or ended) - killed,
        "seconds from checkpoint to exit": ended - (saved or ended),
    }


def is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def side_by_side(deaths: list[Iterator[dict | None]], at_once: int) -> Iterator[dict]:
    """What happened, as it happens, with so many of them under way."""
    waiting, under_way = list(deaths), []
    while waiting or under_way:
        while waiting and len(under_way) < at_once:
            under_way.append(waiting.pop(0))
        for each in list(under_way):
            if (found := next(each)) is not None:
                under_way.remove(each)
                yield found
        time.sleep(0.02)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deaths", type=int, default=100)
    parser.add_argument("--launched", type=int, default=10, help="How many of them of a real accelerate launch.")
    parser.add_argument("--at_once", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="Of the moments.")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/out/orphans"), help="Made anew.")
    options = parser.parse_args()
    shutil.rmtree(options.output_dir, ignore_errors=True)
    facts, moment = machine(), random.Random(options.seed)
    gc.freeze()  # forked processes share these objects, and need not copy them only to count references at their end
    ways = options.launched * [launched] + (options.deaths - options.launched) * [forked]
    deaths = [death(options.output_dir / f"{k:03d}", way, moment) for k, way in enumerate(ways)]
    found = []
    for each in side_by_side(deaths, options.at_once):
        found.append(each)
        print(f"{len(found)} of {len(ways)}: {each}", file=sys.stderr, flush=True)
    print(describe_machine(facts) + f", load {os.getloadavg()[0]:.1f} at the end\n")
    rows = []
    for way in ("launched", "forked"):
        of_way = [each for each in found if each["launcher"] == way]
        row = {"launcher": way, "deaths": len(of_way), "stragglers": sum(each["stragglers"] for each in of_way)}
        row |= {"not saved": sum(not each["saved"] for each in of_way)}
        for name in ("seconds from death to checkpoint", "seconds from checkpoint to exit"):
            row[f"{name}, at most"] = f"{max((each[name] for each in of_way), default=0):.1f}"
        rows.append(row)
    print_table(rows)
    write_report(options.output_dir / "orphans.json", rows, {"deaths": found})
    return int(any(each["stragglers"] or not each["saved"] for each in found))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except IsWorker as worker:
        arguments = worker.args[0]
    train.main(arguments)
