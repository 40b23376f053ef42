"""Refusals of PgBouncer. The error has whether to retry, and the setting to change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from hubbub import PostgresSettings, Unavailable, migrations
from hubbub.postgres import Pool, Statement, connect
from pgbouncer.conftest import Start

ECHO = Statement("test.echo", int, "SELECT $1::int")
WRITE = Statement("test.write", int, "INSERT INTO users (email, username, password_hash) VALUES ($1, $2, $3)")
SETTING = "DB_PREPARED_STATEMENTS=false"

WRONG: dict[str, tuple[Callable[[PostgresSettings], PostgresSettings], str]] = {
    "password": (lambda right: replace(right, password="correct-horse-battery"), "authentication failed"),
    "user": (lambda right: replace(right, user="nobody"), "authentication failed"),
    "database": (lambda right: replace(right, database="nowhere"), 'database "nowhere" does not exist'),
    "setting": (lambda right: replace(right, prepared_statements=True), SETTING),
}


@pytest.mark.parametrize(("change", "reason"), WRONG.values(), ids=list(WRONG))
async def test_wrong_setting_raises_its_reason_and_is_not_retryable(
    started: Start,
    application: PostgresSettings,
    change: Callable[[PostgresSettings], PostgresSettings],
    reason: str,
) -> None:
    pool = Pool(change(started().in_front_of(application)))
    with pytest.raises(Unavailable, match=reason) as caught:
        await pool.open()
    assert not caught.value.retryable
    assert "correct-horse-battery" not in str(caught.value)
    await pool.close()


async def test_full_pooler_is_retryable(started: Start, application: PostgresSettings) -> None:
    pooled = started("max_client_conn = 3").in_front_of(application)
    async with AsyncExitStack() as stack:

        async def all_come() -> None:
            for _ in range(4):
                stack.push_async_callback((await connect(pooled)).close)

        with pytest.raises(Unavailable, match="no more connections allowed") as caught:
            await all_come()
    assert caught.value.retryable


async def test_write_without_a_session_of_the_pooler_is_known_not_to_have_run(
    started: Start, application: PostgresSettings
) -> None:
    pooled = started("default_pool_size = 1", "query_wait_timeout = 1").in_front_of(application)
    pool = Pool(replace(pooled, deadline_seconds=30))
    async with pool.transaction() as tx:
        await tx.fetch_all(ECHO, 1)
        with pytest.raises(Unavailable, match="the pooler had no connection") as caught:
            await pool.execute(WRITE, "ada@example.org", "ada", "not a hash")
    assert caught.value.retryable
    assert not caught.value.outcome_unknown
    await pool.close()


async def test_statement_prepared_in_another_session_raises_with_the_setting_to_change(
    started: Start, application: PostgresSettings
) -> None:
    """This PgBouncer ignores the timeout parameter and does not track prepared statements."""
    pooler = started("default_pool_size = 3", "ignore_startup_parameters = statement_timeout")
    pool = Pool(replace(pooler.in_front_of(application), prepared_statements=True, pool_size=3))

    async def ask() -> None:
        for n in range(20):
            await pool.fetch_all(ECHO, n)

    async with AsyncExitStack() as stack:
        for _ in range(3):  # so that the pooler has three sessions
            await (await stack.enter_async_context(pool.transaction())).fetch_all(ECHO, 1)
    with pytest.raises(Unavailable, match=SETTING) as caught:
        await asyncio.gather(*(ask() for _ in range(3)))
    assert not caught.value.retryable
    await pool.close()


async def test_migrations_refuse_to_run_through_the_pooler(
    started: Start, postgres_settings: PostgresSettings
) -> None:
    """The lock of a migration belongs to a session, and would stay in a session of the pooler."""
    with pytest.raises(Unavailable, match="connect to PostgreSQL directly") as caught:
        await migrations.up(started().in_front_of(postgres_settings))
    assert not caught.value.retryable
