"""Folders for servers, with data or empty. Servers in them end with the test."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from embedded.chat import all_gone
from hubbub.embedded import Servers, down


def new_folder() -> Path:
    """A new folder outside pytest's own, which the account of the servers may not enter."""
    return Path(tempfile.mkdtemp(prefix="hubbub-"))


@pytest.fixture(scope="session")
def made() -> Iterator[Path]:
    """A folder with data, made once because it takes time."""

    async def make(folder: Path) -> None:
        async with Servers(folder, fsync=False):
            pass

    folder = new_folder()
    asyncio.run(make(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
async def folder(made: Path) -> AsyncIterator[Path]:
    """A folder with data and no running server. Tests share it."""
    yield made
    await down(made)
    assert all_gone(made)


@pytest.fixture
async def copied_folder(made: Path) -> AsyncIterator[Path]:
    """A folder with data that the test may damage."""
    folder = new_folder()
    copying = await asyncio.create_subprocess_exec("cp", "-a", f"{made}/.", folder)
    assert await copying.wait() == 0
    yield folder
    await down(folder)
    assert all_gone(folder)
    shutil.rmtree(folder, ignore_errors=True)  # a test may have deleted or moved it


@pytest.fixture
async def empty_folder() -> AsyncIterator[Path]:
    """A folder in which no server ever ran."""
    folder = new_folder()
    yield folder
    await down(folder)
    assert all_gone(folder)
    shutil.rmtree(folder, ignore_errors=True)  # a test may have deleted it


@pytest.fixture
def as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root runs servers as another user")
