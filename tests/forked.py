"""Clients of the fork server: a function, and a program that stands in for Python.

The program is given what Python would be: `-m`, `-c` or a script, and arguments. What it starts in its place, with its
streams, folder and environment, has its imports behind it; the program itself imports next to nothing.
"""

import json
import os
import shlex
import socket
import sys
from pathlib import Path


def start(kind: str, streams: list[int], **command: object) -> tuple[socket.socket, int]:
    """Start a process of this kind ("bare" or "full") with these three standard streams.

    Args:
        command: the arguments of `fork_server.become`.

    Returns:
        A connection that gives its exit status at its end, and its id.
    """
    server = socket.socket(socket.AF_UNIX)
    server.connect(os.path.join(os.environ["FORK_SERVER"], kind))
    socket.send_fds(server, [b"\n"], streams)
    server.sendall(json.dumps(command).encode() + b"\n")
    return server, int.from_bytes(server.recv(4), "little")


def end_of(server: socket.socket) -> int:
    """The exit status of a process; negative after a signal."""
    return int.from_bytes(server.recv(4), "little", signed=True)


def program() -> Path:
    """Where it is, by which it can stand for `sys.executable`."""
    return Path(os.environ["FORK_SERVER"], "python")


def write_program(file: Path) -> None:
    words = shlex.join([sys.executable, "-IS", __file__])
    file.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    file.chmod(0o755)


if __name__ == "__main__":
    connection, _ = start(
        "full", [0, 1, 2], words=sys.argv[1:], variables=dict(os.environ), folder=os.getcwd(), processes=1
    )
    status = end_of(connection)
    sys.exit(status if status >= 0 else 128 - status)
