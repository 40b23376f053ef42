"""A file system so small that a test can fill it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOSPC
from io import FileIO
from pathlib import Path

import pytest

PIECE = bytes(65_536)


class SmallDisk:
    """A file system of its own, at `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    @contextmanager
    def full(self) -> Iterator[None]:
        """Not a byte is left."""
        with self._ballast.open("wb", buffering=0) as ballast:
            _fill(ballast)
        try:
            yield
        finally:
            self._ballast.unlink()


def _fill(file: FileIO) -> None:
    try:
        # A write that does not get all it wants has come to the end, and the next one says so.
        while file.write(PIECE):
            pass
    except OSError as error:
        if error.errno != ENOSPC:
            raise


@contextmanager
def mounted(folder: Path, *, megabytes: int) -> Iterator[SmallDisk]:
    """A tmpfs at `folder`, which exists. Skips the test where the machine lets nobody mount."""
    options = f"size={megabytes}m,mode=0755"
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mount.returncode != 0:
        pytest.skip(f"a file system of the test's own cannot be mounted here: {mount.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        # Lazily: it is to go even if a server that does not stop has files on it.
        subprocess.run(["umount", "--lazy", folder], check=True)
