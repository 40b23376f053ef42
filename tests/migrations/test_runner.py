"""Concurrent migrations, and a migration beside a running application."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import pytest

from hubbub import PostgresSettings, Settings, Unavailable, migrations
from hubbub.migrations import REVISIONS, Timeouts
from hubbub.migrations.runner import LOCK_KEY, TRY_LOCK
from migrations.catalog import schema
from migrations.contention import (
    ALONE,
    FIVE_CLIENTS,
    WAITS_FOR_A_SNAPSHOT,
    WAITS_FOR_A_TABLE,
    connected,
    process,
    until,
)
from migrations.filled import ORIGINAL_ROWS, fill

SHORT = Timeouts(lock_timeout_seconds=0.1, retry_seconds=0.3, migration_lock_seconds=0.3)


async def test_concurrent_processes_apply_each_revision_once(
    servers: Settings, empty_database: PostgresSettings
) -> None:
    processes = [await process(servers, empty_database, "up") for _ in range(6)]
    outputs = [(await one.communicate())[0].decode() for one in processes]
    assert [one.returncode for one in processes] == [0] * 6
    applied = [line[:4] for output in outputs for line in output.splitlines() if "applied" in line]
    assert sorted(applied) == list(REVISIONS)
    assert (await migrations.status(empty_database)).pending == ()


async def test_concurrent_tasks_apply_each_revision_once(empty_database: PostgresSettings) -> None:
    applied = await asyncio.gather(*(migrations.up(empty_database) for _ in range(5)))
    assert sorted(applied) == [[], [], [], [], list(REVISIONS)]


async def test_two_databases_are_migrated_concurrently_in_one_process(
    empty_database: PostgresSettings, postgres_settings: PostgresSettings
) -> None:
    up, down = await asyncio.gather(migrations.up(empty_database), migrations.down(postgres_settings, "base"))
    assert up == list(REVISIONS)
    assert down == list(reversed(REVISIONS))


async def test_up_on_current_database_does_not_wait_for_the_lock(postgres_settings: PostgresSettings) -> None:
    async with connected(postgres_settings) as other:
        assert await other.fetchval(TRY_LOCK.sql, LOCK_KEY)
        assert await migrations.up(postgres_settings, timeouts=SHORT) == []


async def test_waiting_too_long_for_another_process_is_logged_and_unavailable(
    empty_database: PostgresSettings, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(empty_database) as other:
        assert await other.fetchval(TRY_LOCK.sql, LOCK_KEY)
        with pytest.raises(Unavailable, match="other processes were migrating"):
            await migrations.up(empty_database, timeouts=SHORT)
    [waits] = [record.getMessage() for record in caplog.records if record.name == "hubbub.migrations"]
    assert waits.startswith("waiting for another `hubbub migrate`")
    assert await migrations.up(empty_database) == list(REVISIONS)


async def test_lock_of_another_database_is_not_waited_for(
    empty_database: PostgresSettings, postgres_settings: PostgresSettings
) -> None:
    async with connected(postgres_settings) as other:
        assert await other.fetchval(TRY_LOCK.sql, LOCK_KEY)
        assert await migrations.up(empty_database, timeouts=SHORT) == list(REVISIONS)


async def test_waiting_process_does_not_block_index_build(
    servers: Settings, empty_database: PostgresSettings
) -> None:
    """A process that waits for the lock has no snapshot. CREATE INDEX CONCURRENTLY would wait for its snapshot."""
    await migrations.up(empty_database, "0009")
    async with connected(empty_database) as reader, connected(empty_database) as watcher:
        await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await reader.fetchval("SELECT count(*) FROM users")
        builder = asyncio.create_task(migrations.up(empty_database))
        await until(watcher, WAITS_FOR_A_SNAPSHOT)
        waiting = await process(servers, empty_database, "up")
        await until(watcher, FIVE_CLIENTS)
        await reader.execute("ROLLBACK")
        assert await builder == list(REVISIONS[9:])
        await waiting.communicate()
        assert waiting.returncode == 0


async def test_readers_proceed_while_migration_is_refused_its_lock(empty_database: PostgresSettings) -> None:
    await migrations.up(empty_database, "0005")
    await fill(empty_database, ORIGINAL_ROWS)
    timeouts = Timeouts(lock_timeout_seconds=0.3, retry_seconds=600)
    async with connected(empty_database) as holder, connected(empty_database) as reader:
        await holder.execute("BEGIN")
        await holder.fetchval("SELECT count(*) FROM messages")
        migration = asyncio.create_task(migrations.up(empty_database, "0006", timeouts=timeouts))
        for _ in range(3):
            # The holder keeps its lock. The migration waits in the queue, and this read behind it.
            await until(holder, WAITS_FOR_A_TABLE)
            await reader.fetchval("SELECT count(*) FROM messages")  # returns once the migration has left the queue
            assert not migration.done()
        await holder.execute("COMMIT")
        assert await migration == ["0006"]


async def test_migration_without_its_lock_gives_up_and_changes_nothing(
    empty_database: PostgresSettings,
) -> None:
    await migrations.up(empty_database, "0005")
    before = await schema(empty_database)
    async with connected(empty_database) as holder:
        await holder.execute("BEGIN")
        await holder.fetchval("SELECT count(*) FROM messages")
        with pytest.raises(Unavailable, match="other transactions held the tables of revision 0006") as gave_up:
            await migrations.up(empty_database, timeouts=SHORT)
    assert gave_up.value.retryable
    assert await schema(empty_database) == before
    assert (await migrations.status(empty_database)).current == "0005"


async def test_cancelled_migration_releases_connections_and_locks(empty_database: PostgresSettings) -> None:
    await migrations.up(empty_database, "0005")
    async with connected(empty_database) as holder:
        await holder.execute("BEGIN")
        await holder.fetchval("SELECT count(*) FROM messages")
        migration = asyncio.create_task(migrations.up(empty_database, timeouts=Timeouts(lock_timeout_seconds=60)))
        await until(holder, WAITS_FOR_A_TABLE)
        migration.cancel()
        with pytest.raises(asyncio.CancelledError):
            await migration
        await until(holder, ALONE)
    assert await migrations.up(empty_database) == list(REVISIONS[5:])


async def test_migration_cancelled_during_index_build_ends(
    empty_database: PostgresSettings,
) -> None:
    await migrations.up(empty_database, "0009")
    async with connected(empty_database) as reader, connected(empty_database) as watcher:
        await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await reader.fetchval("SELECT count(*) FROM messages")
        migration = asyncio.create_task(migrations.up(empty_database))
        await until(watcher, WAITS_FOR_A_SNAPSHOT)
        migration.cancel()
        with pytest.raises(asyncio.CancelledError):
            await migration
    assert await migrations.up(empty_database) == list(REVISIONS[9:])


async def test_cancelled_migration_does_not_wait_for_frozen_server(empty_database: PostgresSettings) -> None:
    await migrations.up(empty_database, "0005")
    async with connected(empty_database) as holder:
        await holder.execute("BEGIN")
        await holder.fetchval("SELECT count(*) FROM messages")
        migration = asyncio.create_task(migrations.up(empty_database, timeouts=Timeouts(lock_timeout_seconds=60)))
        await until(holder, WAITS_FOR_A_TABLE)
        frozen = await holder.fetchval("SELECT pid FROM pg_locks WHERE NOT granted")
        os.kill(frozen, signal.SIGSTOP)
        try:
            migration.cancel()
            with pytest.raises(asyncio.CancelledError):
                await migration
        finally:
            os.kill(frozen, signal.SIGCONT)


@pytest.mark.parametrize("at", ["0005", "0009"])  # in a transaction, and while an index is built outside of one
async def test_lost_connection_is_unavailable_and_next_run_completes_the_revision(
    empty_database: PostgresSettings, at: str
) -> None:
    await migrations.up(empty_database, at)
    async with connected(empty_database) as holder, connected(empty_database) as watcher:
        await holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await holder.fetchval("SELECT count(*) FROM messages")
        timeouts = Timeouts(lock_timeout_seconds=60)
        migration = asyncio.create_task(migrations.up(empty_database, timeouts=timeouts))
        await until(watcher, WAITS_FOR_A_TABLE if at == "0005" else WAITS_FOR_A_SNAPSHOT)
        await watcher.fetch("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted")
        with pytest.raises(Unavailable, match="the connection was lost") as lost:
            await migration
    assert lost.value.outcome_unknown
    assert await migrations.up(empty_database) == list(REVISIONS[REVISIONS.index(at) + 1 :])


async def test_revision_written_by_another_session_meanwhile_is_rolled_back(
    empty_database: PostgresSettings,
) -> None:
    await migrations.up(empty_database, "0005")
    before = await schema(empty_database)
    async with connected(empty_database) as holder, connected(empty_database) as other:
        await holder.execute("BEGIN")
        await holder.fetchval("SELECT count(*) FROM messages")
        migration = asyncio.create_task(migrations.up(empty_database, "0006"))
        await until(other, WAITS_FOR_A_TABLE)
        await other.execute("UPDATE hubbub_schema_version SET version_num = '0006'")
        await holder.execute("COMMIT")
        with pytest.raises(Unavailable, match="revision 0006: the version table was changed by another session"):
            await migration
    assert await schema(empty_database) == before


async def test_table_that_appears_between_two_revisions_is_reported(empty_database: PostgresSettings) -> None:
    await migrations.up(empty_database, "0001")
    await fill(empty_database, "CREATE TABLE rooms (id int)")
    with pytest.raises(Unavailable, match='revision 0002 failed: relation "rooms" already exists') as failed:
        await migrations.up(empty_database)
    assert not failed.value.retryable
    assert (await migrations.status(empty_database)).current == "0001"


async def test_table_with_foreign_references_is_not_dropped(postgres_settings: PostgresSettings) -> None:
    await fill(postgres_settings, "CREATE TABLE pets (owner uuid REFERENCES users (id))")
    with pytest.raises(Unavailable, match="revision 0001 failed: cannot drop table users"):
        await migrations.down(postgres_settings, "base")
    assert (await migrations.status(postgres_settings)).current == "0001"
    assert await migrations.up(postgres_settings) == list(REVISIONS[1:])


async def test_unreachable_server_is_unavailable(empty_database: PostgresSettings) -> None:
    nowhere = replace(empty_database, port=1)
    for call in (migrations.up(nowhere), migrations.down(nowhere, "base"), migrations.status(nowhere)):
        with pytest.raises(Unavailable):
            await call


async def test_standby_is_not_migrated(empty_database: PostgresSettings) -> None:
    await fill(empty_database, f"ALTER DATABASE {empty_database.database} SET default_transaction_read_only = on")
    with pytest.raises(Unavailable, match="takes no changes"):
        await migrations.up(empty_database)
