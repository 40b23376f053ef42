from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from hubbub.embedded import locks


def test_lock_is_held_once(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    assert not locks.is_held(file)
    first = locks.try_acquire(file)
    assert first is not None
    assert locks.is_held(file)
    assert locks.try_acquire(file) is None
    first.release()
    assert not locks.is_held(file)


def test_checking_a_lock_neither_takes_nor_creates_it(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    assert not locks.is_held(file)
    assert not file.exists()


def test_lock_is_held_until_the_process_that_inherited_it_ends(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    lock = locks.try_acquire(file)
    assert lock is not None
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock.descriptor]
    ) as heir:
        lock.release()
        assert locks.is_held(file)
        heir.kill()
    assert not locks.is_held(file)


def test_lock_of_deleted_file_is_not_acquired(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    old = locks.try_acquire(file)
    assert old is not None
    file.unlink()
    new = locks.try_acquire(file)
    assert new is not None
    assert not os.path.samestat(os.fstat(old.descriptor), os.fstat(new.descriptor))
    old.release()
    assert locks.is_held(file)
    new.release()


async def test_acquire_waits_for_the_lock_and_gives_up(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    lock = locks.try_acquire(file)
    assert lock is not None
    assert await locks.acquire(file, 0.05) is None
    asyncio.get_running_loop().call_later(0.05, lock.release)
    later = await locks.acquire(file, 30)
    assert later is not None
    later.release()


def test_lock_file_is_private(tmp_path: Path) -> None:
    lock = locks.try_acquire(tmp_path / "lock")
    assert lock is not None
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
    lock.release()
