"""Concurrent callers share a statement, and no caller gets rows that are older than its call.

Most tests run for both kinds of sharing. Callers of `look_up` share a statement for many keys, and callers of
`fetch_shared` share the rows of one statement.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import pytest

from hubbub import PostgresSettings, Unavailable, batching
from hubbub.batching import KeyedQueue
from hubbub.postgres import Executor, Lookup, Pool, Statement
from hubbub.postgres.sharing import CALLERS_PER_STATEMENT, SHARED_WORKERS
from hubbub.postgres.statement import T
from postgres.notes import Observer, warm_up
from waiting import until, until_it_answers


class Note(NamedTuple):
    id: int
    body: str


# A statement about note 1 waits after its snapshot while the gate is closed.
CLOSE_GATE = "SELECT pg_advisory_lock(1)"
OPEN_GATE = "SELECT pg_advisory_unlock(1)"
PASSES_GATE = "(id <> 1 OR pg_advisory_xact_lock_shared(1)::text IS NOT NULL)"
NOTES = Statement("test.notes", Note, f"SELECT id, body FROM notes WHERE id = ANY($1::int[]) AND {PASSES_GATE}")
NOTE = Lookup(
    "test.note",
    Note,
    f"SELECT id, body FROM notes WHERE id = $1 AND {PASSES_GATE}",
    many=NOTES,
    key_of_args=lambda number: number,
    key_of_row=lambda note: note.id,
)
PAIRS = Statement(
    "test.pairs",
    Note,
    "SELECT id, body FROM notes JOIN unnest($1::int[], $2::text[]) AS asked (id, body) USING (id, body)",
)
PAIR = Lookup(
    "test.pair",
    Note,
    "SELECT id, body FROM notes WHERE id = $1 AND body = $2",
    many=PAIRS,
    key_of_args=lambda number, body: (number, body),
    key_of_row=tuple,
)
BODIES = Statement(
    "test.bodies",
    str,
    """
    SELECT body
    FROM notes
    WHERE id >= $1
        AND ($1 <> 1 OR pg_advisory_xact_lock_shared(1)::text IS NOT NULL)
    ORDER BY id
    LIMIT $2
    """,
)


class Recorder(Pool):
    """A pool that records the name of each statement and its number of keys."""

    def __init__(self, settings: PostgresSettings) -> None:
        super().__init__(settings)
        self.sent: list[tuple[str, int]] = []

    async def fetch_one(self, statement: Statement[T], *args: object, deadline: float | None = None) -> T | None:
        self.sent.append((statement.name, 1))
        return await super().fetch_one(statement, *args, deadline=deadline)

    async def fetch_all(self, statement: Statement[T], *args: object, deadline: float | None = None) -> list[T]:
        self.sent.append((statement.name, len(args[0]) if args and isinstance(args[0], tuple) else 1))
        return await super().fetch_all(statement, *args, deadline=deadline)


@pytest.fixture
async def pool(small: PostgresSettings, observer: Observer) -> AsyncIterator[Recorder]:
    """Two connections to a database with the notes 1 to 2,000. The body of a note is its number."""
    await observer.connection.execute(
        "INSERT INTO notes (id, body) SELECT n, n FROM generate_series(1, 2000) AS n"
    )
    pool = Recorder(small)
    yield pool
    await pool.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
def never_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """No statement counts as stuck on a busy machine, so a statement in flight holds the next one back."""
    monkeypatch.setattr(batching, "ALLOW_ANOTHER_WORKER_AFTER_SECONDS", 60)


Ask = Callable[[Executor, int], Awaitable[str | None]]


async def look_up(executor: Executor, number: int) -> str | None:
    note = await executor.look_up(NOTE, number)
    return None if note is None else note.body


async def fetch_shared(executor: Executor, number: int) -> str | None:
    bodies = await executor.fetch_shared(BODIES, number, 1)
    return bodies[0] if bodies else None


@pytest.fixture(params=[look_up, fetch_shared], ids=["look_up", "fetch_shared"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Reads the body of one note."""
    ask: Ask = request.param
    return ask


def asking(ask: Ask, executor: Executor, *numbers: int) -> list[asyncio.Task[str | None]]:
    return [asyncio.ensure_future(ask(executor, number)) for number in numbers]


# Both


@pytest.mark.usefixtures("never_stuck")
async def test_caller_that_asks_again_after_its_answer_joins_the_next_statement(pool: Recorder, ask: Ask) -> None:
    async def ask_often() -> None:
        for _ in range(5):
            assert await ask(pool, 7) == "7"

    await asyncio.gather(*(ask_often() for _ in range(20)))
    assert len(pool.sent) <= 7


@pytest.mark.usefixtures("never_stuck")
@pytest.mark.parametrize("in_flight", [1, 3], ids=["one", "several"])
async def test_caller_after_a_change_sees_it_though_an_older_statement_is_in_flight(
    pool: Recorder, observer: Observer, ask: Ask, in_flight: int
) -> None:
    # The first of several has its own statement, and the others share the next.
    await observer.connection.execute(CLOSE_GATE)
    early = asking(ask, pool, *[1] * in_flight)
    await until_it_answers(observer.sees_lock_waiters)  # the snapshot of the first is taken
    await observer.connection.execute("UPDATE notes SET body = 'new' WHERE id = 1")
    late = asking(ask, pool, 1, 1, 2)
    await asyncio.sleep(0)
    await observer.connection.execute(OPEN_GATE)

    assert await early[0] == "1"
    assert await asyncio.gather(*late) == ["new", "new", "2"]
    await asyncio.gather(*early)


async def test_callers_see_every_change_acknowledged_before_their_call(
    pool: Recorder, observer: Observer, ask: Ask
) -> None:
    acknowledged = 0

    async def write() -> None:
        nonlocal acknowledged
        for number in range(1, 200):
            await observer.connection.execute("UPDATE notes SET body = $1 WHERE id = 9", str(number))
            acknowledged = number

    async def read() -> None:
        while not writing.done():
            least = acknowledged
            body = await ask(pool, 9)
            assert body is not None
            assert int(body) >= least

    await observer.connection.execute("UPDATE notes SET body = '0' WHERE id = 9")
    writing = asyncio.create_task(write())
    await asyncio.gather(writing, *(read() for _ in range(20)))


@pytest.mark.usefixtures("never_stuck")
async def test_cancelled_callers_take_nothing_from_the_others(
    pool: Recorder, observer: Observer, ask: Ask
) -> None:
    shares_keys = ask is look_up
    await observer.connection.execute(CLOSE_GATE)
    others = (2, 3) if shares_keys else (1, 1)
    first, cancelled, stays, cancelled_later, stays_too = asking(ask, pool, 1, *others, 1, 1)
    await until_it_answers(observer.sees_lock_waiters)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    first.cancel()  # its own statement is in flight; the next one is sent and waits at the gate as well
    await until(lambda: len(pool.sent) > 1)
    cancelled_later.cancel()
    await observer.connection.execute(OPEN_GATE)

    assert await stays == str(others[1])
    assert await stays_too == "1"
    assert first.cancelled()
    assert cancelled_later.cancelled()
    assert [keys for _, keys in pool.sent] == ([1, 2] if shares_keys else [1, 1])


async def test_stuck_statement_does_not_hold_the_next_one_back(
    pool: Recorder, observer: Observer, ask: Ask
) -> None:
    await observer.connection.execute(CLOSE_GATE)
    [stuck] = asking(ask, pool, 1)
    await until_it_answers(observer.sees_lock_waiters)
    [next_one] = asking(ask, pool, 1)
    await until_it_answers(lambda: observer.sees_lock_waiters(2))  # on another connection
    assert not stuck.done()
    await observer.connection.execute(OPEN_GATE)
    assert [await stuck, await next_one] == ["1", "1"]


async def test_each_caller_gets_its_own_error_at_its_deadline(
    pool: Recorder, small: PostgresSettings, observer: Observer, ask: Ask
) -> None:
    hurried = Pool(replace(small, deadline_seconds=0.5))
    await warm_up(hurried)
    await observer.connection.execute(CLOSE_GATE)
    # The gate stays closed until all of them have failed.
    failures = await asyncio.gather(*asking(ask, hurried, *[1] * 5), return_exceptions=True)
    assert all(isinstance(failure, Unavailable) for failure in failures), failures
    assert len({id(failure) for failure in failures}) == 5
    await observer.connection.execute(OPEN_GATE)

    async def answers() -> bool:
        with suppress(Unavailable):
            return await ask(hurried, 1) == "1"
        return False

    await until_it_answers(answers)
    await hurried.close()


async def test_lost_connection_costs_no_caller_its_answer(pool: Recorder, observer: Observer, ask: Ask) -> None:
    await observer.connection.execute(CLOSE_GATE)
    tasks = asking(ask, pool, 1, 1, 2)
    await until_it_answers(observer.sees_lock_waiters)
    await observer.connection.execute(
        """
        SELECT pg_terminate_backend(pid)
        FROM pg_stat_activity
        WHERE datname = current_database()
            AND application_name = 'hubbub'
        """
    )
    await observer.connection.execute(OPEN_GATE)
    assert await asyncio.gather(*tasks) == ["1", "1", "2"]


async def test_failed_statement_raises_its_error_to_all_callers(
    pool: Recorder, observer: Observer, ask: Ask
) -> None:
    await observer.connection.execute("ALTER TABLE notes RENAME body TO text")
    failures = await asyncio.gather(*asking(ask, pool, 2, 2, 2), return_exceptions=True)
    assert [type(failure) for failure in failures] == [Unavailable] * 3
    assert {str(failure).partition(": the schema is older")[1] for failure in failures} == {
        ": the schema is older"
    }


async def test_transaction_shares_nothing_and_sees_its_own_changes(pool: Recorder, ask: Ask) -> None:
    write = Statement("test.rewrite", int, "UPDATE notes SET body = 'mine' WHERE id = $1")
    async with pool.transaction() as tx:
        await tx.execute(write, 3)
        found = await asyncio.gather(*asking(ask, tx, 3, 4, 3))
        assert found == ["mine", "4", "mine"]
        assert await ask(pool, 3) == "3"
    assert await ask(pool, 3) == "mine"


@pytest.mark.usefixtures("never_stuck")
async def test_close_refuses_waiting_callers_and_lets_the_statement_in_flight_end(
    pool: Recorder, observer: Observer, ask: Ask
) -> None:
    await observer.connection.execute(CLOSE_GATE)
    in_flight, waiting = asking(ask, pool, 1, 1)
    await until_it_answers(observer.sees_lock_waiters)
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    await observer.connection.execute(OPEN_GATE)
    assert await in_flight == "1"
    with pytest.raises(Unavailable, match="closed"):
        await waiting
    await closing
    with pytest.raises(Unavailable, match="closed"):
        await ask(pool, 2)


# Lookups


async def test_single_caller_uses_the_statement_for_one_key(pool: Recorder) -> None:
    assert await look_up(pool, 7) == "7"
    assert await look_up(pool, 8) == "8"
    assert await look_up(pool, -1) is None
    assert pool.sent == [("test.note", 1)] * 3


async def test_concurrent_callers_share_a_statement_and_get_their_own_rows(pool: Recorder) -> None:
    numbers = [*range(1, 20), -1, 5, 5]
    found = await asyncio.gather(*asking(look_up, pool, *numbers))
    assert found == [None if number == -1 else str(number) for number in numbers]
    assert pool.sent == [("test.note", 1), ("test.notes", 19)]  # 2 to 19 and the missing one


@pytest.mark.usefixtures("never_stuck")
async def test_callers_with_different_keys_that_ask_again_share_each_statement(pool: Recorder) -> None:
    async def ask_often(number: int) -> None:
        for _ in range(5):
            assert await look_up(pool, number) == str(number)

    await asyncio.gather(*(ask_often(number) for number in range(1, 21)))
    assert [keys for _, keys in pool.sent[2:5]] == [20, 20, 20]


async def test_caller_that_is_alone_again_uses_the_statement_for_one_key(pool: Recorder) -> None:
    await asyncio.gather(*asking(look_up, pool, 1, 2, 3))
    await asyncio.sleep(0)
    tasks_before = len(asyncio.all_tasks())
    pool.sent.clear()
    for _ in range(3):
        await look_up(pool, 4)
    assert pool.sent == [("test.note", 1)] * 3
    assert len(asyncio.all_tasks()) == tasks_before


async def test_many_callers_are_split_into_statements_of_bounded_size(pool: Recorder) -> None:
    found = await asyncio.gather(*asking(look_up, pool, *range(1, 1502)))
    assert found == [str(number) for number in range(1, 1502)]
    assert [keys for _, keys in pool.sent] == [1] + [CALLERS_PER_STATEMENT] * 3


async def test_key_of_two_columns_is_matched_by_both(pool: Recorder) -> None:
    keys = [(1, "1"), (2, "2"), (2, "1"), (3, "3")]

    async def look_up_pair(number: int, body: str) -> Note | None:
        return await pool.look_up(PAIR, number, body)

    found = await asyncio.gather(*(look_up_pair(*key) for key in keys))
    assert found == [Note(1, "1"), Note(2, "2"), None, Note(3, "3")]
    assert pool.sent[1:] == [("test.pairs", 3)]


async def test_stuck_statement_does_not_hold_other_keys_back(pool: Recorder, observer: Observer) -> None:
    await observer.connection.execute(CLOSE_GATE)
    [stuck] = asking(look_up, pool, 1)
    await until_it_answers(observer.sees_active)
    assert await asyncio.gather(*asking(look_up, pool, 2, 3)) == ["2", "3"]
    assert not stuck.done()
    await observer.connection.execute(OPEN_GATE)
    assert await stuck == "1"


# Shared rows


async def test_callers_with_equal_arguments_share_rows_and_do_not_wait_for_others(pool: Recorder) -> None:
    calls = (pool.fetch_shared(BODIES, first, 2) for first in (2, 2, 2, 3, 2))
    found = await asyncio.gather(*calls)
    assert found == [["2", "3"], ["2", "3"], ["2", "3"], ["3", "4"], ["2", "3"]]
    assert len(pool.sent) == 3  # the first alone, three together, and the one with other arguments


async def test_callers_with_different_arguments_share_nothing(pool: Recorder) -> None:
    found = await asyncio.gather(*(pool.fetch_shared(BODIES, 2, limit) for limit in (1, 2, 3)))
    assert [len(one) for one in found] == [1, 2, 3]


ASKED = Statement(
    "test.asked",
    lambda bodies: (bodies,),
    "SELECT array_agg(body ORDER BY id) AS bodies FROM notes WHERE id >= $1 AND id = ANY($2::int[])",
)


async def test_callers_that_differ_in_the_last_argument_share_a_statement_that_gets_all_of_these(
    pool: Recorder,
) -> None:
    asked = [(2, 2), (2, 3), (2, 4), (3, 2), (2, 3)]
    found = await asyncio.gather(*(pool.fetch_shared_by_each(ASKED, first, number) for first, number in asked))
    assert found == [[(["2"],)], [(["3", "4"],)], [(["3", "4"],)], [(None,)], [(["3", "4"],)]]
    assert len(pool.sent) == 3
    async with pool.transaction() as transaction:
        assert await transaction.fetch_shared_by_each(ASKED, 2, 4) == [(["4"],)]


async def test_calls_without_a_last_argument_share_a_statement_that_gets_null(pool: Recorder) -> None:
    found = await asyncio.gather(*(pool.fetch_shared_by_each(ASKED, 2, last) for last in (5, None, None, None)))
    assert found == [[(["5"],)], *[[(None,)]] * 3]
    assert len(pool.sent) == 2
    async with pool.transaction() as transaction:
        assert await transaction.fetch_shared_by_each(ASKED, 2, None) == [(None,)]


async def test_given_deadline_ends_the_call_of_one_and_of_several_callers(
    pool: Recorder, observer: Observer
) -> None:
    await observer.connection.execute(CLOSE_GATE)
    deadline = asyncio.get_running_loop().time() + 0.2
    calls = [asyncio.ensure_future(pool.fetch_shared(BODIES, 1, 2, deadline=deadline)) for _ in range(3)]
    failures = await asyncio.gather(*calls, return_exceptions=True)  # while the gate is closed
    assert [type(failure) for failure in failures] == [Unavailable] * 3
    await observer.connection.execute(OPEN_GATE)
    assert await fetch_shared(pool, 1) == "1"


async def cancel_all(pool: Pool, observer: Observer) -> None:
    await observer.connection.execute(CLOSE_GATE)
    cancelled = asking(fetch_shared, pool, 1, 1, 1)
    await until_it_answers(observer.sees_lock_waiters)
    for task in cancelled:
        task.cancel()
    await asyncio.wait(cancelled)
    await observer.connection.execute(OPEN_GATE)


@pytest.mark.usefixtures("never_stuck")
async def test_nothing_is_kept_per_statement_when_no_caller_waits_for_it(
    pool: Recorder, observer: Observer
) -> None:
    await asyncio.gather(*asking(fetch_shared, pool, 2, 2, 3, 4, 4, 4))
    await fetch_shared(pool, 5)
    await cancel_all(pool, observer)
    queue = pool._shared._shared._queue
    assert isinstance(queue, KeyedQueue)
    await until(lambda: (queue._queues, queue._busy, queue._locked, len(queue.ready)) == ({}, set(), set(), 0))


async def test_shared_statements_in_flight_are_bounded(pool: Recorder) -> None:
    most = 0

    async def ask(first: int) -> list[str]:
        nonlocal most
        found = await pool.fetch_shared(BODIES, first, 1)
        most = max(most, len(pool._shared._shared._runners))
        return found

    found = await asyncio.gather(
        *(ask(number) for number in range(2, 5) for _ in range(2)), *map(ask, range(5, 25))
    )
    assert len(found) == 26
    assert 1 < most <= 2 * SHARED_WORKERS  # each may be late, and then allows another one
