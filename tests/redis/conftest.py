from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from hubbub.redis import Connection, Subscriptions
from hubbub.testing import run
from redis_server import Server, binaries
from redis_topologies import Cluster, cluster


@pytest.fixture(params=binaries(), ids=lambda binary: binary.name)
def binary(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture
def server(binary: Path, tmp_path: Path) -> Iterator[Server]:
    """A running server for this test alone."""
    server = Server(binary, tmp_path)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        run(nodes.form())
        run(nodes.add_users())
        yield nodes


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster for this test alone."""
    with cluster(tmp_path) as nodes:
        run(nodes.form())
        run(nodes.add_users())
        yield nodes


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    """Check that closing ends all tasks."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, [task.get_name() for task in left]


@pytest.fixture
async def connection(server: Server, no_task_is_left: None) -> AsyncIterator[Connection]:
    connection = Connection(server.settings)
    await connection.start()
    yield connection
    await connection.close()


@pytest.fixture
async def subscriptions(server: Server, no_task_is_left: None) -> AsyncIterator[Subscriptions]:
    subscriptions = Subscriptions(server.settings)
    await subscriptions.start()
    yield subscriptions
    await subscriptions.close()
