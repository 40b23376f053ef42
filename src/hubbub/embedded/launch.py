"""A script that prepares its own process and then replaces itself by the server.

    python -I -S launch.py ORDER        ORDER: an `Order` as JSON

The preparation (drop the rights of root, request a signal at the death of the owner, write the holder into the
lock file) needs Python, and Python must not run in the forked child of a process with threads, as `preexec_fn`
does. So the child is a fresh interpreter, which exec then replaces by the server. It imports the standard
library only.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import TypedDict

PR_SET_PDEATHSIG = 1


class Order(TypedDict):
    """The program to run, and the lock, user and owner of its process."""

    program: list[str]
    lock: int
    """A descriptor with the lock of the server. It stays open in the server, so the lock stays held."""
    folder_by_descriptor: str | None
    """A folder that the user of the server cannot reach by its path in `program`; it gets a descriptor instead."""
    port: int
    uid: int | None
    gid: int | None
    owner: int | None
    """The process whose death ends the server; None for a server that outlives the process that started it."""
    death_signal: int
    """The signal for the server when its owner dies."""


def server_environment() -> dict[str, str]:
    """The environment of a server, without any variable that may hold a secret or configure it, such as PGDATA."""
    passed_on = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {**passed_on, "LC_ALL": "C"}


def start_time(pid: int) -> str:
    """When the process started, in clock ticks since boot. It distinguishes it from a later one with the same pid.

    Empty on a system without /proc, such as macOS, and when there is no such process.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    # The second field is the name, in parentheses, and may itself contain spaces and parentheses.
    return stat.rpartition(")")[2].split()[19]


def replace_by_server(order: Order) -> None:
    """Replace this process by the server."""
    if order["owner"] is None and os.fork():
        # The server becomes a child of init. The command that started it never waits for it.
        os._exit(0)
    os.umask(0o077)
    program = _program(order)
    # Loaded now, because the user of the server may be unable to read the standard library, as below /root.
    libc = ctypes.CDLL(None) if order["owner"] is not None and sys.platform == "linux" else None
    if order["uid"] is not None and order["gid"] is not None:
        os.setgroups([])
        os.setgid(order["gid"])
        os.setuid(order["uid"])
    if libc is not None:
        # After the change of user, because the kernel resets the request on every such change. Only Linux has it:
        # on other systems a server outlives a killed owner, until `hubbub down`.
        if libc.prctl(PR_SET_PDEATHSIG, order["death_signal"], 0, 0, 0) != 0:
            raise OSError("prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != order["owner"]:
            os._exit(1)  # the owner died before the request
    _write_holder(order)
    os.execve(program[0], program, server_environment())  # noqa: S606 - the start of the server, without a shell


def _program(order: Order) -> list[str]:
    """The program, with the path of the folder replaced by that of an open descriptor which the server inherits.

    The kernel resolves such a path from the open folder, and checks no rights to the folders above it.
    """
    folder = order["folder_by_descriptor"]
    if folder is None:
        return order["program"]
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(descriptor, True)
    return [part.replace(folder, f"/proc/self/fd/{descriptor}") for part in order["program"]]


def _write_holder(order: Order) -> None:
    """Write this process into the lock file, in the form of `hubbub.embedded.process.Holder`."""
    pid = os.getpid()
    holder = {"pid": pid, "started": start_time(pid), "port": order["port"], "detached": order["owner"] is None}
    os.ftruncate(order["lock"], 0)
    os.pwrite(order["lock"], json.dumps(holder).encode(), 0)


if __name__ == "__main__":
    replace_by_server(json.loads(sys.argv[1]))
