"""The next run completes a killed migration, at whichever statement it was killed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from asyncpg import Connection, Record

from hubbub import Conflict, PostgresSettings, Settings, migrations
from hubbub.migrations import REVISIONS, revisions
from migrations.catalog import schema
from migrations.contention import WAITS_FOR_A_SNAPSHOT, connected, process, until
from migrations.filled import HUBBUB_ROWS, ORIGINAL_ROWS, fill


class Died(Exception):
    """Stands for the end of a process. hubbub does not catch it."""


@contextmanager
def killed_before(statement: int) -> Iterator[None]:
    """End the run before its n-th statement. The server sees the connection close without a COMMIT."""
    sent = 0
    execute = Connection.execute

    async def dying(connection: Connection[Record], query: str, *arguments: object) -> str:
        nonlocal sent
        sent += 1
        if sent == statement:
            raise Died
        return await execute(connection, query, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "execute", dying)
        yield


async def _run_killed_everywhere(settings: PostgresSettings, direction: str, revision: str) -> int:
    """Run one revision repeatedly, and end the n-th run before its n-th statement."""
    statement = 0
    while True:
        statement += 1
        try:
            with killed_before(statement):
                if direction == "up":
                    await migrations.up(settings, revision)
                else:
                    await migrations.down(settings, revisions.previous(revision))
        except Died:
            continue
        return statement


@pytest.mark.parametrize("revision", REVISIONS[5:])
async def test_run_killed_before_any_statement_is_completed_by_the_next_run(
    postgres_settings: PostgresSettings, empty_database: PostgresSettings, revision: str
) -> None:
    before = revisions.previous(revision)
    await migrations.up(empty_database, before)
    below = await schema(empty_database)
    await migrations.up(empty_database, revision)
    above = await schema(empty_database)

    await migrations.down(postgres_settings, "0005")
    await fill(postgres_settings, ORIGINAL_ROWS)
    await migrations.up(postgres_settings)
    await fill(postgres_settings, HUBBUB_ROWS)
    await migrations.down(postgres_settings, before)

    assert await _run_killed_everywhere(postgres_settings, "up", revision) > 5
    assert await schema(postgres_settings) == above
    assert await _run_killed_everywhere(postgres_settings, "down", revision) > 2
    assert await schema(postgres_settings) == below


LEFT_BEHIND = """
    SELECT indisvalid
    FROM pg_index
    WHERE indexrelid = 'idx_rooms_name_to_0010'::regclass
"""
AT_WORK = """
    SELECT pid
    FROM pg_stat_activity
    WHERE query LIKE '{} INDEX CONCURRENTLY%'
        AND state = 'active'
        AND datname = current_database()
"""
BUILDER = AT_WORK.format("CREATE")
DROPPER = AT_WORK.format("DROP")


@pytest.fixture
async def at_0009(empty_database: PostgresSettings) -> PostgresSettings:
    await migrations.up(empty_database, "0009")
    return empty_database


async def test_invalid_index_left_by_killed_run_is_built_again(
    servers: Settings, at_0009: PostgresSettings, postgres_settings: PostgresSettings
) -> None:
    async with connected(at_0009) as reader, connected(at_0009) as watcher:
        await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await reader.fetchval("SELECT count(*) FROM users")
        run = await process(servers, at_0009, "up", "0010")
        await until(watcher, WAITS_FOR_A_SNAPSHOT)
        run.kill()
        await run.communicate()
        await watcher.fetch(f"SELECT pg_terminate_backend(pid) FROM ({BUILDER}) AS builder")
        await until(watcher, f"SELECT NOT EXISTS ({BUILDER})")
        assert await watcher.fetchval(LEFT_BEHIND) is False
        await reader.execute("ROLLBACK")
    assert await migrations.up(at_0009) == list(REVISIONS[9:])
    assert await schema(at_0009) == await schema(postgres_settings)


async def test_next_run_waits_for_server_process_of_killed_run(
    servers: Settings, at_0009: PostgresSettings, postgres_settings: PostgresSettings
) -> None:
    async with connected(at_0009) as reader, connected(at_0009) as watcher:
        await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await reader.fetchval("SELECT count(*) FROM users")
        run = await process(servers, at_0009, "up", "0010")
        await until(watcher, WAITS_FOR_A_SNAPSHOT)
        run.kill()
        await run.communicate()
        second = asyncio.create_task(migrations.up(at_0009))
        await until(watcher, f"SELECT EXISTS ({DROPPER})")
        await reader.execute("ROLLBACK")
        assert await second == list(REVISIONS[9:])
    assert await schema(at_0009) == await schema(postgres_settings)


async def test_duplicate_committed_during_index_build_is_a_conflict_and_leaves_no_index(
    empty_database: PostgresSettings,
) -> None:
    await migrations.up(empty_database, "0008")
    await fill(empty_database, "INSERT INTO users (email, username, password_hash) VALUES ('a@b', 'a', '!')")
    before = await schema(empty_database)
    async with connected(empty_database) as other, connected(empty_database) as watcher:
        await other.execute("BEGIN")
        await other.execute("INSERT INTO users (email, username, password_hash) VALUES ('A@B', 'b', '!')")
        migration = asyncio.create_task(migrations.up(empty_database))
        await until(watcher, WAITS_FOR_A_SNAPSHOT)
        await other.execute("COMMIT")
        with pytest.raises(Conflict) as conflict:
            await migration
    assert conflict.value.what == "email"
    assert await schema(empty_database) == before
    assert (await migrations.status(empty_database)).current == "0008"
