"""A fork: the child process has copies of its parent's objects, and must use none of what the two share.

    in use --fork--> in the parent: in use, as before
                 |
                 +-> in the child: abandoned, which is final

Both processes have the same sockets. A child that wrote to one would mix its commands with those of its parent.
A child that closed one would remove it from the epoll instance that the two loops share. So the child gets dead
sockets in their place, before it runs any code of its own. Each object refuses calls from then on. Objects that
were not used before the fork are as good as new.

`os.register_at_fork` runs the handlers in the child. Comparing process ids would cost a system call per statement.
"""

from __future__ import annotations

import os
import socket
from asyncio import BaseTransport
from collections.abc import Callable
from contextlib import suppress
from weakref import WeakMethod

from hubbub.errors import Unavailable

_abandoning: set[WeakMethod[Callable[[], None]]] = set()


def abandon_in_child(abandon: Callable[[], None]) -> None:
    """Have this method called in each child process that inherits its object, which may be collected meanwhile.

    The object refuses all calls from then on, if it was in use. The method must not wait or raise.
    """
    _abandoning.add(WeakMethod(abandon, _abandoning.discard))


def _abandon_all() -> None:
    # All stay alive until the last is abandoned. A pool drops its idle connections. One that is collected before
    # it has a dead socket would remove the parent's socket from the epoll instance.
    methods = [method() for method in tuple(_abandoning)]
    for abandon in methods:
        if abandon is not None:
            abandon()


os.register_at_fork(after_in_child=_abandon_all)


def forked() -> Unavailable:
    """The error of a call in a child process."""
    reason = "it was opened before a fork, by the parent process: open a hub in each process, after the fork"
    return Unavailable("hub", reason, retryable=False)


def replace_with_dead_socket(transport: BaseTransport | None) -> None:
    """Replace the transport's socket by a dead one under the same descriptor. In the parent nothing changes.

    The descriptor keeps its number, so that the transport cannot close or use what gets the number next.
    """
    inherited = None if transport is None else transport.get_extra_info("socket")
    if inherited is None or inherited.fileno() < 0:
        return
    with suppress(OSError):
        dead, other = socket.socketpair()
        with dead, other:
            os.dup2(dead.fileno(), inherited.fileno(), inheritable=False)
