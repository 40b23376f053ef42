from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest

from hubbub import PostgresSettings, Settings, Unavailable
from hubbub.postgres import connect
from hubbub.settings import SslMode

PASSWORD = "correct-horse-battery"


@pytest.fixture
def server(servers: Settings) -> PostgresSettings:
    return servers.postgres


@asynccontextmanager
async def other_server(reply: bytes | None) -> AsyncIterator[int]:
    """The port of a server that is not PostgreSQL. It sends the reply and closes. With None it stays silent."""

    answers = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers.add(asyncio.current_task())
        await reader.read(1)
        writer.write(reply or b"")
        if reply is None:
            await reader.read()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
        yield listener.sockets[0].getsockname()[1]
        await asyncio.gather(*(task for task in answers if task is not None))


async def test_connection_has_its_application_name_and_settings(server: PostgresSettings) -> None:
    connection = await connect(server, server_settings={"statement_timeout": "1234"})
    assert await connection.fetchval("SELECT current_setting('application_name')") == "hubbub"
    assert await connection.fetchval("SELECT current_setting('statement_timeout')") == "1234ms"
    await connection.close()


REFUSALS: list[tuple[Callable[[PostgresSettings], PostgresSettings], str]] = [
    (lambda server: replace(server, password=PASSWORD), "password authentication failed for user"),
    (lambda server: replace(server, password=None), "password"),
    (lambda server: replace(server, user="nobody", password=PASSWORD), "authentication failed for user"),
    (lambda server: replace(server, database="nowhere"), 'database "nowhere" does not exist'),
]


@pytest.mark.parametrize(("change", "reason"), REFUSALS, ids=["password", "no-password", "user", "database"])
async def test_wrong_setting_raises_its_reason_and_is_not_retryable(
    server: PostgresSettings, change: Callable[[PostgresSettings], PostgresSettings], reason: str
) -> None:
    with pytest.raises(Unavailable, match=reason) as caught:
        await connect(change(server))
    assert f"{server.host}:{server.port}" in caught.value.reason
    assert not caught.value.retryable
    assert not caught.value.outcome_unknown
    assert PASSWORD not in str(caught.value)
    assert str(server.password) not in str(caught.value)


async def test_missing_server_is_retryable(server: PostgresSettings) -> None:
    async with other_server(None) as port:
        pass
    with pytest.raises(Unavailable, match=rf"cannot connect to 127\.0\.0\.1:{port}") as caught:
        await connect(replace(server, port=port))
    assert caught.value.retryable


@pytest.mark.parametrize("sslmode", ["disable", "prefer", "require"])
async def test_silent_server_raises_unavailable_at_the_timeout(server: PostgresSettings, sslmode: SslMode) -> None:
    async with other_server(None) as port:
        silent = replace(server, port=port, sslmode=sslmode, connect_timeout_seconds=0.2)
        with pytest.raises(Unavailable, match=r"no connection to .* within 0\.2 s") as caught:
            await connect(silent)
        assert caught.value.retryable
        with pytest.raises(Unavailable, match=r"within 0\.1 s"):
            await connect(silent, within_seconds=0.1)


@pytest.mark.parametrize("sslmode", ["disable", "prefer", "require"])
@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"-ERR unknown\r\n",
        b"\xff" * 100,
        b"S",
        b"N",
    ],
    ids=["nothing", "http", "redis", "ones", "tls", "no-tls"],
)
async def test_server_that_is_not_postgresql_is_unavailable(
    server: PostgresSettings, sslmode: SslMode, reply: bytes
) -> None:
    async with other_server(reply) as port:
        with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{port}"):
            await connect(replace(server, port=port, sslmode=sslmode))


async def test_server_without_tls_is_refused_if_tls_is_required(server: PostgresSettings) -> None:
    with pytest.raises(Unavailable, match="SSL") as caught:
        await connect(replace(server, sslmode="require"))
    assert not caught.value.outcome_unknown
