from __future__ import annotations

import asyncio

import pytest

from hubbub.errors import Unavailable
from hubbub.redis import Connection
from impostor import command, handshake, impostor
from waiting import until


async def test_a_reply_that_arrives_byte_by_byte_is_one_reply() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = await handshake(reader, writer)
        while await command(reader, parser):
            for byte in b"$5\r\nhello\r\n":
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)

    async with impostor(talk) as settings:
        connection = Connection(settings)
        await connection.start()
        assert await connection.execute("GET", "greeting") == b"hello"
        await connection.close()


async def test_what_the_server_tells_unasked_is_no_reply() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = await handshake(reader, writer)
        while words := await command(reader, parser):
            writer.write(b">2\r\n$10\r\ninvalidate\r\n*1\r\n$3\r\nkey\r\n$1\r\n" + words[1] + b"\r\n")

    async with impostor(talk) as settings:
        connection = Connection(settings)
        await connection.start()
        replies = await asyncio.gather(*(connection.execute("ECHO", digit) for digit in range(10)))
        assert replies == [str(digit).encode() for digit in range(10)]
        await connection.close()


@pytest.mark.parametrize("nonsense", [b"HTTP/1.1 200 OK\r\n", b"+one\r\n+too many\r\n"])
async def test_a_server_that_breaks_the_protocol_is_left(nonsense: bytes) -> None:
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        parser = await handshake(reader, writer)
        while await command(reader, parser):
            writer.write(nonsense)

    async with impostor(talk) as settings:
        connection = Connection(settings)
        await connection.start()
        (outcome,) = await asyncio.gather(connection.execute("PING"), return_exceptions=True)
        assert outcome == b"one" or (isinstance(outcome, Unavailable) and outcome.outcome_unknown)
        await until(lambda: connections == 2)
        await connection.close()


async def test_a_connection_lost_in_the_middle_of_a_reply_fails_all_that_wait() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = await handshake(reader, writer)
        await command(reader, parser)
        writer.write(b"+first\r\n$100\r\nhalf of")

    async with impostor(talk) as settings:
        connection = Connection(settings)
        await connection.start()
        calls = [connection.execute("ECHO", number) for number in range(5)]
        first, *rest = await asyncio.gather(*calls, return_exceptions=True)
        assert first == b"first"
        assert all(isinstance(one, Unavailable) and one.outcome_unknown for one in rest)
        await connection.close()
