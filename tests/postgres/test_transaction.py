from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from signal import SIGCONT, SIGSTOP

import pytest

from hubbub import Conflict, Invalid, NotFound, PostgresSettings, Unavailable
from hubbub.postgres import Copy, Executor, Pool, Statement
from postgres.faults import Proxy, frozen
from postgres.notes import (
    ECHO,
    HANG_SECONDS,
    IDS,
    ONE,
    SLEEP,
    WRITE,
    WRITE_IN_ROOM,
    Observer,
    ids,
    pid_of,
    warm_up,
)
from waiting import until_it_answers


class Oops(Exception):
    pass


async def test_nested_savepoints_are_undone_alone(pool: Pool) -> None:
    async with pool.transaction() as tx:
        await tx.execute(WRITE, 1, "kept")
        async with tx.transaction() as outer:
            await outer.execute(WRITE, 2, "kept")

            async def fail() -> None:
                async with outer.transaction() as inner:
                    await inner.execute(WRITE, 3, "undone")
                    async with inner.transaction() as innermost:
                        await innermost.execute(WRITE, 4, "undone with what is around it")
                    raise Oops

            with pytest.raises(Oops):
                await fail()
            await outer.execute(WRITE, 5, "kept")
        with pytest.raises(Conflict):
            async with tx.transaction() as failed:
                await failed.execute(WRITE, 1, "again")
        await tx.execute(WRITE, 6, "kept")
    assert await ids(pool) == [1, 2, 5, 6]


async def test_concurrent_callers_use_one_transaction_one_after_the_other(pool: Pool) -> None:
    async def one(tx: Executor, number: int) -> None:
        async with tx.transaction() as savepoint:
            await savepoint.execute(WRITE, number, "a")
            await asyncio.gather(savepoint.fetch_one(ONE), savepoint.fetch_in_savepoint(WRITE, 100 + number, "b"))
            if number % 2:
                raise Oops

    async with pool.transaction() as tx:
        done = await asyncio.gather(*(one(tx, number) for number in range(10)), return_exceptions=True)
        echoes = await asyncio.gather(*(tx.fetch_all(ECHO, str(n)) for n in range(50)))
    assert echoes == [[str(n)] for n in range(50)]
    assert [isinstance(result, Oops) for result in done] == [False, True] * 5
    assert await ids(pool) == [*range(0, 10, 2), *range(100, 110, 2)]


async def test_transaction_refuses_calls_while_its_savepoint_is_open(pool: Pool) -> None:
    async with pool.transaction() as tx, tx.transaction():
        with pytest.raises(Unavailable, match=r"the transaction was in use for 0\.\d+ s"):
            await tx.fetch_one(ONE, deadline=asyncio.get_running_loop().time() + 0.2)


@pytest.mark.usefixtures("long_grace")
async def test_task_that_outlives_its_block_does_not_reach_its_connection(pool: Pool, observer: Observer) -> None:
    """One of several tasks fails and ends the block. The others still call the ended transaction."""
    tasks: list[asyncio.Task[object]] = []

    async def block() -> None:
        async with pool.transaction() as tx:
            calls = (
                tx.fetch_one(SLEEP, 3),
                tx.execute(WRITE, 1, "never"),
                tx.fetch_in_savepoint(WRITE, 2, "never"),
            )
            tasks.extend(asyncio.create_task(call) for call in calls)
            await until_it_answers(observer.sees_active)
            raise Oops

    with pytest.raises(Oops):
        await block()
    first, *others = await asyncio.gather(*tasks, return_exceptions=True)
    assert first == 1
    assert {str(error) for error in others} == {"hub: the transaction is over"}
    assert await ids(pool) == []
    assert await observer.states() == ["idle"]


async def test_savepoint_left_open_by_another_task_does_not_delay_the_end(pool: Pool) -> None:
    opened, late = asyncio.Event(), asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def savepoint(tx: Executor) -> None:
        async with tx.transaction() as inner:
            opened.set()
            await late.wait()
            await inner.execute(WRITE, 2, "never")

    async def block() -> None:
        async with pool.transaction() as tx:
            tasks.append(asyncio.create_task(savepoint(tx)))
            await opened.wait()
            raise Oops

    with pytest.raises(Oops):
        await block()
    assert pool.size == 0  # only the end of the connection ends a statement of the other task
    async with pool.transaction() as tx:
        late.set()
        with pytest.raises(Unavailable):
            await tasks[0]
        await tx.execute(WRITE, 1, "a")
    assert await ids(pool) == [1]


async def test_commit_waits_for_the_running_statement_of_another_task(pool: Pool, observer: Observer) -> None:
    async with pool.transaction() as tx:
        await tx.execute(WRITE, 1, "a")
        task = asyncio.create_task(tx.fetch_one(SLEEP, 3))
        await until_it_answers(observer.sees_active)
    assert await task == 1
    assert await ids(pool) == [1]


async def test_block_that_swallows_an_error_is_not_committed(pool: Pool) -> None:
    async def block() -> None:
        async with pool.transaction() as tx:
            await tx.execute(WRITE, 1, "a")
            with pytest.raises(Conflict):
                await tx.execute(WRITE, 1, "b")
            with pytest.raises(Unavailable, match="a statement in it had failed"):
                await tx.execute(WRITE, 2, "b")
            with pytest.raises(Unavailable, match="a statement in it had failed"):
                async with tx.transaction():
                    pass

    with pytest.raises(Unavailable, match="a statement in it had failed") as caught:
        await block()
    assert (caught.value.outcome_unknown, caught.value.retryable) == (False, False)
    assert await ids(pool) == []
    assert (pool.size, pool.idle) == (1, 1)


async def test_constraint_checked_at_the_commit_raises_its_error(pool: Pool) -> None:
    with pytest.raises(NotFound, match="there is no room 77"):
        async with pool.transaction() as tx:
            await tx.execute(WRITE_IN_ROOM, 1, 77)
    assert await ids(pool) == []
    assert (pool.size, pool.idle) == (1, 1)


# Actions after the COMMIT


async def test_no_action_runs_without_a_commit(pool: Pool) -> None:
    done: list[str] = []

    async def raising() -> None:
        async with pool.transaction() as tx:
            tx.after_commit(lambda: done.append("rolled back"))
            raise Oops

    async def swallowing() -> None:
        async with pool.transaction() as tx:
            tx.after_commit(lambda: done.append("failed"))
            await tx.execute(WRITE, 1, "a")
            with suppress(Conflict):
                await tx.execute(WRITE, 1, "a")

    with pytest.raises(Oops):
        await raising()
    with pytest.raises(Unavailable):
        await swallowing()
    await asyncio.sleep(0)
    assert done == []


# Lost connections


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "silence"])
async def test_commit_without_an_answer_has_an_unknown_outcome(
    small: PostgresSettings, observer: Observer, cut: bool
) -> None:
    done: list[int] = []
    async with Proxy(small) as proxy:
        pool = Pool(replace(proxy.settings, deadline_seconds=10 if cut else 0.3))
        await warm_up(pool)
        proxy.lose_answer_to(b"COMMIT\0", cut=cut)

        async def block() -> None:
            async with pool.transaction() as tx:
                tx.after_commit(lambda: done.append(1))
                await tx.execute(WRITE, 1, "a")

        while proxy.has_lost_nothing_yet:  # on a busy machine the deadline may pass before the COMMIT
            with pytest.raises(Unavailable) as caught:
                await block()
        assert caught.value.outcome_unknown
        await warm_up(pool)
        assert await ids(pool) == [1]
        assert pool.size == 1
        await pool.close()
    assert done == []


async def test_connection_lost_before_the_commit_undoes_the_block(pool: Pool, observer: Observer) -> None:
    async def block(*, swallowing: bool) -> None:
        async with pool.transaction() as tx:
            await tx.execute(WRITE, 1, "a")
            await observer.terminate(await pid_of(tx))
            with suppress(Unavailable) if swallowing else nullcontext():
                await tx.fetch_one(ONE)

    for swallowing in (False, True):
        with pytest.raises(Unavailable, match="lost") as caught:
            await block(swallowing=swallowing)
        assert not caught.value.outcome_unknown
        assert caught.value.retryable
    assert await ids(pool) == []
    assert pool.size == 1


async def test_savepoint_on_a_lost_connection_raises_the_loss(pool: Pool, observer: Observer) -> None:
    async def block() -> None:
        async with pool.transaction() as tx, tx.transaction() as savepoint:
            await observer.terminate(await pid_of(savepoint))
            await savepoint.fetch_one(ONE)

    with pytest.raises(Unavailable, match="lost"):
        await block()
    assert pool.size == 0


async def test_statement_without_an_answer_ends_the_transaction(small: PostgresSettings) -> None:
    pool = Pool(replace(small, deadline_seconds=0.3))
    await warm_up(pool)

    async def block() -> None:
        async with pool.transaction() as tx:
            await tx.execute(WRITE, 1, "a")
            async with frozen(await pid_of(tx)):
                await tx.execute(WRITE, 2, "b")

    with pytest.raises(Unavailable, match=r"no answer within 0\.3 s") as caught:
        await block()
    assert not caught.value.outcome_unknown
    await warm_up(pool)
    assert await ids(pool) == []
    await pool.close()


async def test_rollback_without_an_answer_terminates_the_connection(pool: Pool) -> None:
    pid = await pid_of(pool)
    async with frozen(pid):
        os.kill(pid, SIGCONT)

        async def block() -> None:
            async with pool.transaction() as tx:
                await tx.execute(WRITE, 1, "a")
                os.kill(pid, SIGSTOP)
                raise Oops

        with pytest.raises(Oops):
            await block()
        assert pool.size == 0
    assert await ids(pool) == []


# Cancellation


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.usefixtures("long_grace")
async def test_cancelled_block_is_undone_and_its_connection_is_used_again(pool: Pool, observer: Observer) -> None:
    async def block() -> None:
        async with pool.transaction() as tx:
            await tx.execute(WRITE, 1, "a")
            await tx.fetch_one(SLEEP, 60)

    pid = await pid_of(pool)
    task = asyncio.create_task(block())
    await until_it_answers(observer.sees_active)
    await cancelled(task)
    await until_it_answers(lambda: _is_idle(pool, 1))
    assert await pid_of(pool) == pid
    assert await ids(pool) == []


async def _is_idle(pool: Pool, count: int) -> bool:
    return pool.idle == count


@pytest.mark.usefixtures("long_grace")
async def test_timeout_around_a_statement_undoes_the_block(pool: Pool, observer: Observer) -> None:
    async def block() -> None:
        async with pool.transaction() as tx:
            await tx.execute(WRITE, 1, "a")
            await tx.fetch_one(SLEEP, 0)  # prepares it: a cancellation of that would leave the transaction intact
            sleeping = asyncio.create_task(tx.fetch_one(SLEEP, 60))
            await until_it_answers(observer.sees_active)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(sleeping, 0)

    with pytest.raises(Unavailable, match="a statement in it had failed"):
        await block()
    assert await ids(pool) == []
    assert (pool.size, pool.idle) == (1, 1)


async def test_commit_cancelled_before_it_is_sent_leaves_no_transaction_open(
    pool: Pool, observer: Observer
) -> None:
    """The COMMIT waits until a hanging server stops an earlier statement, and is cancelled meanwhile."""
    pid = await pid_of(pool)
    ending = asyncio.Event()

    async def block() -> None:
        async with pool.transaction() as tx:
            await tx.execute(WRITE, 1, "a")
            os.kill(pid, SIGSTOP)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await tx.fetch_one(SLEEP, 60)
            asyncio.get_running_loop().call_later(0.05, ending.set)

    task = asyncio.create_task(block())
    try:
        await ending.wait()
        task.cancel()
        await asyncio.wait([task])
    finally:
        os.kill(pid, SIGCONT)
    assert task.cancelled()

    async def given_back() -> bool:
        return pool.size == pool.idle

    await until_it_answers(given_back)
    assert await ids(pool) == []

    async def whole() -> bool:
        return await observer.states() == ["idle"]

    await until_it_answers(whole)


async def test_second_cancellation_does_not_wait_for_the_rollback(pool: Pool, observer: Observer) -> None:
    pid = await pid_of(pool)

    async def block() -> None:
        async with pool.transaction() as tx:
            await tx.fetch_one(SLEEP, HANG_SECONDS)

    task = asyncio.create_task(block())
    await until_it_answers(observer.sees_active)
    async with frozen(pid):
        task.cancel()
        await asyncio.wait([task], timeout=0.05)
        assert not task.done()
        await cancelled(task)
        assert pool.size == 0
    await until_it_answers(observer.sees_no_connection)


async def test_abandoned_generator_ends_its_transaction(pool: Pool) -> None:
    async def read() -> AsyncIterator[int]:
        async with pool.transaction() as tx:
            await tx.execute(WRITE, 1, "a")
            yield 1

    reader = read()
    assert await anext(reader) == 1
    await reader.aclose()  # type: ignore[attr-defined]
    assert (pool.size, pool.idle) == (1, 1)
    assert await ids(pool) == []


async def test_transaction_cancelled_anywhere_is_committed_as_a_whole_or_not_at_all(
    pool: Pool, observer: Observer
) -> None:
    """Each transaction is cancelled after a random number of turns, in a BEGIN, statement, savepoint or COMMIT."""
    chance = random.Random(7)

    async def block(number: int) -> None:
        async with pool.transaction() as tx:
            await tx.execute(WRITE, number, "one half")
            async with tx.transaction() as savepoint:
                await savepoint.fetch_in_savepoint(WRITE, 10_000 + number, "other half")

    committed = 0
    for number in range(200):
        task = asyncio.create_task(block(number))
        for _ in range(chance.randrange(40)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        committed += not task.cancelled()

    async def given_back() -> bool:
        return pool.size == pool.idle

    await until_it_answers(given_back)
    found = await ids(pool)
    assert found[: len(found) // 2] == [number - 10_000 for number in found[len(found) // 2 :]]
    assert committed <= len(found) // 2 < 200
    assert set(await observer.states()) == {"idle"}


# COPY and snapshots

NOTES = Copy("notes", ("id", "body"))
BODIES = Statement("test.bodies", str, "SELECT body FROM notes ORDER BY id")


async def test_copied_rows_are_visible_after_the_commit(pool: Pool) -> None:
    async with pool.transaction() as tx:
        await tx.copy(NOTES, [(1, "a\tb\n\\N"), (2, "b")])
        assert await ids(pool) == []
    assert await pool.fetch_all(BODIES) == ["a\tb\n\\N", "b"]


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([(1, "a"), (1, "b")], Conflict),
        ([(1, "a"), (2, "")], Invalid),
        ([(1, "a"), (2, None)], Invalid),
    ],
)
async def test_refused_row_refuses_the_whole_copy(
    pool: Pool, rows: list[tuple[object, ...]], error: type[Exception]
) -> None:
    with pytest.raises(error):
        async with pool.transaction() as tx:
            await tx.copy(NOTES, rows)
    assert await ids(pool) == []


async def test_copy_takes_rows_of_an_asynchronous_iterable(pool: Pool) -> None:
    async def rows() -> AsyncIterator[tuple[object, ...]]:
        for number in range(1, 4):
            await asyncio.sleep(0)
            yield number, "x" * 1_000_000

    async with pool.transaction() as tx:
        await tx.copy(NOTES, rows())
    assert await ids(pool) == [1, 2, 3]


async def test_error_of_the_iterable_fails_the_copy(pool: Pool) -> None:
    async def rows() -> AsyncIterator[tuple[object, ...]]:
        yield 1, "a"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with pool.transaction() as tx:
            await tx.copy(NOTES, rows())
    assert await ids(pool) == []


async def test_one_snapshot_is_read_until_the_end(pool: Pool) -> None:
    async with pool.transaction() as tx:
        await tx.use_one_snapshot()
        assert await tx.fetch_all(IDS) == []
        await pool.execute(WRITE, 1, "a")
        assert await tx.fetch_all(IDS) == []
    assert await ids(pool) == [1]
