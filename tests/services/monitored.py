"""All commands that reach Redis, with their arguments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hubbub.redis import Connection
from hubbub.settings import RedisSettings


@asynccontextmanager
async def monitored(settings: RedisSettings, connection: Connection) -> AsyncIterator[bytearray]:
    """The output of MONITOR for the commands in the block. Complete when the block has ended."""
    seen = bytearray()
    reader, writer = await asyncio.open_connection(settings.host, settings.port)
    try:
        writer.write(f"AUTH {settings.password}\r\nMONITOR\r\n".encode())
        assert [await reader.readline() for _ in range(2)] == [b"+OK\r\n"] * 2
        yield seen
        await connection.execute("ECHO", "the end")
        while b"the end" not in seen:
            seen += await reader.readline()
    finally:
        writer.close()
        await writer.wait_closed()
