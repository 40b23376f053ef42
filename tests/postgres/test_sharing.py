"""Those who ask for the same at the same time share one statement, and nobody gets what is older than his call."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest

from hubbub import PostgresSettings, Unavailable
from hubbub.postgres import Executor, Pool, Statement, sharing
from hubbub.postgres.executor import T
from hubbub.postgres.sharing import StatementQueue
from postgres.notes import Watch
from waiting import until_it_answers

# What is asked of the notes from 1 on stops after its snapshot was taken, for as long as the gate is held.
GATE = "SELECT pg_advisory_lock(1)"
OPEN = "SELECT pg_advisory_unlock(1)"
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


class Recorded(Pool):
    """Notes what each statement was asked with."""

    def __init__(self, settings: PostgresSettings) -> None:
        super().__init__(settings)
        self.sent: list[tuple[object, ...]] = []

    async def fetch_all(self, statement: Statement[T], *args: object, deadline: float | None = None) -> list[T]:
        self.sent.append(args)
        return await super().fetch_all(statement, *args, deadline=deadline)


@pytest.fixture
async def pool(small: PostgresSettings, watch: Watch) -> AsyncIterator[Recorded]:
    """Two connections to a database with the notes 1 to 9, each of which says its own number."""
    await watch.connection.execute("INSERT INTO notes (id, body) SELECT n, n FROM generate_series(1, 9) AS n")
    pool = Recorded(small)
    yield pool
    await pool.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, a statement under way holds the next one back."""
    monkeypatch.setattr(sharing, "STUCK_AFTER_SECONDS", 60)


async def bodies(executor: Executor, first: int, limit: int = 2) -> list[str]:
    return await executor.fetch_shared(BODIES, first, limit)


def asking(pool: Pool, firsts: list[int]) -> list[asyncio.Task[list[str]]]:
    return [asyncio.create_task(bodies(pool, first)) for first in firsts]


async def test_those_who_wait_for_the_same_share_a_statement_and_others_do_not_wait_for_them(
    pool: Recorded,
) -> None:
    found = await asyncio.gather(*asking(pool, [2, 2, 2, 3, 2]))
    assert found == [["2", "3"], ["2", "3"], ["2", "3"], ["3", "4"], ["2", "3"]]
    assert sorted(pool.sent) == [(2, 2), (2, 2), (3, 2)]  # the first alone, three together


async def test_the_same_with_another_argument_is_something_else(pool: Recorded) -> None:
    found = await asyncio.gather(bodies(pool, 2, 1), bodies(pool, 2, 2), bodies(pool, 2, 3))
    assert [len(one) for one in found] == [1, 2, 3]


async def test_who_asks_again_when_answered_travels_with_the_others(pool: Recorded) -> None:
    async def ask_often() -> None:
        for _ in range(5):
            assert await bodies(pool, 2) == ["2", "3"]

    await asyncio.gather(*(ask_often() for _ in range(20)))
    assert len(pool.sent) <= 7


@pytest.mark.usefixtures("patient")
async def test_who_asks_after_a_change_sees_it_though_an_older_statement_is_under_way(
    pool: Recorded, watch: Watch
) -> None:
    await watch.connection.execute(GATE)
    [early] = asking(pool, [1])
    await until_it_answers(watch.waits_for_lock)  # its snapshot is taken
    await watch.connection.execute("UPDATE notes SET body = 'new' WHERE id = 1")
    late = asking(pool, [1, 1])
    await asyncio.sleep(0)
    await watch.connection.execute(OPEN)

    assert await early == ["1", "2"]
    assert await asyncio.gather(*late) == [["new", "2"], ["new", "2"]]


async def test_everybody_sees_what_was_acknowledged_before_the_question(pool: Recorded, watch: Watch) -> None:
    acknowledged = 0

    async def write() -> None:
        nonlocal acknowledged
        for number in range(1, 200):
            await watch.connection.execute("UPDATE notes SET body = $1 WHERE id = 9", str(number))
            acknowledged = number

    async def read() -> None:
        while not writing.done():
            least = acknowledged
            [body] = await bodies(pool, 9)
            assert int(body) >= least

    await watch.connection.execute("UPDATE notes SET body = '0' WHERE id = 9")
    writing = asyncio.create_task(write())
    await asyncio.gather(writing, *(read() for _ in range(20)))


@pytest.mark.usefixtures("patient")
async def test_one_who_gives_up_takes_nothing_from_the_others(pool: Recorded, watch: Watch) -> None:
    await watch.connection.execute(GATE)
    first, gone, stays, gone_later = asking(pool, [1, 1, 1, 1])
    await until_it_answers(watch.waits_for_lock)
    gone.cancel()
    await asyncio.wait([gone])
    first.cancel()  # whose own statement is under way; the next goes out, and stops at the gate as well

    async def sent_together() -> bool:
        return len(pool.sent) > 1

    await until_it_answers(sent_together)
    gone_later.cancel()
    await watch.connection.execute(OPEN)
    assert await stays == ["1", "2"]
    assert first.cancelled()
    assert gone_later.cancelled()
    assert len(pool.sent) == 2


async def test_a_statement_that_is_stuck_does_not_hold_the_others_back(pool: Recorded, watch: Watch) -> None:
    await watch.connection.execute(GATE)
    [stuck] = asking(pool, [1])
    await until_it_answers(watch.waits_for_lock)
    [waits] = asking(pool, [1])
    await until_it_answers(lambda: watch.waits_for_lock(2))  # on a connection of its own
    await watch.connection.execute(OPEN)
    assert [await stuck, await waits] == [["1", "2"]] * 2


async def test_the_deadline_holds_for_each_and_each_gets_an_error_of_its_own(
    small: PostgresSettings, watch: Watch
) -> None:
    pool = Pool(replace(small, deadline_seconds=0.5))
    await watch.connection.execute("INSERT INTO notes (id, body) VALUES (1, '1')")
    await watch.connection.execute(GATE)
    failures = await asyncio.gather(*asking(pool, [1] * 5), return_exceptions=True)
    assert all(isinstance(failure, Unavailable) for failure in failures), failures
    assert len({id(failure) for failure in failures}) == 5
    await watch.connection.execute(OPEN)
    assert await bodies(pool, 1) == ["1"]
    await pool.close()


async def test_a_deadline_that_was_given_is_kept_alone_and_in_company(pool: Recorded, watch: Watch) -> None:
    await watch.connection.execute(GATE)
    loop = asyncio.get_running_loop()
    soon = [asyncio.ensure_future(pool.fetch_shared(BODIES, 1, 2, deadline=loop.time() + 0.2)) for _ in range(3)]
    failures = await asyncio.gather(*soon, return_exceptions=True)
    assert [type(failure) for failure in failures] == [Unavailable] * 3
    await watch.connection.execute(OPEN)
    assert await bodies(pool, 1) == ["1", "2"]


async def test_a_broken_statement_is_told_to_all_who_shared_it(pool: Recorded, watch: Watch) -> None:
    await watch.connection.execute("ALTER TABLE notes RENAME body TO text")
    failures = await asyncio.gather(*asking(pool, [1, 1, 1]), return_exceptions=True)
    assert [type(failure) for failure in failures] == [asyncpg.UndefinedColumnError] * 3


async def test_in_a_transaction_it_is_a_statement_of_its_own_and_sees_what_was_done(pool: Recorded) -> None:
    write = Statement("test.rewrite", int, "UPDATE notes SET body = 'mine' WHERE id = $1")
    async with pool.transaction() as tx:
        await tx.execute(write, 3)
        first, second = await asyncio.gather(bodies(tx, 3), bodies(tx, 3))
        assert first == second == ["mine", "4"]
        assert await bodies(pool, 3) == ["3", "4"]
    assert await bodies(pool, 3) == ["mine", "4"]


async def give_up(pool: Pool, watch: Watch) -> None:
    await watch.connection.execute(GATE)
    given_up = asking(pool, [1, 1, 1])
    await until_it_answers(watch.waits_for_lock)
    for task in given_up:
        task.cancel()
    await asyncio.wait(given_up)
    await watch.connection.execute(OPEN)


@pytest.mark.usefixtures("patient")
async def test_nothing_is_kept_of_what_nobody_asks_any_more(
    pool: Recorded, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[object]] = []
    begin = StatementQueue.__init__

    def noted(queue: StatementQueue[object], *args: object, **options: object) -> None:
        made.append(weakref.ref(queue))
        begin(queue, *args, **options)  # type: ignore[arg-type] # whatever it was made with

    monkeypatch.setattr(StatementQueue, "__init__", noted)
    await asyncio.gather(*asking(pool, [2, 2, 3, 4, 4, 4]))
    await bodies(pool, 5)
    await give_up(pool, watch)

    async def gone() -> bool:
        gc.collect()
        return not any(queue() for queue in made)

    await until_it_answers(gone)
    assert len(made) == 5


@pytest.mark.usefixtures("patient")
async def test_closing_refuses_who_waits_and_leaves_nothing_behind(pool: Recorded, watch: Watch) -> None:
    await watch.connection.execute(GATE)
    under_way, waiting = asking(pool, [1, 1])
    await until_it_answers(watch.waits_for_lock)
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    await watch.connection.execute(OPEN)
    assert await under_way == ["1", "2"]
    with pytest.raises(Unavailable, match="closed"):
        await waiting
    await closing
    with pytest.raises(Unavailable, match="closed"):
        await bodies(pool, 2)
