from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from hubbub import Conflict, Invalid, PostgresSettings, Unavailable
from hubbub.postgres import Pool, Statement
from postgres.faults import Proxy
from postgres.notes import (
    ECHO,
    HANG_SECONDS,
    SLEEP,
    WRITE,
    Observer,
    ids,
    pid_of,
    warm_up,
)
from waiting import until_it_answers


async def test_action_on_a_pool_runs_at_once_and_is_reported_if_it_raises(pool: Pool) -> None:
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reports.append(context))
    done: list[int] = []
    pool.after_commit(lambda: done.append(1 // 0))
    pool.after_commit(lambda: done.append(1))
    assert done == [1]
    assert [type(report["exception"]) for report in reports] == [ZeroDivisionError]


REFUSED_VALUES: dict[str, list[object]] = {
    "text": ["\ud800", "a\0b", 7, b"bytes", True, object()],
    "text[]": [["\ud800"], ["a\0b"], [7], "text", 7],
    "bigint": [2**63, -(2**63) - 1, "7", "x", float("nan"), b"7"],
    "integer": [2**31, "7"],
    "bigint[]": [[2**63], ["7"]],
    "uuid": ["no uuid", "\ud800", 7, b"x" * 16],
    "uuid[]": [["no uuid"], [7], 7],
    "boolean": ["true", 7, None.__class__],
    "timestamptz": ["2026-01-02", 7],
    "jsonb": ["{", '"\\u0000"', {"a": 1}],
    "varchar(3)[]": [7],
}


@pytest.mark.parametrize(("kind", "values"), REFUSED_VALUES.items(), ids=list(REFUSED_VALUES))
async def test_value_that_a_column_cannot_hold_is_invalid_and_costs_no_connection(
    pool: Pool, kind: str, values: list[object]
) -> None:
    take = Statement("test.take", int, f"SELECT 1 WHERE $1::{kind} IS NOT NULL")
    for value in values:
        with pytest.raises(Invalid) as caught:
            await pool.fetch_all(take, value)
        assert caught.value.field == "argument"
        assert repr(value) not in str(caught.value)
    assert (pool.size, pool.idle) == (1, 1)


@pytest.mark.parametrize("prepared", [True, False], ids=["prepared", "not prepared"])
async def test_refused_value_leaves_no_transaction_open(
    small: PostgresSettings, observer: Observer, prepared: bool
) -> None:
    """asyncpg itself refuses the value, after the server has begun the statement."""
    pool = Pool(replace(small, prepared_statements=prepared))
    with pytest.raises(Invalid):
        await pool.execute(WRITE, "one", "a")
    assert await observer.states() == ["idle"]
    await observer.connection.execute("BEGIN; LOCK TABLE notes IN ACCESS EXCLUSIVE MODE NOWAIT; COMMIT")
    await pool.close()


async def test_setting_turns_prepared_statements_and_the_server_timeout_off(
    small: PostgresSettings, observer: Observer
) -> None:
    prepared = Statement("test.prepared", int, "SELECT count(*) FROM pg_prepared_statements WHERE NOT from_sql")
    timeout = Statement("test.timeout", str, "SELECT current_setting('statement_timeout')")
    for on, found in ((True, (3, "10s")), (False, (0, "0"))):
        pool = Pool(replace(small, prepared_statements=on))
        async with pool.transaction() as tx:
            assert [await tx.fetch_one(ECHO, text) for text in ("a", "b")] == ["a", "b"]

            async def block() -> None:
                await tx.fetch_in_savepoint(WRITE, 1, "a")
                await tx.fetch_in_savepoint(WRITE, 1, "a")

            with pytest.raises(Conflict):
                await block()
            count = await tx.fetch_one(prepared)
        assert (count, await pool.fetch_one(timeout)) == found
        await observer.connection.execute("DELETE FROM notes")
        await pool.close()


# Deadlines


async def test_server_ends_a_statement_whose_deadline_has_passed(
    small: PostgresSettings, observer: Observer
) -> None:
    pool = Pool(replace(small, deadline_seconds=0.3))
    await warm_up(pool)
    with pytest.raises(Unavailable, match=r"no answer|cancelled the statement"):
        await pool.fetch_one(SLEEP, HANG_SECONDS)
    await until_it_answers(lambda: observer.sees_active(0))
    await pool.close()


async def test_lock_timeout_of_the_server_raises_unavailable_after_all_attempts(
    small: PostgresSettings, observer: Observer
) -> None:
    await observer.connection.execute(f"ALTER DATABASE {small.database} SET lock_timeout = '20ms'")
    pool = Pool(small)
    add_x = Statement("test.add_x", int, "UPDATE notes SET body = body || 'x'")
    await observer.connection.execute("INSERT INTO notes (id, body) VALUES (1, 'a')")
    async with observer.connection.transaction():
        await observer.connection.execute("SELECT FROM notes FOR UPDATE")
        with pytest.raises(Unavailable, match="a lock was not available") as caught:
            await pool.execute(add_x)
    assert (caught.value.retryable, caught.value.outcome_unknown) == (True, False)
    assert await pool.execute(add_x) == 1
    await pool.close()


async def test_both_statements_of_a_deadlock_succeed(pool: Pool, observer: Observer) -> None:
    """Each statement locks one row, waits until both have done so, and needs the other row. One is repeated."""
    add_x = Statement(
        "test.add_x",
        int,
        """
        WITH first AS MATERIALIZED (
            SELECT id FROM notes WHERE id = $1 FOR UPDATE
        ), gate AS MATERIALIZED (
            SELECT pg_advisory_xact_lock_shared(7) FROM first
        )
        UPDATE notes SET body = body || 'x' FROM gate WHERE id = $2
        """,
    )
    await observer.connection.execute("INSERT INTO notes (id, body) VALUES (1, 'a'), (2, 'a')")
    await observer.connection.execute("SELECT pg_advisory_lock(7)")
    both = [asyncio.create_task(pool.execute(add_x, *rows)) for rows in ((1, 2), (2, 1))]
    await until_it_answers(lambda: observer.sees_lock_waiters(2))
    await observer.connection.execute("SELECT pg_advisory_unlock(7)")
    assert [await one for one in both] == [1, 1]
    assert [row["body"] for row in await observer.connection.fetch("SELECT body FROM notes")] == ["ax", "ax"]


# Lost connections


async def test_read_whose_connection_is_lost_is_sent_again(pool: Pool, observer: Observer) -> None:
    pid = await pid_of(pool)
    read = Statement(
        "test.read", int, f"SELECT 1 FROM pg_sleep(CASE pg_backend_pid() WHEN {pid} THEN 60 ELSE 0 END)"
    )
    reading = asyncio.create_task(pool.fetch_one(read))
    await until_it_answers(observer.sees_active)
    await observer.terminate(pid)
    assert await reading == 1


async def test_write_whose_connection_is_lost_is_sent_again_only_if_idempotent(
    pool: Pool, observer: Observer
) -> None:
    sql = (
        "INSERT INTO notes (id, body) "
        "SELECT $1, 'a' FROM pg_sleep(CASE pg_backend_pid() WHEN $2 THEN 60 ELSE 0 END)"
    )
    write = Statement("test.write_slowly", int, sql)
    write_once = Statement("test.write_once", int, f"{sql} ON CONFLICT DO NOTHING", idempotent=True)
    for statement, number in ((write, 1), (write_once, 2)):
        pid = await pid_of(pool)
        writing = asyncio.create_task(pool.execute(statement, number, pid))
        await until_it_answers(observer.sees_active)
        await observer.terminate(pid)
        if statement.repeatable:
            assert await writing == 1
        else:
            with pytest.raises(Unavailable, match="the connection was lost") as caught:
                await writing
            assert caught.value.outcome_unknown
    assert await ids(pool) == [2]


NOTE_ONCE = Statement(
    "test.note_once", int, "INSERT INTO notes (id, body) VALUES ($1, $2) ON CONFLICT DO NOTHING", idempotent=True
)


async def test_write_without_an_answer_or_a_second_attempt_has_an_unknown_outcome(
    small: PostgresSettings, observer: Observer
) -> None:
    async with Proxy(small) as proxy:
        pool = Pool(proxy.settings)
        await pool.execute(NOTE_ONCE, 1, "first")
        proxy.lose_answer_to(b"second", cut=True, last=True)
        with pytest.raises(Unavailable) as caught:
            await pool.execute(NOTE_ONCE, 2, "second")
        assert caught.value.outcome_unknown
        with pytest.raises(Unavailable) as caught:
            await pool.execute(NOTE_ONCE, 3, "third")
        assert not caught.value.outcome_unknown
        stored = await observer.connection.fetch("SELECT id FROM notes ORDER BY id")
        assert [row["id"] for row in stored] == [1, 2]
        await pool.close()


async def test_statement_prepared_for_an_older_schema_is_sent_again_outside_a_transaction(
    pool: Pool, observer: Observer
) -> None:
    body = Statement("test.body", lambda value: value, "SELECT body FROM notes")
    await pool.execute(WRITE, 1, "7")
    assert await pool.fetch_all(body) == ["7"]
    await observer.connection.execute("ALTER TABLE notes DROP CONSTRAINT users_email_check")
    await observer.connection.execute("ALTER TABLE notes ALTER body TYPE int USING body::int")
    with pytest.raises(Unavailable, match="the schema was changed under the statement") as caught:
        async with pool.transaction() as tx:
            await tx.fetch_all(body)
    assert caught.value.retryable
    await observer.connection.execute("ALTER TABLE notes ALTER body TYPE text")
    assert await pool.fetch_all(body) == ["7"]


async def test_statement_is_sent_again_however_often_the_schema_changes(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    async def run(*_: object, **__: object) -> list[tuple[str]]:
        nonlocal asked
        asked += 1
        if asked <= 5:  # more than the attempts for any other failure
            raise Unavailable("postgresql", "changed") from asyncpg.InvalidCachedStatementError("changed")
        return [("7",)]

    monkeypatch.setattr("hubbub.postgres.pool.run", run)
    assert await pool.fetch_all(Statement("test.body", lambda value: value, "SELECT body FROM notes")) == ["7"]
