"""A Redis whose replies are given by the test."""

from __future__ import annotations

from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hubbub.redis import Connection
from impostor import command, handshake, impostor


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[tuple[Connection, list[bytes]]]:
    """A connection to it, and the list of replies. They are sent in order, the last one repeatedly."""
    given: list[bytes] = []

    async def talk(reader: StreamReader, writer: StreamWriter) -> None:
        parser = await handshake(reader, writer)
        while True:
            await command(reader, parser)
            given.append(answers[min(len(given), len(answers) - 1)])
            writer.write(given[-1])

    async with impostor(talk) as settings:
        connection = Connection(settings)
        await connection.start()
        try:
            yield connection, given
        finally:
            await connection.close()
