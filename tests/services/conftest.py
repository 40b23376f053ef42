from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from hubbub import Settings
from hubbub.redis import Connection, Subscriptions
from hubbub.redis.replies import data_array, integer
from redis_server import Server, binaries


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    """Whatever a test closes must have ended its tasks."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, [task.get_name() for task in left]


@pytest.fixture
async def connection(servers: Settings, no_task_is_left: None) -> AsyncIterator[Connection]:
    """A connection to an empty Redis. Each key that the test leaves there must end by itself."""
    connection = Connection(servers.redis)
    await connection.start()
    await connection.execute("FLUSHALL")
    yield connection
    left = data_array(await connection.execute("KEYS", "*"))
    for_ever = [key for key in left if integer(await connection.execute("PTTL", key)) == -1]
    await connection.execute("FLUSHALL")
    await connection.close()
    assert not for_ever


@pytest.fixture
async def subscriptions(servers: Settings, no_task_is_left: None) -> AsyncIterator[Subscriptions]:
    subscriptions = Subscriptions(servers.redis)
    await subscriptions.start()
    yield subscriptions
    await subscriptions.close()


@pytest.fixture(params=binaries(), ids=lambda binary: binary.name)
def own_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server of this test's own, to kill and to freeze. It forgets everything with a restart."""
    server = Server(request.param, tmp_path)
    try:
        yield server.start()
    finally:
        server.stop()
