from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hubbub import RedisSettings, Settings
from hubbub.redis import Connection, Subscriptions
from redis_server import Server, binaries
from rights import as_redis_user
from services.keys import all_keys_end, kept_for_ever


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    """Check that everything that a test closes has ended its tasks."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, [task.get_name() for task in left]


@pytest.fixture
async def administrator_of_redis(servers: Settings, no_task_is_left: None) -> AsyncIterator[Connection]:
    """A connection with all rights to an empty Redis. Each key that the test leaves must have a time to live."""
    connection = Connection(servers.redis)
    await connection.start()
    await connection.execute("FLUSHALL")
    yield connection
    kept = await kept_for_ever(connection)
    await connection.execute("FLUSHALL")
    await connection.close()
    assert not kept


@pytest.fixture
def redis_user(servers: Settings) -> RedisSettings:
    """A user with the keys and channels of hubbub only, and the commands for inspection."""
    return as_redis_user(servers.redis, "inspecting")


@pytest.fixture
async def connection(redis_user: RedisSettings, administrator_of_redis: Connection) -> AsyncIterator[Connection]:
    """A connection to an empty Redis."""
    connection = Connection(redis_user)
    await connection.start()
    yield connection
    await connection.close()


@pytest.fixture
async def subscriptions(redis_user: RedisSettings, no_task_is_left: None) -> AsyncIterator[Subscriptions]:
    subscriptions = Subscriptions(redis_user)
    await subscriptions.start()
    yield subscriptions
    await subscriptions.close()


@pytest.fixture(params=binaries(), ids=lambda binary: binary.name)
async def own_server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Server]:
    """A server for this test alone, which may kill and freeze it. It loses all data in a restart.

    Each key that the test leaves must have a time to live, unless the test ends with a killed server.
    """
    server = Server(request.param, tmp_path)
    try:
        yield server.start()
        if server.runs:
            server.thaw()
            await all_keys_end(server)
    finally:
        server.stop()
