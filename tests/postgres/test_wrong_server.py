"""A host name that leads to a standby for a moment. A database that is read-only by default stands for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from commands import execute
from hubbub import Hub, PostgresSettings, Settings, Unavailable, User
from hubbub.postgres import Pool, Statement
from waiting import until

pytestmark = pytest.mark.session("PgBouncer keeps sessions of its own, which it opened before")

PING = Statement("test.ping", int, "SELECT 1 AS ping")
SLEEP = Statement("test.sleep", bool, "SELECT pg_sleep(0.2) IS NULL AS slept")


@pytest.fixture
async def standby(postgres_settings: PostgresSettings) -> AsyncIterator[PostgresSettings]:
    """Make new sessions read-only during the test, until it calls `promote`."""
    await execute(
        postgres_settings, f"ALTER DATABASE {postgres_settings.database} SET default_transaction_read_only = on"
    )
    yield postgres_settings
    await promote(postgres_settings)


async def promote(settings: PostgresSettings) -> None:
    await execute(
        settings,
        "SET default_transaction_read_only = off",
        f"ALTER DATABASE {settings.database} RESET default_transaction_read_only",
    )


async def at_once(hub: Hub, count: int) -> None:
    """Have the pool open `count` connections."""
    await asyncio.gather(*(hub._pool.fetch_one(SLEEP) for _ in range(count)))


async def test_connections_to_standby_are_not_kept(settings: Settings, standby: PostgresSettings) -> None:
    async with Hub(settings) as hub:
        await at_once(hub, 8)
        assert hub._pool.idle == 0
        await until(lambda: hub._pool.size == 0)  # a task of the hub may use one more
        with pytest.raises(Unavailable, match="the server takes no changes"):
            await hub.users.create("ada@example.org", "ada", "!")
        await promote(standby)
        await hub.users.create("ada@example.org", "ada", "!")
        await until(lambda: hub._pool.size == 1)


async def test_change_is_sent_again_on_new_connection_where_none_ran(
    settings: Settings, postgres_settings: PostgresSettings, ada: User
) -> None:
    async with Hub(settings) as hub:
        room = await hub.rooms.create("engine-room", created_by=ada.id)
        await at_once(hub, 8)
        pool = hub._pool
        for connection in list(pool._connections.idle):  # sessions of a server that became read-only
            await connection.execute("SET default_transaction_read_only = on")
            connection.is_wrong_server = False
        assert pool.idle > 3
        sent = await asyncio.gather(*(hub.messages.send(room.id, ada.id, f"{n}") for n in range(20)))
        assert [message.content for message in sent] == [f"{n}" for n in range(20)]
        with pytest.raises(ZeroDivisionError):
            async with hub.transaction():
                raise ZeroDivisionError
        assert (await hub.health(deadline_seconds=20)).ready


async def test_health_reports_standby(settings: Settings, standby: PostgresSettings) -> None:
    async with Hub(settings) as hub:
        health = await hub.health(deadline_seconds=20)
        assert not health.ready
        assert health.postgres.reason == "the server takes no changes, as a standby does"
        await promote(standby)
        assert (await hub.health(deadline_seconds=20)).ready


async def test_transaction_on_standby_ends_its_connection(settings: Settings, standby: PostgresSettings) -> None:
    pool = Pool(settings.postgres)
    with pytest.raises(Unavailable, match="takes no changes"):
        async with pool.transaction() as transaction:
            await transaction.fetch_all(Statement("test.write", int, "DELETE FROM users RETURNING 1 AS one"))
    assert pool.size == 0
    await pool.close()


async def test_reads_of_server_that_stays_read_only_keep_working(
    settings: Settings, standby: PostgresSettings
) -> None:
    async with Hub(settings) as hub:
        for _ in range(3):
            assert await hub._pool.fetch_all(PING) == [1]
            with pytest.raises(Unavailable, match="takes no changes"):
                await hub.users.create("ada@example.org", "ada", "!")
