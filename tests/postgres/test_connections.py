from __future__ import annotations

import asyncio
import os
import random
import socket
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL

import pytest

from hubbub import PostgresSettings, Unavailable
from hubbub.embedded import Servers
from hubbub.postgres import OpenTransaction, Pool, Statement
from hubbub.postgres.connection import Connection, connect_to
from hubbub.settings import Address
from postgres.faults import frozen
from postgres.notes import (
    ECHO,
    ONE,
    SLEEP,
    TABLE,
    WRITE,
    WRITE_ONCE,
    WRITE_SLOWLY,
    Observer,
    assert_whole,
    ids,
    pid_of,
    warm_up,
)
from waiting import HANGS_AFTER_SECONDS, until_it_answers

# Serving


async def test_connections_open_when_needed_and_the_last_used_is_next(pool: Pool, observer: Observer) -> None:
    assert pool.size == 0
    pids = {await pid_of(pool) for _ in range(10)}
    assert len(pids) == pool.size == len(await observer.states()) == 1


async def test_number_of_connections_never_exceeds_the_pool_size(pool: Pool, observer: Observer) -> None:
    pid_slowly = Statement("test.pid_slowly", int, "SELECT pg_backend_pid() FROM pg_sleep(0.01)")
    callers = asyncio.gather(*(pool.fetch_one(pid_slowly) for _ in range(50)))
    seen = 0
    while not callers.done():
        seen = max(seen, len(await observer.states()))
    seen = max(seen, len(await observer.states()))  # the second connection may have been opened for the last call
    assert len(set(await callers)) == seen == pool.size == pool.idle == 2


async def test_callers_are_served_in_the_order_of_their_calls(small: PostgresSettings) -> None:
    pool = Pool(replace(small, pool_size=1))
    served: list[int] = []

    async def call(number: int) -> None:
        await pool.fetch_one(ONE)
        served.append(number)

    await asyncio.gather(*(call(number) for number in range(200)))
    assert served == list(range(200))
    await pool.close()


async def test_idle_connection_is_closed_after_its_timeout_and_a_used_one_is_not(
    small: PostgresSettings, observer: Observer
) -> None:
    pool = Pool(replace(small, idle_timeout_seconds=0.05))
    async with pool.transaction() as tx:
        await asyncio.gather(pool.fetch_one(ONE), tx.fetch_one(ONE))

        async def only_the_used_one() -> bool:
            return await observer.states() == ["idle in transaction"]

        await until_it_answers(only_the_used_one)
        assert (pool.size, pool.idle) == (1, 0)
        assert await tx.fetch_one(ONE) == 1
    await until_it_answers(observer.sees_no_connection)
    assert pool.size == 0
    assert await pool.fetch_one(ONE) == 1
    await pool.close()


async def test_open_raises_unavailable_for_a_wrong_password(small: PostgresSettings) -> None:
    pool = Pool(replace(small, password="wrong"))
    with pytest.raises(Unavailable, match="password authentication failed") as caught:
        await pool.open()
    assert not caught.value.retryable
    assert "wrong" not in str(caught.value)
    assert pool.size == 0
    await pool.close()


# Waiting


async def test_deadline_covers_the_wait_for_a_connection(small: PostgresSettings, observer: Observer) -> None:
    pool = Pool(small)
    async with pool.transaction() as one, pool.transaction() as other:
        await one.fetch_one(ONE)
        await other.fetch_one(ONE)
        pool.deadline_seconds = 0.3
        calls = (pool.execute(WRITE, 1, "a"), pool.fetch_one(ONE), pool.fetch_all(ONE))
        for late in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(late, Unavailable)
            assert not late.outcome_unknown
            assert late.retryable
            assert "all 2 connections of the pool were in use" in late.reason
        pool.deadline_seconds = small.deadline_seconds
    await assert_whole(pool, observer)
    await pool.close()


async def test_caller_too_late_to_connect_gets_that_reason_and_marks_no_server_unreachable(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller has waited for a connection until then, and the server may be healthy."""

    async def silent(settings: PostgresSettings, _: Address, seconds: float, __: object) -> Connection:
        return await connect_to(settings, Address("127.0.0.1", silent_port), seconds)

    with socket.create_server(("127.0.0.1", 0)) as listener, monkeypatch.context() as patch:
        silent_port = listener.getsockname()[1]
        patch.setattr("hubbub.postgres.connection.connect_to", silent)
        with pytest.raises(Unavailable, match=r"was free until .* before the deadline"):
            await pool.fetch_one(ONE, deadline=asyncio.get_running_loop().time() + 0.05)
    assert await pool.fetch_one(ONE) == 1


async def test_hanging_server_process_leaves_the_outcome_of_a_write_unknown(
    small: PostgresSettings, observer: Observer
) -> None:
    pool = Pool(replace(small, pool_size=1, deadline_seconds=0.3))
    for statement, *args in ((ONE,), (WRITE, 1, "a"), (WRITE_ONCE, 2, 0)):
        await warm_up(pool)
        async with frozen(await pid_of(pool)):  # until the call has failed
            with pytest.raises(Unavailable, match=r"no answer within 0\.3 s") as caught:
                await pool.execute(statement, *args)
            assert caught.value.outcome_unknown == statement.writes
            await warm_up(pool)  # on another connection: the pool has not lost a slot
    await pool.close()


# Lost connections


async def test_idle_connections_ended_by_the_server_are_replaced(pool: Pool, observer: Observer) -> None:
    await asyncio.gather(pool.fetch_one(SLEEP, 0.01), pool.fetch_one(SLEEP, 0.01))
    assert pool.size == 2
    await observer.connection.execute(
        """
        SELECT pg_terminate_backend(pid, 10000)
        FROM pg_stat_activity
        WHERE datname = current_database()
            AND application_name = 'hubbub'
        """
    )
    assert await asyncio.gather(*(pool.fetch_one(ONE) for _ in range(4))) == [1] * 4
    await assert_whole(pool, observer)


async def test_caller_that_meets_a_dead_connection_does_not_meet_those_that_are_idle_for_longer(
    empty_database: PostgresSettings, observer: Observer
) -> None:
    """After the loss of a machine the sockets do not report it."""
    pool = Pool(replace(empty_database, pool_size=5))
    entered = asyncio.Barrier(5)
    pids: list[int] = []

    async def use_one() -> None:
        async with pool.transaction() as tx:
            pids.append(await pid_of(tx))
            await entered.wait()

    await asyncio.gather(*(use_one() for _ in range(5)))
    assert pool.idle == 5
    pool.deadline_seconds = 0.5
    async with frozen(*pids):
        with pytest.raises(Unavailable, match=r"no answer within 0\.5 s"):
            await pool.fetch_one(ONE)
        assert pool.size == 0
        await warm_up(pool)
    await pool.close()


async def test_connection_that_was_used_since_outlives_a_dead_one(pool: Pool, observer: Observer) -> None:
    await asyncio.gather(pool.fetch_one(SLEEP, 0.05), pool.fetch_one(SLEEP, 0.05))
    with suppress(Unavailable):
        async with pool.transaction() as tx:
            dying, other = await pid_of(tx), await pid_of(pool)
            await observer.connection.execute("SELECT pg_terminate_backend($1, 10000)", dying)
    assert await pid_of(pool) == other


async def test_pool_recovers_when_a_full_server_has_room_again(
    small: PostgresSettings, observer: Observer
) -> None:
    await observer.connection.execute(f"ALTER DATABASE {small.database} CONNECTION LIMIT 2")
    pool = Pool(small)
    async with pool.transaction():
        for _ in range(3):
            with pytest.raises(Unavailable, match="the server has no connection free") as caught:
                await pool.fetch_one(ONE)
            assert caught.value.retryable
    await observer.connection.execute(f"ALTER DATABASE {small.database} CONNECTION LIMIT -1")
    await assert_whole(pool, observer)
    await pool.close()


def postmaster_of(folder: Path) -> int:
    """The main process of the server with its data in this folder."""
    [lock] = folder.rglob("postmaster.pid")
    return int(lock.read_text().splitlines()[0])


async def test_pool_recovers_from_a_frozen_killed_and_restarted_server(tmp_path: Path) -> None:
    """All processes of the server are frozen, then killed, then started again. Only this test uses the server."""
    servers = Servers(tmp_path, fsync=False)
    async with servers as settings:
        observer = await Observer.connect(settings.postgres)
        await observer.connection.execute(TABLE)
        postmaster = postmaster_of(tmp_path)
        pool = Pool(replace(settings.postgres, pool_size=2, deadline_seconds=4, connect_timeout_seconds=0.3))
        await warm_up(pool)
        used = await pid_of(pool)

        async with frozen(postmaster, used):
            calls = [pool.fetch_one(ONE), pool.execute(WRITE, 1, "a"), pool.fetch_one(ONE)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(answer) for answer in answers] == [Unavailable] * 3

        async def both_are_open() -> bool:
            """On a busy machine a connection may take longer than its timeout."""
            await asyncio.gather(*(pool.fetch_one(SLEEP, 0.05) for _ in range(2)), return_exceptions=True)
            return pool.idle == 2

        await until_it_answers(both_are_open)
        slow = [asyncio.create_task(pool.execute(WRITE_SLOWLY, 2, 60)), asyncio.create_task(_hold(pool))]
        await until_it_answers(lambda: observer.sees_active(2))
        os.kill(postmaster, SIGKILL)
        lost = await asyncio.gather(*slow, return_exceptions=True)
        assert [type(answer) for answer in lost] == [Unavailable] * 2
        with pytest.raises(Unavailable):
            await pool.execute(WRITE, 3, "a")
        assert pool.size == 0

        await servers.start()
        await warm_up(pool)
        await pool.execute(WRITE, 4, "a")
        assert set(await ids(pool)) <= {1, 4}
        await pool.close()
        observer.connection.terminate()


async def _hold(pool: Pool) -> None:
    async with pool.transaction() as tx:
        await tx.fetch_one(SLEEP, 60)


# Closing


async def test_closed_pool_refuses_every_call(pool: Pool, observer: Observer) -> None:
    await pool.fetch_one(ONE)
    await asyncio.gather(pool.close(), pool.close())
    await pool.close()
    await until_it_answers(observer.sees_no_connection)
    assert pool.size == 0
    with pytest.raises(Unavailable, match="it is closed") as caught:
        await pool.fetch_one(ONE)
    assert not caught.value.retryable
    with pytest.raises(Unavailable, match="it is closed"):
        async with pool.transaction():
            pass
    with pytest.raises(Unavailable, match="it is closed"):
        await pool.open()


async def test_close_lets_transactions_finish_and_refuses_waiting_callers(
    pool: Pool, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubbub.postgres.pool.ABANDONED_AFTER_SECONDS", HANGS_AFTER_SECONDS)
    entered = asyncio.Barrier(3)
    leave = asyncio.Event()

    async def work(number: int) -> None:
        async with pool.transaction() as tx:
            await entered.wait()
            await leave.wait()
            await tx.execute(WRITE, number, "a")

    working = [asyncio.create_task(work(number)) for number in range(2)]
    await entered.wait()
    waiting = [asyncio.create_task(pool.fetch_one(ONE)) for _ in range(5)]
    await asyncio.sleep(0)
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    assert not closing.done()
    leave.set()
    await closing
    await asyncio.gather(*working)
    assert {str(error) for error in await asyncio.gather(*waiting, return_exceptions=True)} == {
        "hub: it is closed"
    }
    await until_it_answers(observer.sees_no_connection)
    assert await observer.connection.fetchval("SELECT count(*) FROM notes") == 2


async def test_close_does_not_wait_for_a_transaction_whose_block_runs_no_statement(
    small: PostgresSettings, observer: Observer
) -> None:
    pool = Pool(replace(small, deadline_seconds=600))
    entered, ended = asyncio.Event(), asyncio.Event()

    async def abandoned() -> None:
        async with pool.transaction() as tx, tx.transaction() as savepoint:
            await savepoint.execute(WRITE, 1, "a")
            entered.set()
            await ended.wait()
            await savepoint.execute(WRITE, 2, "a")

    async def working() -> None:
        async with pool.transaction() as tx:
            for number in range(3, 8):
                await tx.fetch_one(SLEEP, 0.3)
                await tx.execute(WRITE, number, "a")

    tasks = [asyncio.create_task(abandoned()), asyncio.create_task(working())]
    await entered.wait()
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        await pool.close()
    assert tasks[1].done()
    assert not tasks[0].done()
    ended.set()
    lost, worked = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(lost, Unavailable)
    assert not lost.outcome_unknown
    assert worked is None
    await until_it_answers(observer.sees_no_connection)
    assert await observer.connection.fetchval("SELECT array_agg(id ORDER BY id) FROM notes") == [*range(3, 8)]
    assert (pool.size, pool.use.in_use) == (0, 0)


async def test_close_ends_at_the_deadline_though_a_transaction_hangs(
    small: PostgresSettings, observer: Observer
) -> None:
    pool = Pool(replace(small, deadline_seconds=0.3))
    await warm_up(pool)
    pid = await pid_of(pool)
    entered = asyncio.Event()

    async def block() -> None:
        async with pool.transaction():
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(block())
    async with frozen(pid):
        await asyncio.wait([task], timeout=0.05)
        await pool.close()
    assert pool.size == pool.idle == 0 or task.done()
    task.cancel()
    await asyncio.wait([task])
    await until_it_answers(observer.sees_no_connection)


async def test_cancelled_close_leaves_no_connection_open(pool: Pool, observer: Observer) -> None:
    entered = asyncio.Event()

    async def block() -> None:
        async with pool.transaction() as tx:
            entered.set()
            await tx.fetch_one(SLEEP, 60)

    await asyncio.gather(pool.fetch_one(ONE), pool.fetch_one(ONE))
    task = asyncio.create_task(block())
    await entered.wait()
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing, task])
    assert closing.cancelled()
    assert isinstance(task.exception(), Unavailable)
    assert pool.size == 0


# Cancellation


async def test_caller_cancelled_while_waiting_takes_no_connection(pool: Pool, observer: Observer) -> None:
    async with pool.transaction(), pool.transaction():
        waiting = [asyncio.create_task(pool.fetch_one(ONE)) for _ in range(10)]
        await asyncio.sleep(0)
        for task in waiting[::2]:
            task.cancel()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert answers[1::2] == [1] * 5
    assert {type(answer) for answer in answers[::2]} == {asyncio.CancelledError}
    await assert_whole(pool, observer)


async def test_caller_cancelled_when_it_gets_a_connection_passes_it_on(
    small: PostgresSettings, observer: Observer
) -> None:
    pool = Pool(replace(small, pool_size=1))
    async with pool.transaction():
        waiting = [asyncio.create_task(pool.fetch_one(ONE)) for _ in range(2)]
        await asyncio.sleep(0)
    waiting[0].cancel()  # its turn has come, and it has not run yet
    await asyncio.wait(waiting)
    assert [task.cancelled() for task in waiting] == [True, False]
    await assert_whole(pool, observer, connections=1)
    await pool.close()


async def test_caller_cancelled_while_connecting_takes_no_connection(small: PostgresSettings) -> None:
    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    connected = asyncio.Event()
    async with await asyncio.start_server(silence, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        pool = Pool(replace(small, host="127.0.0.1", port=port, pool_size=1, connect_timeout_seconds=0.2))
        for _ in range(3):
            connected.clear()
            task = asyncio.create_task(pool.fetch_one(ONE))
            await connected.wait()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        with pytest.raises(Unavailable, match=r"no connection to 127\.0\.0\.1:\d+ within 0\.2 s"):
            await pool.fetch_one(ONE)
        await pool.close()


@pytest.mark.usefixtures("long_grace")
async def test_cancelled_statement_stops_before_its_connection_is_used_again(
    small: PostgresSettings, observer: Observer
) -> None:
    pool = Pool(replace(small, pool_size=1))
    pid = await pid_of(pool)
    for call in (pool.fetch_one(SLEEP, 60), pool.execute(WRITE_SLOWLY, 1, 60), pool.fetch_all(SLEEP, 60)):
        task = asyncio.create_task(call)
        await until_it_answers(observer.sees_active)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert await pid_of(pool) == pid
    assert await ids(pool) == []
    assert (pool.size, pool.idle) == (1, 1)
    await pool.close()


async def test_cancelled_statement_on_a_hanging_process_costs_the_connection(
    small: PostgresSettings, observer: Observer
) -> None:
    pool = Pool(replace(small, pool_size=1))
    pid = await pid_of(pool)
    async with frozen(pid):
        task = asyncio.create_task(pool.fetch_one(ONE))
        await asyncio.wait([task], timeout=0.05)
        task.cancel()
        await asyncio.wait([task])
        assert await pid_of(pool) != pid
    await pool.close()


async def test_pool_is_whole_after_all_tasks_of_the_loop_are_cancelled(pool: Pool, observer: Observer) -> None:
    """As at the end of a program, the pool's own tasks are cancelled as well."""
    calls = [asyncio.create_task(pool.fetch_one(SLEEP, 0.5)) for _ in range(4)]
    await until_it_answers(lambda: observer.sees_active(2))
    for _ in range(3):
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)
    await asyncio.wait(calls)
    await assert_whole(pool, observer)


async def test_pool_is_whole_after_a_thousand_random_cancellations(pool: Pool, observer: Observer) -> None:
    chance = random.Random(11)
    done = 0

    async def block(number: int) -> None:
        async with pool.transaction() as tx:
            await tx.execute(WRITE, number, "a")
            await tx.fetch_in_savepoint(WRITE, 10_000 + number, "b")

    async def call(number: int) -> None:
        nonlocal done
        match number % 4:
            case 0:
                await block(number)
            case 1:
                await pool.execute(WRITE, number, "a")
            case 2:
                await pool.fetch_one(SLEEP, 0.005)
            case _:
                assert await pool.fetch_one(ECHO, str(number)) == str(number)
        done += 1

    for start in range(0, 1000, 50):
        calls = [asyncio.create_task(call(number)) for number in range(start, start + 50)]
        chance.shuffle(calls)
        for task in calls:
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait(calls)
        assert {type(task.exception()) for task in calls if not task.cancelled()} <= {type(None)}
    await assert_whole(pool, observer)
    found = await ids(pool)
    assert {number + 10_000 for number in found if number < 10_000 and number % 4 == 0} == {
        number for number in found if number >= 10_000
    }
    assert done < 1000


# Rooms that are distributed while the process runs


async def test_only_the_first_connection_is_asked_whether_rooms_are_distributed(pool: Pool) -> None:
    asked: list[int | None] = []

    async def is_distributed(executor: OpenTransaction) -> bool:
        asked.append(await executor.fetch_one(ONE))
        return False

    pool.refuse_if(is_distributed)
    async with pool.transaction() as tx:
        await asyncio.gather(pool.fetch_one(ONE), tx.fetch_one(ONE))
    assert (asked, pool.size) == ([1], 2)


async def test_all_calls_are_refused_once_rooms_are_distributed(pool: Pool, observer: Observer) -> None:
    async def is_distributed(_: OpenTransaction) -> bool:
        return True

    pool.refuse_if(is_distributed)
    for _ in range(2):
        with pytest.raises(Unavailable, match="restart it") as error:
            await pool.fetch_one(ONE)
        assert not error.value.retryable
    await until_it_answers(observer.sees_no_connection)


async def test_question_without_an_answer_fails_the_call_and_ends_the_connection(
    pool: Pool, observer: Observer
) -> None:
    asked = 0

    async def is_distributed(_: OpenTransaction) -> bool:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise Unavailable("postgresql", "the connection was lost", outcome_unknown=True)
        return False

    pool.refuse_if(is_distributed)
    with pytest.raises(Unavailable) as error:
        await pool.fetch_one(ONE)
    assert not error.value.outcome_unknown
    await until_it_answers(observer.sees_no_connection)
    await warm_up(pool)
    assert asked == 2


async def test_caller_cancelled_after_the_answer_leaves_no_connection_open(pool: Pool, observer: Observer) -> None:
    async def is_distributed(_: OpenTransaction) -> bool:
        caller.cancel()  # takes effect in the COMMIT
        return False

    async def call() -> None:
        await pool.fetch_one(ONE)

    pool.refuse_if(is_distributed)
    caller = asyncio.create_task(call())
    await asyncio.wait([caller])
    assert caller.cancelled()
    await until_it_answers(observer.sees_no_connection)
