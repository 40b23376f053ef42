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
async def something_else(says: bytes | None) -> AsyncIterator[int]:
    """The port of a server that is no PostgreSQL: it says this and hangs up, or with None says nothing."""

    answers = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers.add(asyncio.current_task())
        await reader.read(1)
        writer.write(says or b"")
        if says is None:
            await reader.read()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
        yield listener.sockets[0].getsockname()[1]
        await asyncio.gather(*(task for task in answers if task is not None))


async def test_a_connection_says_who_it_is_and_keeps_its_settings(server: PostgresSettings) -> None:
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
async def test_what_is_set_up_wrongly_is_told_and_not_worth_a_retry(
    server: PostgresSettings, change: Callable[[PostgresSettings], PostgresSettings], reason: str
) -> None:
    with pytest.raises(Unavailable, match=reason) as caught:
        await connect(change(server))
    assert f"{server.host}:{server.port}" in caught.value.reason
    assert not caught.value.retryable
    assert not caught.value.outcome_unknown
    assert PASSWORD not in str(caught.value)
    assert str(server.password) not in str(caught.value)


async def test_a_server_that_is_not_there_may_be_there_later(server: PostgresSettings) -> None:
    async with something_else(None) as port:
        pass
    with pytest.raises(Unavailable, match=rf"cannot connect to 127\.0\.0\.1:{port}") as caught:
        await connect(replace(server, port=port))
    assert caught.value.retryable


@pytest.mark.parametrize("sslmode", ["disable", "prefer", "require"])
async def test_a_server_that_says_nothing_is_waited_for_as_long_as_is_set(
    server: PostgresSettings, sslmode: SslMode
) -> None:
    async with something_else(None) as port:
        silent = replace(server, port=port, sslmode=sslmode, connect_timeout_seconds=0.2)
        with pytest.raises(Unavailable, match=r"no connection to .* within 0\.2 s") as caught:
            await connect(silent)
        assert caught.value.retryable
        with pytest.raises(Unavailable, match=r"within 0\.1 s"):
            await connect(silent, within_seconds=0.1)


@pytest.mark.parametrize("sslmode", ["disable", "prefer", "require"])
@pytest.mark.parametrize(
    "says",
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
async def test_a_server_that_is_no_postgresql_is_unavailable(
    server: PostgresSettings, sslmode: SslMode, says: bytes
) -> None:
    async with something_else(says) as port:
        with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{port}"):
            await connect(replace(server, port=port, sslmode=sslmode))


async def test_a_server_without_tls_is_refused_where_tls_is_required(server: PostgresSettings) -> None:
    with pytest.raises(Unavailable, match="SSL") as caught:
        await connect(replace(server, sslmode="require"))
    assert not caught.value.outcome_unknown
