"""A server that cannot be reached: how often it is asked, and by whom."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from hubbub import PostgresSettings, Unavailable
from hubbub.postgres import Pool, Statement
from hubbub.postgres.connection import now
from hubbub.postgres.pool import LONGEST_RECONNECT_PAUSE_SECONDS, Reconnector
from postgres.notes import Observer
from waiting import until_it_answers

ONE = Statement("test.one", int, "SELECT 1 AS one")
SECONDS = 10


class Server:
    """Refuses as often as it is told to."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.attempts = 0
        self.reconnector = Reconnector(self.connect)

    async def connect(self) -> None:
        self.attempts += 1
        await asyncio.sleep(0.01)
        if self.attempts <= self.refusals:
            failure = Unavailable("postgresql", f"refusal {self.attempts}")
            self.reconnector.failed(failure, took_seconds=0.01)
            raise failure
        self.reconnector.succeeded()


async def test_all_who_wait_share_one_attempt_and_hear_what_came_of_it() -> None:
    server = Server(refusals=2)
    for refusal in (1, 2):
        await asyncio.gather(*(server.reconnector.next_attempt(SECONDS) for _ in range(100)))
        assert server.attempts == refusal
        assert server.reconnector.failure is not None
    await asyncio.gather(*(server.reconnector.next_attempt(SECONDS) for _ in range(100)))
    assert server.attempts == 3
    assert server.reconnector.failure is None


async def test_one_who_gives_up_does_not_take_the_attempt_from_the_others() -> None:
    server = Server(refusals=0)
    first, second = (asyncio.create_task(server.reconnector.next_attempt(SECONDS)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert server.attempts == 1


async def test_nobody_waits_longer_than_he_can() -> None:
    server = Server(refusals=0)
    server.reconnector.failed(Unavailable("postgresql", "away"), took_seconds=LONGEST_RECONNECT_PAUSE_SECONDS)
    await server.reconnector.next_attempt(0.001)
    assert server.attempts == 0
    await server.reconnector.close()


async def test_callers_who_insist_at_once_are_no_more_attempts(small: PostgresSettings) -> None:
    attempts, refused = 0, 0

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        writer.close()

    async def insist(pool: Pool) -> None:
        nonlocal refused
        while attempts < 10:
            with pytest.raises(Unavailable) as caught:
                await pool.fetch_one(ONE)
            assert caught.value.retryable
            refused += 1

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    pool = Pool(replace(small, host="127.0.0.1", port=server.sockets[0].getsockname()[1]))
    await asyncio.gather(*(insist(pool) for _ in range(100)))
    await pool.close()
    server.close()
    await server.wait_closed()
    assert refused > 50 * attempts


async def test_a_pool_opens_once_a_full_server_has_a_connection_free(
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


async def test_a_pool_that_is_closed_while_it_waits_for_its_server_leaves_nothing_behind(
    small: PostgresSettings, observer: Observer
) -> None:
    await observer.connection.execute(f"ALTER DATABASE {small.database} CONNECTION LIMIT 0")
    pool = Pool(small)
    tasks = asyncio.all_tasks()
    opening = asyncio.create_task(pool.open())
    await until_it_answers(lambda: _is_more_than(tasks | {opening}))
    await pool.close()
    with pytest.raises(Unavailable):
        await opening
    assert asyncio.all_tasks() == tasks


async def _is_more_than(tasks: set[asyncio.Task[None]]) -> bool:
    """Whether another attempt is being made."""
    return bool(asyncio.all_tasks() - tasks)


async def test_callers_take_turns_on_what_the_pool_has_while_it_gets_no_more(
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


async def test_a_caller_without_time_for_a_connection_says_nothing_of_the_server(small: PostgresSettings) -> None:
    writers: list[asyncio.StreamWriter] = []

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = Pool(replace(small, host="127.0.0.1", port=port, deadline_seconds=1, connect_timeout_seconds=0.3))
    with pytest.raises(Unavailable):
        await pool.fetch_one(ONE, deadline=now() + 0.02)
    hurried = len(writers)
    calls = [asyncio.create_task(pool.fetch_one(ONE)) for _ in range(2)]
    await until_it_answers(lambda: _are(writers, hurried + len(calls)))  # each for itself, as there is no outage
    await asyncio.wait(calls)
    assert [type(call.exception()) for call in calls] == [Unavailable] * len(calls)
    await pool.close()
    for writer in writers:
        writer.close()
    server.close()
    await server.wait_closed()


async def _are(writers: list[asyncio.StreamWriter], number: int) -> bool:
    return len(writers) >= number
