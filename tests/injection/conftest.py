from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from hubbub import Hub, PostgresSettings, Settings
from hubbub.passwords import MIN_COST, Passwords
from hubbub.postgres import connect
from hubbub.redis import Connection
from hubbub.redis.replies import as_bytes_list
from injection.operations import ADA, World
from rights import as_redis_user


@pytest.fixture
async def hub(settings: Settings, servers: Settings) -> AsyncIterator[Hub]:
    """A hub whose Redis user may use any channel, and only the keys and commands of hubbub.

    The realtime operations accept any channel.
    """
    redis = as_redis_user(servers.redis, "on-any-channel")
    async with Hub(replace(settings, redis=redis), passwords=Passwords(cost=MIN_COST)) as hub:
        yield hub


@pytest.fixture
async def administrator_of_redis(servers: Settings) -> AsyncIterator[Connection]:
    connection = Connection(servers.redis)
    await connection.start()
    await connection.execute("FLUSHALL")
    yield connection
    await connection.execute("FLUSHALL")
    await connection.close()


@pytest.fixture
async def world(
    hub: Hub, administrator_of_redis: Connection, postgres_settings: PostgresSettings
) -> AsyncIterator[World]:
    ada = await hub.users.create("ada@example.org", "ada", "not a hash", id=ADA)
    bob = await hub.users.create("bob@example.org", "bob", "not a hash")
    room = await hub.rooms.create("engine-room", created_by=ada.id)
    message = await hub.messages.send(room.id, ada.id, "hello")
    tables = await _tables(postgres_settings)
    yield World(hub, ada, bob, room, message, await hub.sessions.create_session(ada.id))
    assert await _tables(postgres_settings) == tables
    keys = as_bytes_list(await administrator_of_redis.execute("KEYS", "*"))
    for key in keys:
        prefix, colon, _ = key.partition(b":")
        assert (prefix in {b"session", b"presence", b"typing", b"limit", b"cache"}, colon) == (True, b":"), key
        assert key.isascii(), key
        assert not key.isspace(), key
        assert len(key) < 200, key


async def _tables(settings: PostgresSettings) -> object:
    connection = await connect(settings)
    try:
        return await connection.fetchval("SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class")
    finally:
        await connection.close()
