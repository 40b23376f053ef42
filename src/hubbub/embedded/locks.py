"""Locks that the kernel takes back: flock on a file.

Such a lock belongs to the open file, not to a process. A process that inherits the descriptor shares the lock, and
the lock is free once the last of these processes has ended, in whatever way. So a held lock proves that a process
lives, which a file with a pid does not.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import NamedTuple

# A start or stop of a server takes 0.05 to 1 s: the wait for it is at most this much longer.
MAX_PAUSE_SECONDS = 0.1


class Lock(NamedTuple):
    """A lock that is held, by its open descriptor."""

    descriptor: int

    def release(self) -> None:
        """Release it in this process. It stays held as long as a process lives that inherited the descriptor."""
        os.close(self.descriptor)


def try_acquire(path: Path) -> Lock | None:
    """The lock of this file, which is created if it is missing; None when it is held.

    It may be held for an instant by a call of `is_held`; `acquire` tries again.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    lock = Lock(descriptor)
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The file may have been deleted since it was opened. Then no other process can see this lock.
        if os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):  # noqa: PTH116 - see above
            return lock
    lock.release()
    return None


async def acquire(path: Path, seconds: float) -> Lock | None:
    """The lock of this file once it is free; None when it stays held for `seconds`."""
    for pause in pauses(seconds):
        if (lock := try_acquire(path)) is not None:
            return lock
        await asyncio.sleep(pause)
    return None


def is_held(path: Path) -> bool:
    """Whether any process holds the lock of this file, this process included."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def pauses(seconds: float) -> Iterator[float]:
    """Growing pauses between two attempts, in seconds; they end when `seconds` have passed."""
    deadline = monotonic() + seconds
    pause = 0.005
    while monotonic() < deadline:
        yield pause
        pause = min(pause * 1.5, MAX_PAUSE_SECONDS)
