from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hubbub import Settings
from hubbub.redis import Connection, Subscriptions
from redis_server import Server, binaries
from services.keys import all_keys_end, kept_for_ever


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
    kept = await kept_for_ever(connection)
    await connection.execute("FLUSHALL")
    await connection.close()
    assert not kept


@pytest.fixture
async def subscriptions(servers: Settings, no_task_is_left: None) -> AsyncIterator[Subscriptions]:
    subscriptions = Subscriptions(servers.redis)
    await subscriptions.start()
    yield subscriptions
    await subscriptions.close()


@pytest.fixture(params=binaries(), ids=lambda binary: binary.name)
async def own_server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Server]:
    """A server of this test's own, to kill and to freeze. It forgets everything with a restart.

    Here too each key that is left must end by itself, if the test has not killed the server last.
    """
    server = Server(request.param, tmp_path)
    try:
        yield server.start()
        if server.runs:
            server.thaw()
            await all_keys_end(server)
    finally:
        server.stop()
