from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from signal import SIGCONT, SIGSTOP
from typing import Any

import pytest

from hubbub import Conflict, Invalid, NotFound, PostgresSettings, Unavailable
from hubbub.postgres import Executor, Pool
from hubbub.postgres.transaction import ROLLBACK_GRACE_SECONDS
from postgres.faults import Proxy, frozen
from postgres.notes import ECHO, EMPTY, IDS, ONE, SLEEP, WRITE, WRITE_IN_ROOM, Observer, ids, pid_of
from waiting import until_it_answers


class Oops(Exception):
    pass


async def test_what_a_block_did_is_there_at_its_end(pool: Pool) -> None:
    async with pool.transaction() as tx:
        assert await tx.execute(WRITE, 1, "a") == 1
        assert await tx.fetch_all(IDS) == [1]
        assert await tx.fetch_one(ECHO, "a") == "a"
        assert await ids(pool) == []
    assert await ids(pool) == [1]


async def test_a_block_that_raises_did_nothing(pool: Pool) -> None:
    async def block() -> None:
        async with pool.transaction() as tx:
            await tx.execute(WRITE, 1, "a")
            raise Oops

    with pytest.raises(Oops):
        await block()
    assert await ids(pool) == []
    assert (pool.size, pool.idle) == (1, 1)


async def test_savepoints_fail_alone_and_nest(pool: Pool) -> None:
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


async def test_an_attempt_may_fail(pool: Pool) -> None:
    async with pool.transaction() as tx:
        await tx.execute(WRITE, 1, "a")
        with pytest.raises(Conflict):
            await tx.attempt(WRITE, 1, "b")
        assert await tx.attempt(IDS) == [1]
        await tx.execute(WRITE, 2, "b")
    assert await ids(pool) == [1, 2]


async def test_many_use_one_transaction_at_the_same_time(pool: Pool) -> None:
    async def one(tx: Executor, number: int) -> None:
        async with tx.transaction() as savepoint:
            await savepoint.execute(WRITE, number, "a")
            await asyncio.gather(savepoint.fetch_one(ONE), savepoint.attempt(WRITE, 100 + number, "b"))
            if number % 2:
                raise Oops

    async with pool.transaction() as tx:
        done = await asyncio.gather(*(one(tx, number) for number in range(10)), return_exceptions=True)
        echoes = await asyncio.gather(*(tx.fetch_all(ECHO, str(n)) for n in range(50)))
    assert echoes == [[str(n)] for n in range(50)]
    assert [isinstance(result, Oops) for result in done] == [False, True] * 5
    assert await ids(pool) == [*range(0, 10, 2), *range(100, 110, 2)]


async def test_a_transaction_that_is_over_is_not_used(pool: Pool) -> None:
    async with pool.transaction() as tx:
        async with tx.transaction() as savepoint:
            await savepoint.execute(WRITE, 1, "a")
        early = await asyncio.gather(savepoint.fetch_all(IDS), savepoint.attempt(IDS), return_exceptions=True)
        assert {str(error) for error in early} == {"hub: the transaction is over"}
    calls = (tx.fetch_all(IDS), tx.fetch_one(IDS), tx.execute(WRITE, 2, "b"), tx.attempt(IDS))
    late = await asyncio.gather(*calls, return_exceptions=True)
    assert {str(error) for error in late} == {"hub: the transaction is over"}
    with pytest.raises(Unavailable, match="the transaction is over"):
        tx.after_commit(lambda: None)
    assert await ids(pool) == [1]


async def test_a_transaction_with_a_deadline_ends_by_it_whatever_is_done_in_it(pool: Pool) -> None:
    deadline = asyncio.get_running_loop().time() + 0.3

    async def block() -> None:
        async with pool.transaction(deadline=deadline) as tx:
            assert tx.deadline() == deadline
            await tx.execute(WRITE, 1, "a")
            async with tx.transaction() as savepoint:
                await savepoint.fetch_one(SLEEP, 60)

    with pytest.raises(Unavailable):
        await block()
    assert asyncio.get_running_loop().time() < deadline + ROLLBACK_GRACE_SECONDS + 1
    assert await ids(pool) == []


async def test_a_statement_of_a_transaction_ends_by_the_deadline_of_its_call(pool: Pool) -> None:
    async def block(deadline: float) -> None:
        async with pool.transaction() as tx:
            await tx.attempt(SLEEP, 60, deadline=deadline)

    deadline = asyncio.get_running_loop().time() + 0.2
    with pytest.raises(Unavailable):
        await block(deadline)
    assert asyncio.get_running_loop().time() < deadline + ROLLBACK_GRACE_SECONDS + 1


async def test_while_a_savepoint_is_open_the_transaction_around_it_waits_in_vain(
    small: PostgresSettings,
) -> None:
    pool = Pool(replace(small, deadline_seconds=0.2))
    async with pool.transaction() as tx, tx.transaction():
        with pytest.raises(Unavailable, match=r"the transaction was in use for 0\.2 s"):
            await tx.fetch_one(ONE)
    await pool.close()


async def test_tasks_that_outlive_their_block_never_reach_its_connection(pool: Pool, observer: Observer) -> None:
    """One of several fails, the block ends, and the others go on: with a transaction that is over."""
    tasks: list[asyncio.Task[object]] = []

    async def block() -> None:
        async with pool.transaction() as tx:
            calls = (tx.fetch_one(SLEEP, 0.2), tx.execute(WRITE, 1, "never"), tx.attempt(WRITE, 2, "never"))
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


async def test_an_open_savepoint_of_another_task_does_not_hold_up_the_end(pool: Pool) -> None:
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
    assert pool.size == 0  # nothing else ends what the other task may be doing
    async with pool.transaction() as tx:
        late.set()
        with pytest.raises(Unavailable):
            await tasks[0]
        await tx.execute(WRITE, 1, "a")
    assert await ids(pool) == [1]


async def test_a_commit_waits_for_the_statement_that_another_task_runs(pool: Pool, observer: Observer) -> None:
    async with pool.transaction() as tx:
        await tx.execute(WRITE, 1, "a")
        task = asyncio.create_task(tx.fetch_one(SLEEP, 0.2))
        await until_it_answers(observer.sees_active)
    assert await task == 1
    assert await ids(pool) == [1]


async def test_after_a_swallowed_error_there_is_no_commit(pool: Pool) -> None:
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


async def test_an_error_swallowed_in_a_savepoint_undoes_the_savepoint_alone(pool: Pool) -> None:
    async with pool.transaction() as tx:
        await tx.execute(WRITE, 1, "a")

        async def block() -> None:
            async with tx.transaction() as savepoint:
                await savepoint.execute(WRITE, 2, "b")
                with pytest.raises(Invalid):
                    await savepoint.execute(EMPTY, 1)

        with pytest.raises(Unavailable, match="a statement in it had failed"):
            await block()
        await tx.execute(WRITE, 3, "c")
    assert await ids(pool) == [1, 3]


async def test_a_constraint_that_is_checked_at_the_commit_is_told_as_what_it_means(pool: Pool) -> None:
    with pytest.raises(NotFound, match="there is no room 77"):
        async with pool.transaction() as tx:
            await tx.execute(WRITE_IN_ROOM, 1, 77)
    assert await ids(pool) == []
    assert (pool.size, pool.idle) == (1, 1)


# What waits for the COMMIT


async def test_actions_leave_after_the_commit_in_their_order(pool: Pool) -> None:
    left: list[str] = []
    async with pool.transaction() as tx:
        tx.after_commit(lambda: left.append("first"))
        async with tx.transaction() as savepoint:
            savepoint.after_commit(lambda: left.append("second, of a savepoint"))

        async def block() -> None:
            async with tx.transaction() as savepoint:
                savepoint.after_commit(lambda: left.append("undone"))
                async with savepoint.transaction() as inner:
                    inner.after_commit(lambda: left.append("undone with what is around it"))
                raise Oops

        with pytest.raises(Oops):
            await block()
        tx.after_commit(lambda: left.append("third"))
        await tx.execute(WRITE, 1, "a")
        assert left == []
    await asyncio.sleep(0)
    assert left == ["first", "second, of a savepoint", "third"]


async def test_no_action_leaves_when_there_was_no_commit(pool: Pool) -> None:
    left: list[str] = []

    async def raising() -> None:
        async with pool.transaction() as tx:
            tx.after_commit(lambda: left.append("rolled back"))
            raise Oops

    async def swallowing() -> None:
        async with pool.transaction() as tx:
            tx.after_commit(lambda: left.append("failed"))
            await tx.execute(WRITE, 1, "a")
            with suppress(Conflict):
                await tx.execute(WRITE, 1, "a")

    with pytest.raises(Oops):
        await raising()
    with pytest.raises(Unavailable):
        await swallowing()
    await asyncio.sleep(0)
    assert left == []


async def test_an_action_that_raises_is_reported_and_disturbs_no_other(pool: Pool) -> None:
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reports.append(context))
    left: list[int] = []
    async with pool.transaction() as tx:
        tx.after_commit(lambda: left.append(1))
        tx.after_commit(lambda: left.append(1 // 0))
        tx.after_commit(lambda: left.append(3))
        await tx.execute(WRITE, 1, "a")
    await asyncio.sleep(0)
    assert left == [1, 3]
    assert [type(report["exception"]) for report in reports] == [ZeroDivisionError]
    assert await ids(pool) == [1]


# Lost connections


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "silence"])
async def test_a_commit_whose_answer_is_lost_has_an_unknown_outcome(
    small: PostgresSettings, observer: Observer, cut: bool
) -> None:
    left: list[int] = []
    async with Proxy(small) as proxy:
        pool = Pool(replace(proxy.settings, deadline_seconds=10 if cut else 0.3))
        proxy.lose_answer_to(b"COMMIT\0", cut=cut)

        async def block() -> None:
            async with pool.transaction() as tx:
                tx.after_commit(lambda: left.append(1))
                await tx.execute(WRITE, 1, "a")

        with pytest.raises(Unavailable) as caught:
            await block()
        assert caught.value.outcome_unknown
        proxy.lose_nothing()
        assert await ids(pool) == [1]
        assert pool.size == 1
        await pool.close()
    assert left == []


async def test_what_was_lost_before_the_commit_is_known_to_be_undone(pool: Pool, observer: Observer) -> None:
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


async def test_a_savepoint_on_a_lost_connection_tells_the_loss(pool: Pool, observer: Observer) -> None:
    async def block() -> None:
        async with pool.transaction() as tx, tx.transaction() as savepoint:
            await observer.terminate(await pid_of(savepoint))
            await savepoint.fetch_one(ONE)

    with pytest.raises(Unavailable, match="lost"):
        await block()
    assert pool.size == 0


async def test_a_statement_that_gets_no_answer_ends_the_transaction(small: PostgresSettings) -> None:
    pool = Pool(replace(small, deadline_seconds=0.3))

    async def block() -> None:
        async with pool.transaction() as tx:
            await tx.execute(WRITE, 1, "a")
            async with frozen(await pid_of(tx)):
                await tx.execute(WRITE, 2, "b")

    with pytest.raises(Unavailable, match=r"no answer within 0\.3 s") as caught:
        await block()
    assert not caught.value.outcome_unknown
    assert await ids(pool) == []
    await pool.close()


async def test_a_server_that_does_not_answer_the_rollback_loses_the_connection(pool: Pool) -> None:
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


async def test_a_cancelled_block_did_nothing_and_its_connection_is_used_again(
    pool: Pool, observer: Observer
) -> None:
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


async def test_a_statement_cancelled_by_a_timeout_of_the_block_s_own_undoes_it(pool: Pool) -> None:
    async def block() -> None:
        async with pool.transaction() as tx:
            await tx.execute(WRITE, 1, "a")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await tx.fetch_one(SLEEP, 60)

    with pytest.raises(Unavailable, match="a statement in it had failed"):
        await block()
    assert await ids(pool) == []
    assert (pool.size, pool.idle) == (1, 1)


async def test_a_commit_cancelled_before_it_was_sent_leaves_no_transaction_open(
    pool: Pool, observer: Observer
) -> None:
    """The COMMIT waits for the server to stop an earlier statement, which it does not, and is cancelled."""
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


async def test_a_second_cancellation_does_not_wait_for_the_rollback(pool: Pool, observer: Observer) -> None:
    pid = await pid_of(pool)

    async def block() -> None:
        async with pool.transaction() as tx:
            await tx.fetch_one(SLEEP, 1)

    task = asyncio.create_task(block())
    await until_it_answers(observer.sees_active)
    async with frozen(pid):
        task.cancel()
        await asyncio.wait([task], timeout=0.05)
        assert not task.done()
        await cancelled(task)
        assert pool.size == 0
    await until_it_answers(observer.sees_no_connection)


async def test_an_abandoned_generator_gives_its_transaction_back(pool: Pool) -> None:
    async def read() -> AsyncIterator[int]:
        async with pool.transaction() as tx:
            await tx.execute(WRITE, 1, "a")
            yield 1

    reader = read()
    assert await anext(reader) == 1
    await reader.aclose()  # type: ignore[attr-defined]
    assert (pool.size, pool.idle) == (1, 1)
    assert await ids(pool) == []


async def test_transactions_cancelled_anywhere_are_whole_or_nothing(pool: Pool, observer: Observer) -> None:
    """Cancelled after a random number of turns of the loop: in each BEGIN, statement, savepoint and COMMIT."""
    chance = random.Random(7)

    async def block(number: int) -> None:
        async with pool.transaction() as tx:
            await tx.execute(WRITE, number, "one half")
            async with tx.transaction() as savepoint:
                await savepoint.attempt(WRITE, 10_000 + number, "other half")

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
