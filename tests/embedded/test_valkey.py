from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from embedded.chat import valkey
from hubbub.embedded import Servers, Valkey
from hubbub.embedded.folder import Folder


@asynccontextmanager
async def stranger(answer: bytes) -> AsyncIterator[int]:
    """Another program that sends this answer to every client."""

    async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(say, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"-WRONGPASS invalid username-password pair or user is disabled.\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"+OK\r\n-LOADING Valkey is loading the dataset in memory\r\n$3\r\nabc\r\n",
        b"+OK\r\n+PONG\r\n$nonsense\r\n",
        b"+OK\r\n+PONG\r\n$-5\r\n",
        b"+OK\r\n+PONG\r\n$9999\r\ncut off",
        b"x" * 100_000,
    ],
)
async def test_foreign_or_unready_server_does_not_count_as_serving(folder: Path, answer: bytes) -> None:
    server_folder = Folder(folder).find()
    assert server_folder is not None
    async with stranger(answer) as port:
        assert await Valkey(server_folder).version(port) is None


async def test_answered_write_is_already_in_the_file(folder: Path) -> None:
    async with Servers(folder) as settings:
        await valkey(settings.redis, *(f"SET key:{number} value" for number in range(1_000)))
        written = b"".join(file.read_bytes() for file in (folder / "valkey").rglob("*.aof"))
        assert b"key:999" in written
