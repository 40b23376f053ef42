"""An unreachable server: the number of attempts to connect, and the callers that share them."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

import pytest

from hubbub import PostgresSettings, Unavailable
from hubbub.postgres import Pool
from hubbub.postgres.connection import now
from hubbub.postgres.pool import MAX_RECONNECT_PAUSE_SECONDS, PacedReconnector
from postgres.notes import ONE, Observer
from waiting import HANGS_AFTER_SECONDS, until_it_answers

LONG_SECONDS = 10


class Server:
    """A server that refuses the first `refusals` attempts."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.attempts = 0
        self.reconnector = PacedReconnector(self.connect)

    async def connect(self) -> None:
        self.attempts += 1
        await asyncio.sleep(0.01)
        if self.attempts <= self.refusals:
            failure = Unavailable("postgresql", f"refusal {self.attempts}")
            self.reconnector.failed(failure, took_seconds=0.01)
            raise failure
        self.reconnector.succeeded()


async def test_callers_share_one_attempt_and_its_outcome() -> None:
    server = Server(refusals=2)
    for refusal in (1, 2):
        await asyncio.gather(*(server.reconnector.next_attempt(LONG_SECONDS) for _ in range(100)))
        assert server.attempts == refusal
        assert server.reconnector.failure is not None
    await asyncio.gather(*(server.reconnector.next_attempt(LONG_SECONDS) for _ in range(100)))
    assert server.attempts == 3
    assert server.reconnector.failure is None


async def test_cancelled_caller_does_not_end_the_attempt_of_the_others() -> None:
    server = Server(refusals=0)
    first, second = (asyncio.create_task(server.reconnector.next_attempt(LONG_SECONDS)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert server.attempts == 1


async def test_caller_waits_no_longer_than_it_asks_for() -> None:
    server = Server(refusals=0)
    server.reconnector.failed(Unavailable("postgresql", "away"), took_seconds=MAX_RECONNECT_PAUSE_SECONDS)
    await server.reconnector.next_attempt(0.001)
    assert server.attempts == 0
    await server.reconnector.close()


async def test_more_calls_do_not_make_more_attempts(small: PostgresSettings) -> None:
    attempts, refused = 0, 0

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        writer.close()

    async def call_again_and_again(pool: Pool) -> None:
        nonlocal refused
        while attempts < 10:
            with pytest.raises(Unavailable) as caught:
                await pool.fetch_one(ONE)
            assert caught.value.retryable
            refused += 1

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    pool = Pool(replace(small, host="127.0.0.1", port=server.sockets[0].getsockname()[1]))
    await asyncio.gather(*(call_again_and_again(pool) for _ in range(100)))
    await pool.close()
    server.close()
    await server.wait_closed()
    assert refused > 50 * attempts


async def test_open_waits_until_a_full_server_has_a_connection_free(
    small: PostgresSettings, observer: Observer
) -> None:
    await observer.connection.execute(f"ALTER DATABASE {small.database} CONNECTION LIMIT 0")
    pool = Pool(small)
    opening = asyncio.create_task(pool.open())
    with pytest.raises(Unavailable, match="the server has no connection free"):
        await pool.fetch_one(ONE)
    assert not opening.done()
    await observer.connection.execute(f"ALTER DATABASE {small.database} CONNECTION LIMIT -1")
    await opening
    assert await pool.fetch_one(ONE) == 1
    await pool.close()


async def test_close_while_open_waits_for_the_server_leaves_no_task(
    small: PostgresSettings, observer: Observer
) -> None:
    await observer.connection.execute(f"ALTER DATABASE {small.database} CONNECTION LIMIT 0")
    pool = Pool(small)
    tasks = asyncio.all_tasks()
    opening = asyncio.create_task(pool.open())
    await until_it_answers(lambda: _has_more_tasks_than(tasks | {opening}))
    await pool.close()
    with pytest.raises(Unavailable):
        await opening
    assert asyncio.all_tasks() == tasks


async def _has_more_tasks_than(tasks: set[asyncio.Task[None]]) -> bool:
    """Whether an attempt is in progress."""
    return bool(asyncio.all_tasks() - tasks)


async def test_callers_share_the_open_connections_while_the_server_gives_no_more(
    small: PostgresSettings, observer: Observer
) -> None:
    await observer.connection.execute(f"ALTER DATABASE {small.database} CONNECTION LIMIT 2")
    pool = Pool(replace(small, deadline_seconds=30))
    async with pool.transaction() as tx:
        with pytest.raises(Unavailable, match="the server has no connection free"):
            await pool.fetch_one(ONE)
        calls = [asyncio.create_task(pool.fetch_one(ONE)) for _ in range(5)]
        assert not (await asyncio.wait(calls, timeout=0.3))[0]
        assert await tx.fetch_one(ONE) == 1
    assert await asyncio.gather(*calls) == [1] * 5
    await pool.close()


async def test_caller_that_gives_up_during_an_attempt_gets_the_reason_of_the_server(
    small: PostgresSettings,
) -> None:
    """The attempt has the only slot of the pool, and no connection is in use."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host, port = silent.getsockname()
        settings = replace(small, host=host, port=port, pool_size=1, connect_timeout_seconds=0.5)
        pool = Pool(settings)
        silent.setblocking(False)
        refused = pytest.raises(Unavailable, match=f"no connection to {host}:{port} within")
        with refused:
            await pool.fetch_one(ONE)
        patient = asyncio.create_task(pool.fetch_one(ONE))
        attempts = [await _accepted(silent), await _accepted(silent)]  # the second one is that of the reconnector
        with refused:
            await pool.fetch_one(ONE, deadline=now() + 0.02)
        with refused:
            await patient
        await pool.close()
        for attempt in attempts:
            attempt.close()


async def _accepted(listener: socket.socket) -> socket.socket:
    return (await asyncio.wait_for(asyncio.get_running_loop().sock_accept(listener), HANGS_AFTER_SECONDS))[0]


async def test_caller_with_too_little_time_to_connect_does_not_mark_the_server_unreachable(
    small: PostgresSettings,
) -> None:
    writers: list[asyncio.StreamWriter] = []

    async def stay_silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    server = await asyncio.start_server(stay_silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = Pool(replace(small, host="127.0.0.1", port=port, deadline_seconds=1, connect_timeout_seconds=0.3))
    with pytest.raises(Unavailable):
        await pool.fetch_one(ONE, deadline=now() + 0.02)
    hurried = len(writers)
    calls = [asyncio.create_task(pool.fetch_one(ONE)) for _ in range(2)]
    await until_it_answers(lambda: _has_connections(writers, hurried + len(calls)))  # an attempt per caller
    await asyncio.wait(calls)
    assert [type(call.exception()) for call in calls] == [Unavailable] * len(calls)
    await pool.close()
    for writer in writers:
        writer.close()
    server.close()
    await server.wait_closed()


async def _has_connections(writers: list[asyncio.StreamWriter], number: int) -> bool:
    return len(writers) >= number
