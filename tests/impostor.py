"""A server whose replies are written by the test, for behaviour that a real server cannot be made to show."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ssl import SSLContext

import hiredis

from hubbub.settings import RedisSettings

HELLO = b"%1\r\n$5\r\nproto\r\n:3\r\n"

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def command(reader: asyncio.StreamReader, parser: hiredis.Reader) -> list[bytes]:
    """The next command of the client."""
    while not (words := parser.gets()):
        data = await reader.read(65536)
        if not data:
            raise EOFError
        parser.feed(data)
    command: list[bytes] = words
    return command


async def handshake(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, glued: bytes = b""
) -> hiredis.Reader:
    """Answer the whole handshake. `glued` follows the last reply in the same write."""
    parser = hiredis.Reader()
    while True:
        words = await command(reader, parser)
        if words[0] == b"HELLO":
            writer.write(HELLO + glued)
            return parser
        writer.write(b"+OK\r\n")


@asynccontextmanager
async def impostor(talk: Talk, tls: SSLContext | None = None) -> AsyncIterator[RedisSettings]:
    """Run `talk` for each connection. Yields the settings to connect with."""
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await talk(reader, writer)
        except (EOFError, ConnectionError):
            pass  # the client may disconnect
        finally:
            writer.close()
            running.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield RedisSettings(
            host="127.0.0.1",
            port=server.sockets[0].getsockname()[1],
            connect_timeout_seconds=10,
            deadline_seconds=30,
        )
    finally:
        server.close()
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        await server.wait_closed()
