"""The step between fork and server: a script that becomes the server.

    python -I -S launch.py ORDER        ORDER: an `Order` as JSON

What has to happen in the child before exec (drop the rights of root, ask to die with the owner, sign the lock)
needs Python, and Python must not run in the forked child of a process with threads, as `preexec_fn` does. So the
child is a fresh interpreter that does it and then is replaced by the server. Only the standard library is here.
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
    """What to become, and how."""

    program: list[str]
    lock: int
    """A descriptor that is locked; it stays open in the server, and so does the lock."""
    handed: str | None
    """A folder to hand over by descriptor, to a user that cannot come to it by the path in `program`."""
    port: int
    uid: int | None
    gid: int | None
    owner: int | None
    """The process to die with; None for a server that outlives whoever started it."""
    last_signal: int
    """What the server gets when its owner dies."""


def server_environment() -> dict[str, str]:
    """The environment of a server: nothing that could hold a secret or, like PGDATA and PGPORT, configure it."""
    passed_on = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {**passed_on, "LC_ALL": "C"}


def started(pid: int) -> str:
    """When the process started, in clock ticks since boot: with it a pid is never mistaken for a later one.

    Empty where the system does not say (no /proc: macOS), or when there is no such process.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    # The second field is the name, in parentheses, and may itself contain spaces and parentheses.
    return stat.rpartition(")")[2].split()[19]


def become(order: Order) -> None:
    """Turns this process into the server. Returns only by raising."""
    if order["owner"] is None and os.fork():
        # The server belongs to nobody: no wait() of the command that started it will ever see it.
        os._exit(0)
    os.umask(0o077)
    program = order["program"] if order["handed"] is None else _handed(order["program"], order["handed"])
    # Loaded now: the next user may not be able to read the standard library, which may lie below /root.
    libc = ctypes.CDLL(None) if order["owner"] is not None and sys.platform == "linux" else None
    _drop_rights(order["uid"], order["gid"])
    if libc is not None and order["owner"] is not None:
        # After the change of user: the kernel forgets the wish on every such change.
        _die_with(order["owner"], order["last_signal"], libc)
    _sign(order)
    os.execve(program[0], program, server_environment())  # noqa: S606 - the start of the server, without a shell


def _handed(program: list[str], folder: str) -> list[str]:
    """The program with this folder, which we can open and the server will not, as a descriptor that it inherits.

    The kernel follows such a path from the open folder, and asks for no right to any folder above it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(descriptor, True)
    return [part.replace(folder, f"/proc/self/fd/{descriptor}") for part in program]


def _drop_rights(uid: int | None, gid: int | None) -> None:
    if uid is None or gid is None:
        return
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _die_with(owner: int, last_signal: int, libc: ctypes.CDLL) -> None:
    """Asks the kernel for a signal when the owner dies. Linux alone knows this.

    Elsewhere a server outlives an owner that was killed, until `hubbub down`.
    """
    if libc.prctl(PR_SET_PDEATHSIG, last_signal, 0, 0, 0) != 0:
        raise OSError("prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != owner:
        os._exit(1)  # it died before the wish was heard


def _sign(order: Order) -> None:
    """Writes into the lock file who holds it, in the form of `hubbub.embedded.process.Holder`."""
    pid = os.getpid()
    signature = {
        "pid": pid,
        "started": started(pid),
        "port": order["port"],
        "detached": order["owner"] is None,
    }
    os.ftruncate(order["lock"], 0)
    os.pwrite(order["lock"], json.dumps(signature).encode(), 0)


if __name__ == "__main__":
    become(json.loads(sys.argv[1]))
