"""One contract for two executors: results, errors and deadlines of a pool and of a transaction are the same."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from typing import NamedTuple

import asyncpg
import pytest

from hubbub import Conflict, HubbubError, Invalid, PostgresSettings, Unavailable
from hubbub.postgres import Executor, Lookup, Pool, Statement
from postgres.faults import frozen
from postgres.notes import ECHO, EMPTY, HANG_SECONDS, IDS, ONE, SLEEP, WRITE, Observer, ids, pid_of, warm_up
from reports import reports
from waiting import until_it_answers

Open = Callable[[Pool], AbstractAsyncContextManager[Executor]]


@pytest.fixture(params=["pool", "transaction"])
def opened(request: pytest.FixtureRequest) -> Open:
    """Opens the executor for a block. It is the pool itself or a transaction on the pool."""
    if request.param == "pool":
        return nullcontext
    return lambda pool: pool.transaction()


class Oops(Exception):
    pass


class Note(NamedTuple):
    id: int
    body: str


NOTES = Statement("test.notes", Note, "SELECT id, body FROM notes WHERE id = ANY($1::int[])")
NOTE = Lookup(
    "test.note",
    Note,
    "SELECT id, body FROM notes WHERE id = $1",
    many=NOTES,
    key_of_args=lambda number: number,
    key_of_row=lambda note: note.id,
)
# Like `SLEEP`, for methods that take a lookup.
SLEEP_AS_LOOKUP = Lookup(
    "test.sleep_as_lookup",
    int,
    SLEEP.sql,
    many=Statement("test.sleep_as_lookups", int, "SELECT 1 FROM pg_sleep(($1::float8[])[1])"),
    key_of_args=lambda seconds: seconds,
    key_of_row=lambda row: row,
)
ABSENT = "SELECT id, body FROM absent WHERE id = $1"
ABSENT_NOTE = Lookup(
    "test.absent",
    Note,
    ABSENT,
    many=Statement("test.absents", Note, "SELECT id, body FROM absent WHERE id = ANY($1::int[])"),
    key_of_args=lambda number: number,
    key_of_row=lambda note: note.id,
)

# Each method as a call with one statement and one argument. Methods that need a lookup get one of the statement.
Method = Callable[[Executor, Statement[object], object], Awaitable[object]]


def look_up(executor: Executor, statement: Statement[object], arg: object) -> Awaitable[object]:
    assert isinstance(statement, Lookup)
    return executor.look_up(statement, arg)


METHODS: dict[str, Method] = {
    "fetch_all": lambda executor, statement, arg: executor.fetch_all(statement, arg),
    "fetch_one": lambda executor, statement, arg: executor.fetch_one(statement, arg),
    "fetch_shared": lambda executor, statement, arg: executor.fetch_shared(statement, arg),
    "execute": lambda executor, statement, arg: executor.execute(statement, arg),
    "fetch_in_savepoint": lambda executor, statement, arg: executor.fetch_in_savepoint(statement, arg),
    "look_up": look_up,
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))

# The methods with a parameter `deadline`.
WITH_DEADLINE: dict[str, Callable[[Executor, float], Awaitable[object]]] = {
    "fetch_all": lambda executor, at: executor.fetch_all(SLEEP, HANG_SECONDS, deadline=at),
    "fetch_one": lambda executor, at: executor.fetch_one(SLEEP, HANG_SECONDS, deadline=at),
    "fetch_shared": lambda executor, at: executor.fetch_shared(SLEEP, HANG_SECONDS, deadline=at),
    "fetch_in_savepoint": lambda executor, at: executor.fetch_in_savepoint(SLEEP, HANG_SECONDS, deadline=at),
}


# Results


async def test_rows_become_models(pool: Pool, opened: Open) -> None:
    pair = Statement("test.pair", lambda one, two: (one, two), "SELECT n, n + 1 FROM generate_series(1, $1) AS n")
    async with opened(pool) as executor:
        assert await executor.fetch_all(pair, 2) == [(1, 2), (2, 3)]
        assert await executor.fetch_shared(pair, 2) == [(1, 2), (2, 3)]
        assert await executor.fetch_in_savepoint(pair, 1) == [(1, 2)]
        assert await executor.fetch_one(pair, 2) == (1, 2)
        assert await executor.fetch_one(pair, 0) is None


async def test_execute_returns_the_number_of_changed_rows(pool: Pool, opened: Open) -> None:
    async with opened(pool) as executor:
        assert await executor.execute(WRITE, 1, "a") == 1
        assert await executor.execute(EMPTY, 2) == 0


async def test_reads_see_the_changes_made_before_them(pool: Pool, opened: Open) -> None:
    async with opened(pool) as executor:
        await executor.execute(WRITE, 1, "a")
        assert await executor.fetch_all(IDS) == [1]
        assert await executor.fetch_shared(IDS) == [1]
        assert await executor.look_up(NOTE, 1) == Note(1, "a")
        assert await executor.look_up(NOTE, 2) is None
    assert await ids(pool) == [1]


async def test_concurrent_callers_get_their_own_results(pool: Pool, opened: Open) -> None:
    async with opened(pool) as executor:
        echoes = await asyncio.gather(*(executor.fetch_all(ECHO, str(n)) for n in range(50)))
        shared = await asyncio.gather(*(executor.fetch_shared(ECHO, str(n % 5)) for n in range(50)))
    assert echoes == [[str(n)] for n in range(50)]
    assert shared == [[str(n % 5)] for n in range(50)]


# Errors


@pytest.mark.parametrize(
    ("write", "args", "error", "text"),
    [
        (WRITE, (1, "b"), Conflict, "this message id is already in use"),
        (WRITE, (2, ""), Invalid, "email: must have characters on both sides of an @"),
        (WRITE, (2, None), Invalid, "body: is required"),
        (EMPTY, (1,), Invalid, "email: must have characters on both sides of an @"),
    ],
    ids=["unique", "check", "not null", "check of an update"],
)
@pytest.mark.parametrize("name", ["fetch_all", "fetch_one", "execute", "fetch_in_savepoint"])
async def test_violated_constraint_raises_its_error(
    pool: Pool,
    opened: Open,
    name: str,
    write: Statement[object],
    args: tuple[object, ...],
    error: type[HubbubError],
    text: str,
) -> None:
    await pool.execute(WRITE, 1, "a")
    with pytest.raises(error) as caught:
        async with opened(pool) as executor:
            await getattr(executor, name)(write, *args)
    assert str(caught.value) == text
    assert isinstance(caught.value.__cause__, asyncpg.IntegrityConstraintViolationError)
    assert await ids(pool) == [1]
    assert pool.size == pool.idle


@every_method
async def test_value_that_a_column_cannot_hold_raises_invalid(pool: Pool, opened: Open, method: Method) -> None:
    for value in ("one", 2**31, b"1"):
        with pytest.raises(Invalid, match="argument: ") as caught:
            async with opened(pool) as executor:
                await method(executor, NOTE, value)
        assert repr(value) not in str(caught.value)
    assert pool.size == pool.idle


@every_method
async def test_missing_table_is_reported_as_another_schema(pool: Pool, opened: Open, method: Method) -> None:
    with pytest.raises(Unavailable, match=r"does not exist: the schema is older or newer .* `hubbub doctor`"):
        async with opened(pool) as executor:
            await method(executor, ABSENT_NOTE, 1)
    assert pool.size == pool.idle


async def test_executor_goes_on_after_a_failed_attempt(pool: Pool, opened: Open) -> None:
    async with opened(pool) as executor:
        await executor.execute(WRITE, 1, "a")
        with pytest.raises(Conflict):
            await executor.fetch_in_savepoint(WRITE, 1, "b")
        assert await executor.fetch_in_savepoint(IDS) == [1]
        await executor.execute(WRITE, 2, "b")
    assert await ids(pool) == [1, 2]


# Deadlines. The statements would hang, so a call that ends was ended by its deadline.


async def test_deadline_is_that_of_the_settings_from_now_on(pool: Pool, opened: Open) -> None:
    loop = asyncio.get_running_loop()
    async with opened(pool) as executor:
        earliest = loop.time() + 10
        deadline = executor.deadline()
        assert earliest <= deadline <= loop.time() + 10


@every_method
async def test_statement_without_an_answer_raises_unavailable_at_the_deadline(
    small: PostgresSettings, opened: Open, method: Method
) -> None:
    pool = Pool(replace(small, deadline_seconds=0.3))
    await warm_up(pool)

    async def failure() -> Unavailable:
        with pytest.raises(Unavailable) as caught:
            async with opened(pool) as executor:
                await method(executor, SLEEP_AS_LOOKUP, HANG_SECONDS)
        return caught.value

    error = await failure()
    while "the connection was lost" in error.reason:  # the BEGIN had its answer only at the deadline
        error = await failure()
    assert re.search(r"no answer within 0\.3 s|cancelled the statement", str(error))
    assert error.retryable
    assert not error.outcome_unknown
    await pool.close()


@every_method
async def test_hanging_server_process_raises_unavailable_at_the_deadline(
    small: PostgresSettings, opened: Open, method: Method
) -> None:
    pool = Pool(replace(small, pool_size=1, deadline_seconds=0.3))
    await warm_up(pool)
    pid = await pid_of(pool)
    # The process stays frozen until the call has failed.
    async with frozen(pid):
        with pytest.raises(Unavailable, match=r"no answer within 0\.3 s") as caught:
            async with opened(pool) as executor:
                await method(executor, SLEEP_AS_LOOKUP, 0)
        assert not caught.value.outcome_unknown
        await warm_up(pool)  # on another connection: the pool has not lost a slot
        assert await pid_of(pool) != pid
    await pool.close()


@pytest.mark.parametrize("name", WITH_DEADLINE)
async def test_given_deadline_ends_the_call(pool: Pool, opened: Open, name: str) -> None:
    await warm_up(pool)  # so that the deadline does not end the connecting

    async def call(deadline: float) -> None:
        async with opened(pool) as executor:
            await WITH_DEADLINE[name](executor, deadline)

    with pytest.raises(Unavailable, match="no answer") as caught:
        await call(asyncio.get_running_loop().time() + 0.2)
    assert not caught.value.outcome_unknown


@pytest.mark.parametrize("name", ["fetch_all", "fetch_one", "fetch_in_savepoint"])
async def test_call_after_its_deadline_changes_nothing(pool: Pool, opened: Open, name: str) -> None:
    with pytest.raises(Unavailable, match="no answer") as caught:
        async with opened(pool) as executor:
            await getattr(executor, name)(WRITE, 1, "never", deadline=asyncio.get_running_loop().time())
    assert not caught.value.outcome_unknown
    assert await ids(pool) == []


# Blocks


async def test_block_that_ends_has_made_its_changes(pool: Pool, opened: Open) -> None:
    async with opened(pool) as executor:
        async with executor.transaction() as block:
            await block.execute(WRITE, 1, "a")
            await block.execute(WRITE, 2, "a")
            assert await block.fetch_all(IDS) == [1, 2]
            assert await ids(pool) == []
        assert await executor.fetch_all(IDS) == [1, 2]
    assert await ids(pool) == [1, 2]


async def test_block_that_raises_has_made_no_change(pool: Pool, opened: Open) -> None:
    async def fail(executor: Executor) -> None:
        async with executor.transaction() as block:
            await block.execute(WRITE, 1, "undone")
            raise Oops

    async with opened(pool) as executor:
        with pytest.raises(Oops):
            await fail(executor)
        await executor.execute(WRITE, 2, "kept")
    assert await ids(pool) == [2]
    assert pool.size == pool.idle


async def test_failed_statement_undoes_its_block_and_nothing_else(pool: Pool, opened: Open) -> None:
    async def fail(executor: Executor) -> None:
        async with executor.transaction() as block:
            await block.execute(WRITE, 2, "undone")
            await block.execute(WRITE, 1, "refused")

    async with opened(pool) as executor:
        await executor.execute(WRITE, 1, "kept")
        with pytest.raises(Conflict):
            await fail(executor)
        await executor.execute(WRITE, 3, "kept")
    assert await ids(pool) == [1, 3]


async def test_block_that_goes_on_after_a_failed_statement_is_undone(pool: Pool, opened: Open) -> None:
    async def fail(executor: Executor) -> None:
        async with executor.transaction() as block:
            await block.execute(WRITE, 2, "undone")
            with pytest.raises(Invalid):
                await block.execute(WRITE, 3, "")

    async with opened(pool) as executor:
        with pytest.raises(Unavailable, match="a statement in it had failed"):
            await fail(executor)
        await executor.execute(WRITE, 4, "kept")
    assert await ids(pool) == [4]


async def test_deadline_of_a_block_ends_every_call_in_it(pool: Pool, opened: Open) -> None:
    await warm_up(pool)

    async def block(deadline: float) -> None:
        async with opened(pool) as executor, executor.transaction(deadline=deadline) as inside:
            assert inside.deadline() == deadline
            await inside.execute(WRITE, 1, "a")
            async with inside.transaction() as savepoint:
                await savepoint.fetch_one(SLEEP, HANG_SECONDS)

    with pytest.raises(Unavailable, match="no answer"):
        await block(asyncio.get_running_loop().time() + 0.3)
    assert await ids(pool) == []


async def test_ended_block_refuses_calls(pool: Pool, opened: Open) -> None:
    async with opened(pool) as executor:
        async with executor.transaction() as block:
            await block.execute(WRITE, 1, "a")
        calls = (
            block.fetch_all(IDS),
            block.fetch_one(IDS),
            block.execute(WRITE, 2, "b"),
            block.fetch_in_savepoint(IDS),
        )
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert {str(error) for error in errors} == {"hub: the transaction is over"}
        with pytest.raises(Unavailable, match="the transaction is over"):
            block.after_commit(lambda: None)
    assert await ids(pool) == [1]


# Actions after the commit


async def test_actions_run_after_the_commit_in_their_order(pool: Pool, opened: Open) -> None:
    done: list[str] = []

    async def fail(executor: Executor) -> None:
        async with executor.transaction() as block:
            block.after_commit(lambda: done.append("undone"))
            async with block.transaction() as inner:
                inner.after_commit(lambda: done.append("undone with the block around it"))
            raise Oops

    async with opened(pool) as executor:
        executor.after_commit(lambda: done.append("first"))
        async with executor.transaction() as block:
            await block.execute(WRITE, 1, "a")
            block.after_commit(lambda: done.append("second, of a block"))
            assert "second, of a block" not in done
        with pytest.raises(Oops):
            await fail(executor)
        executor.after_commit(lambda: done.append("third"))
    assert done == ["first", "second, of a block", "third"]


async def test_action_that_raises_is_reported_and_stops_no_other(pool: Pool, opened: Open) -> None:
    done: list[int] = []
    with reports() as reported:
        async with opened(pool) as executor:
            await executor.execute(WRITE, 1, "a")
            executor.after_commit(lambda: done.append(1))
            executor.after_commit(lambda: done.append(1 // 0))
            executor.after_commit(lambda: done.append(3))
    assert done == [1, 3]
    assert [type(report["exception"]) for report in reported] == [ZeroDivisionError]
    assert await ids(pool) == [1]


# Cancellation


@pytest.mark.usefixtures("long_grace")
@every_method
async def test_cancelled_call_stops_its_statement_and_frees_the_connection(
    pool: Pool, observer: Observer, opened: Open, method: Method
) -> None:
    async def call() -> None:
        async with opened(pool) as executor:
            await method(executor, SLEEP_AS_LOOKUP, HANG_SECONDS)

    pid = await pid_of(pool)
    task = asyncio.create_task(call())
    await until_it_answers(observer.sees_active)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await until_it_answers(lambda: observer.sees_active(0))

    async def connection_is_idle() -> bool:
        return pool.idle == 1

    await until_it_answers(connection_is_idle)
    assert await pid_of(pool) == pid
    assert await pool.fetch_one(ONE) == 1
