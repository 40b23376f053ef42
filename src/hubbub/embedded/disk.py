"""Files that are private, whole, and on the disk when they are said to be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hubbub.embedded.account import Account
from hubbub.errors import Unavailable


def write_private(path: Path, content: bytes, account: Account | None = None) -> None:
    """Writes a file that its owner alone may read, all of it or nothing, and waits until it is on the disk.

    It belongs to `account` if one is given.
    """
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if account is not None:
            os.fchown(descriptor, account.uid, account.gid)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    new.rename(path)
    sync_folder(path.parent)


def private_folder(path: Path, account: Account | None) -> None:
    """A folder that one user alone may enter, `account` if one is given, made if need be."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if account is not None:
        os.chown(path, account.uid, account.gid)


def sync_folder(folder: Path) -> None:
    """Waits until the names in the folder are on the disk, those of files renamed a moment ago above all."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def delete(folder: Path, names: Iterable[str]) -> None:
    """Deletes these entries of the folder, with all they hold, and the folder itself if nothing is left in it."""
    for path in (folder / name for name in names):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    with suppress(OSError):  # not empty: what else is in it is not ours
        folder.rmdir()


@contextmanager
def failures(what: str) -> Iterator[None]:
    """Says as Unavailable what the system refuses here: a disk that is full, a folder that may not be written."""
    try:
        yield
    except OSError as error:
        raise Unavailable("embedded", f"{what}: {error}", retryable=False) from error
