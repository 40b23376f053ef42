"""The pool under load: hundreds and thousands of callers on 20 connections."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from hubbub import PostgresSettings, Unavailable
from hubbub.postgres import Pool, Statement
from postgres.notes import Observer

CONNECTIONS = 20
CALLS = 5

PID = Statement("test.pid", int, "SELECT pg_backend_pid()")
LOCKED = Statement("test.locked", str, "SELECT pg_advisory_xact_lock_shared(1)::text")


@pytest.fixture
async def observer(empty_database: PostgresSettings) -> AsyncIterator[Observer]:
    observer = await Observer.connect(empty_database)
    yield observer
    await observer.connection.close()


@pytest.fixture
async def pool(empty_database: PostgresSettings, observer: Observer) -> AsyncIterator[Pool]:
    pool = Pool(replace(empty_database, pool_size=CONNECTIONS, deadline_seconds=60, connect_timeout_seconds=30))
    yield pool
    await pool.close()


@pytest.mark.parametrize("callers", [200, 2_000])
async def test_many_callers_are_served_in_order_and_nothing_leaks(
    pool: Pool, observer: Observer, callers: int
) -> None:
    tasks_before = asyncio.all_tasks()
    while pool.size < CONNECTIONS:  # opening them takes longer than many calls
        await asyncio.gather(*(pool.fetch_one(PID) for _ in range(CONNECTIONS)))
    served: list[int] = []
    pids: Counter[int | None] = Counter()

    async def call(number: int) -> None:
        for _ in range(CALLS):
            pids[await pool.fetch_one(PID)] += 1
            served.append(number)

    await asyncio.gather(*(call(number) for number in range(callers)))
    assert pids.total() == callers * CALLS
    # In the order of their calls, except calls that are served at the same time. One connection may take as long
    # for a call as the others for one call of every caller.
    rounds: Counter[int] = Counter()
    for turn, number in enumerate(served):
        rounds[number] += 1
        expected = (rounds[number] - 1) * callers + number
        assert abs(turn - expected) <= max(20 * CONNECTIONS, callers)
    assert len(pids) == pool.size == pool.idle == len(await observer.states()) == CONNECTIONS
    assert asyncio.all_tasks() == tasks_before


@pytest.mark.parametrize("callers", [200, 2_000])
async def test_callers_of_a_locked_row_raise_at_the_deadline_and_the_pool_goes_on(
    empty_database: PostgresSettings, observer: Observer, callers: int
) -> None:
    deadline_seconds = 1
    pool = Pool(replace(empty_database, pool_size=CONNECTIONS, deadline_seconds=30))
    await asyncio.gather(*(pool.fetch_one(PID) for _ in range(CONNECTIONS * 5)))
    hurried = Pool(replace(empty_database, pool_size=CONNECTIONS, deadline_seconds=deadline_seconds))
    await observer.connection.execute("SELECT pg_advisory_lock(1)")
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(30):
        errors = await asyncio.gather(*(hurried.fetch_one(LOCKED) for _ in range(callers)), return_exceptions=True)
    assert {type(error) for error in errors} == {Unavailable}
    assert loop.time() - began >= deadline_seconds
    await observer.connection.execute("SELECT pg_advisory_unlock(1)")
    await pool.close()
    assert hurried.size == hurried.idle
    await hurried.close()
    again = Pool(replace(empty_database, pool_size=CONNECTIONS, deadline_seconds=30))
    assert await again.fetch_one(LOCKED) is not None
    await again.close()
