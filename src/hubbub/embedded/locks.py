"""Locks that the kernel takes back: flock on a file.

Such a lock belongs to the open file, not to a process. Whoever inherits the descriptor shares it, and it is free
when the last of them is gone, however it went. So a held lock is proof of life, which a file with a pid is not.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic

LONGEST_PAUSE_SECONDS = 0.1


class Lock:
    """A lock that is held, by its open descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def release(self) -> None:
        """Lets go of it here. It stays held as long as a process that inherited the descriptor lives."""
        os.close(self.descriptor)


def take(path: Path) -> Lock | None:
    """The lock of this file, which is made if need be; None when somebody else holds it.

    None may also be a look of `is_held` that came in between: see `taken`.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    lock = Lock(descriptor)
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The file may have been deleted since it was opened: then this locks nothing that others can see.
        if os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):  # noqa: PTH116 - see above
            return lock
    lock.release()
    return None


async def taken(path: Path, seconds: float) -> Lock | None:
    """The lock of this file once it is free; None when somebody else holds it for longer than that."""
    for pause in pauses(seconds):
        if (lock := take(path)) is not None:
            return lock
        await asyncio.sleep(pause)
    return None


def is_held(path: Path) -> bool:
    """Whether anyone holds the lock of this file, this process included."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def pauses(seconds: float) -> Iterator[float]:
    """Pauses between questions, in seconds, growing; they end when `seconds` have passed."""
    deadline = monotonic() + seconds
    pause = 0.005
    while monotonic() < deadline:
        yield pause
        pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)
