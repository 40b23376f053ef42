from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import NamedTuple

import asyncpg
import pytest

from hubbub import PostgresSettings, Unavailable
from hubbub.postgres import Executor, Lookup, Pool, Statement, sharing
from hubbub.postgres.executor import T
from hubbub.postgres.sharing import CALLERS_PER_STATEMENT
from postgres.notes import Watch
from waiting import until_it_answers


class Note(NamedTuple):
    id: int
    body: str


# A lookup of note 1 stops after its snapshot was taken, for as long as `gate` is held.
GATE = "SELECT pg_advisory_lock(1)"
OPEN = "SELECT pg_advisory_unlock(1)"
PASSES = "(id <> 1 OR pg_advisory_xact_lock_shared(1)::text IS NOT NULL)"
NOTES = Statement("test.notes", Note, f"SELECT id, body FROM notes WHERE id = ANY($1::int[]) AND {PASSES}")
NOTE = Lookup(
    "test.note",
    Note,
    f"SELECT id, body FROM notes WHERE id = $1 AND {PASSES}",
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


class Recorded(Pool):
    """Notes the name of each statement and how many keys it was given."""

    def __init__(self, settings: PostgresSettings) -> None:
        super().__init__(settings)
        self.sent: list[tuple[str, int]] = []

    async def fetch_one(self, statement: Statement[T], *args: object, deadline: float | None = None) -> T | None:
        self.sent.append((statement.name, 1))
        return await super().fetch_one(statement, *args, deadline=deadline)

    async def fetch_all(self, statement: Statement[T], *args: object, deadline: float | None = None) -> list[T]:
        keys = args[0] if args else ()
        assert isinstance(keys, tuple)
        self.sent.append((statement.name, len(keys)))
        return await super().fetch_all(statement, *args, deadline=deadline)


@pytest.fixture
async def pool(small: PostgresSettings, watch: Watch) -> AsyncIterator[Recorded]:
    """Two connections to a database with the notes 1 to 2,000, each of which says its own number."""
    await watch.connection.execute("INSERT INTO notes (id, body) SELECT n, n FROM generate_series(1, 2000) AS n")
    pool = Recorded(small)
    yield pool
    await pool.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def look_up(executor: Executor, number: int) -> Note | None:
    return await executor.look_up(NOTE, number)


def asking(pool: Pool, numbers: list[int]) -> list[asyncio.Task[Note | None]]:
    return [asyncio.create_task(look_up(pool, number)) for number in numbers]


async def test_one_who_asks_alone_is_served_by_the_statement_for_one(pool: Recorded) -> None:
    assert await look_up(pool, 7) == Note(7, "7")
    assert await look_up(pool, 8) == Note(8, "8")
    assert await look_up(pool, -1) is None
    assert pool.sent == [("test.note", 1)] * 3


async def test_those_who_ask_at_the_same_time_share_a_statement_and_get_their_own(pool: Recorded) -> None:
    numbers = [*range(1, 20), -1, 5, 5]
    found = await asyncio.gather(*asking(pool, numbers))
    assert found == [None if number == -1 else Note(number, str(number)) for number in numbers]
    assert pool.sent == [("test.note", 1), ("test.notes", 19)]  # 2 to 19 and the missing one


async def test_who_asks_again_when_answered_travels_with_the_others(pool: Recorded) -> None:
    async def ask_often(number: int) -> None:
        for _ in range(5):
            assert await look_up(pool, number) == Note(number, str(number))

    await asyncio.gather(*(ask_often(number) for number in range(1, 21)))
    assert [keys for _, keys in pool.sent[2:5]] == [20, 20, 20]


async def test_who_is_alone_again_after_a_crowd_is_served_by_the_statement_for_one(pool: Recorded) -> None:
    await asyncio.gather(*asking(pool, [1, 2, 3]))
    await asyncio.sleep(0)
    tasks_before = len(asyncio.all_tasks())
    pool.sent.clear()
    for _ in range(3):
        await look_up(pool, 4)
    assert pool.sent == [("test.note", 1)] * 3
    assert len(asyncio.all_tasks()) == tasks_before


async def test_a_crowd_is_split_into_statements_of_bounded_size(pool: Recorded) -> None:
    found = await asyncio.gather(*asking(pool, list(range(1, 1502))))
    assert [note.id for note in found if note is not None] == list(range(1, 1502))
    assert [keys for _, keys in pool.sent] == [
        1,
        CALLERS_PER_STATEMENT,
        CALLERS_PER_STATEMENT,
        CALLERS_PER_STATEMENT,
    ]


async def test_a_key_of_two_parts_is_found_by_both(pool: Recorded) -> None:
    keys = [(1, "1"), (2, "2"), (2, "1"), (3, "3")]

    async def look_up_pair(number: int, body: str) -> Note | None:
        return await pool.look_up(PAIR, number, body)

    found = await asyncio.gather(*(look_up_pair(*key) for key in keys))
    assert found == [Note(1, "1"), Note(2, "2"), None, Note(3, "3")]
    assert pool.sent[1:] == [("test.pairs", 3)]


@pytest.mark.parametrize("under_way", [[1], [2, 1, 1]], ids=["alone", "together"])
async def test_who_asks_after_a_change_sees_it_though_an_older_statement_is_under_way(
    pool: Recorded, watch: Watch, under_way: list[int]
) -> None:
    await watch.connection.execute(GATE)
    early = asking(pool, under_way)
    await until_it_answers(watch.waits_for_lock)  # its snapshot is taken
    await watch.connection.execute("UPDATE notes SET body = 'new' WHERE id = 1")
    late = asking(pool, [1, 1, 2])
    await asyncio.sleep(0)
    await watch.connection.execute(OPEN)

    assert await early[-1] == Note(1, "1")
    assert await asyncio.gather(*late) == [Note(1, "new"), Note(1, "new"), Note(2, "2")]


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
            note = await look_up(pool, 9)
            assert note is not None
            assert int(note.body) >= least

    await watch.connection.execute("UPDATE notes SET body = '0' WHERE id = 9")
    writing = asyncio.create_task(write())
    await asyncio.gather(writing, *(read() for _ in range(20)))


async def test_one_who_gives_up_takes_nothing_from_the_others(pool: Recorded, watch: Watch) -> None:
    await watch.connection.execute(GATE)
    first, gone, stays, gone_later, stays_too = asking(pool, [1, 2, 3, 1, 1])
    await until_it_answers(watch.busy)
    gone.cancel()
    await asyncio.wait([gone])
    first.cancel()  # whose own statement is under way; the next goes out, and stops at the gate as well
    await until_it_answers(lambda: sent_together(pool))
    gone_later.cancel()
    await watch.connection.execute(OPEN)

    assert await stays == Note(3, "3")
    assert await stays_too == Note(1, "1")
    assert first.cancelled()
    assert gone_later.cancelled()
    assert pool.sent == [("test.note", 1), ("test.notes", 2)]


async def sent_together(pool: Recorded) -> bool:
    return len(pool.sent) > 1


async def test_a_statement_that_is_stuck_does_not_hold_the_others_back(pool: Recorded, watch: Watch) -> None:
    await watch.connection.execute(GATE)
    [stuck] = asking(pool, [1])
    await until_it_answers(watch.busy)
    assert await asyncio.gather(*asking(pool, [2, 3])) == [Note(2, "2"), Note(3, "3")]
    assert not stuck.done()
    await watch.connection.execute(OPEN)
    assert await stuck == Note(1, "1")


async def test_the_deadline_holds_for_each_and_each_gets_an_error_of_its_own(
    small: PostgresSettings, watch: Watch
) -> None:
    pool = Pool(replace(small, deadline_seconds=0.5))
    await watch.connection.execute("INSERT INTO notes (id, body) VALUES (1, '1')")
    await watch.connection.execute(GATE)
    began = asyncio.get_running_loop().time()
    failures = await asyncio.gather(*asking(pool, [1] * 5), return_exceptions=True)
    assert all(isinstance(failure, Unavailable) for failure in failures), failures
    assert len({id(failure) for failure in failures}) == 5
    assert asyncio.get_running_loop().time() - began < 5
    await watch.connection.execute(OPEN)
    assert await look_up(pool, 1) == Note(1, "1")
    await pool.close()


async def test_a_connection_that_is_lost_costs_nobody_the_answer(pool: Recorded, watch: Watch) -> None:
    await watch.connection.execute(GATE)
    tasks = asking(pool, [1, 1, 2])
    await until_it_answers(watch.busy)
    await watch.connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'hubbub'"
    )
    await watch.connection.execute(OPEN)
    assert await asyncio.gather(*tasks) == [Note(1, "1"), Note(1, "1"), Note(2, "2")]


async def test_a_broken_statement_is_told_to_all_who_shared_it(pool: Recorded, watch: Watch) -> None:
    await watch.connection.execute("ALTER TABLE notes RENAME body TO text")
    failures = await asyncio.gather(*asking(pool, [1, 2, 3]), return_exceptions=True)
    assert [type(failure) for failure in failures] == [asyncpg.UndefinedColumnError] * 3


async def test_in_a_transaction_each_lookup_is_a_statement_of_its_own_and_sees_what_was_done(
    pool: Recorded,
) -> None:
    write = Statement("test.rewrite", int, "UPDATE notes SET body = 'mine' WHERE id = $1")
    async with pool.transaction() as tx:
        await tx.execute(write, 3)
        found = await asyncio.gather(*(look_up(tx, number) for number in (3, 4, 3)))
        assert found == [Note(3, "mine"), Note(4, "4"), Note(3, "mine")]
        assert await look_up(pool, 3) == Note(3, "3")
    assert await look_up(pool, 3) == Note(3, "mine")


async def test_closing_refuses_who_waits_and_leaves_nothing_behind(
    pool: Recorded, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "STUCK_AFTER_SECONDS", 60)  # or who waits is sent off on a busy machine
    await watch.connection.execute(GATE)
    under_way, waiting = asking(pool, [1, 2])
    await until_it_answers(watch.busy)
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    await watch.connection.execute(OPEN)
    assert await under_way == Note(1, "1")
    with pytest.raises(Unavailable, match="closed"):
        await waiting
    await closing
    with pytest.raises(Unavailable, match="closed"):
        await look_up(pool, 2)
