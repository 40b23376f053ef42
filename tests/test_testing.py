from __future__ import annotations

import asyncio
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hubbub import PostgresSettings, RedisSettings, Settings, migrations
from hubbub.errors import Unavailable
from hubbub.migrations import HEAD
from hubbub.postgres import connect
from hubbub.redis import Connection
from hubbub.testing import Template, drop, empty, run, serving
from redis_server import Server, binaries


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_servers_run_inside_the_block_and_end_with_it() -> None:
    with tempfile.TemporaryDirectory(prefix="hubbub-") as folder:
        with serving(Path(folder)) as settings:
            ports = settings.postgres.port, settings.redis.port
            assert [_answers(port) for port in ports] == [True, True]
        assert [_answers(port) for port in ports] == [False, False]


def test_run_keeps_the_current_loop_and_the_thread_of_the_caller() -> None:
    async def here() -> threading.Thread:
        await asyncio.sleep(0)
        return threading.current_thread()

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        assert run(here()) is threading.current_thread()
        assert asyncio.get_event_loop_policy().get_event_loop() is loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()


# Databases


@pytest.fixture
async def template(servers: Settings) -> AsyncIterator[Template]:
    template = await Template.make(servers.postgres)
    yield template
    await drop(template.settings, servers.postgres)


async def _databases(settings: PostgresSettings) -> set[str]:
    connection = await connect(settings)
    try:
        return {name for (name,) in await connection.fetch("SELECT datname FROM pg_database")}
    finally:
        await connection.close()


async def test_copies_are_migrated_and_share_no_rows(servers: Settings, template: Template) -> None:
    one, other = await template.copy(servers.postgres), await template.copy(servers.postgres)
    assert (await migrations.status(one)).current == HEAD
    connection = await connect(one)
    await connection.execute("INSERT INTO rooms (name) VALUES ('engine-room')")
    await connection.close()
    connection = await connect(other)
    assert await connection.fetchval("SELECT count(*) FROM rooms") == 0
    await connection.close()
    for copy in (one, other):
        await drop(copy, servers.postgres)
    assert not {one.database, other.database} & await _databases(servers.postgres)


async def test_drop_removes_a_database_that_has_connections(servers: Settings, template: Template) -> None:
    copy = await template.copy(servers.postgres)
    left_open = await connect(copy)
    await drop(copy, servers.postgres)
    assert copy.database not in await _databases(servers.postgres)
    left_open.terminate()


async def test_drop_of_a_missing_database_raises_unavailable(servers: Settings, template: Template) -> None:
    copy = await template.copy(servers.postgres)
    await drop(copy, servers.postgres)
    with pytest.raises(Unavailable, match="does not exist"):
        await drop(copy, servers.postgres)


# Redis


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(binaries()[0], tmp_path)
    yield server.start()
    server.stop()


async def _count_keys(settings: RedisSettings, *new: str) -> object:
    """The number of keys after the new ones are set."""
    connection = Connection(settings)
    await connection.start()
    for name in new:
        await connection.execute("SET", name, "")
    count = await connection.execute("DBSIZE")
    await connection.close()
    return count


async def test_empty_deletes_all_keys_and_none_of_other_databases(server: Server) -> None:
    other = replace(server.settings, database=1)
    assert await _count_keys(server.settings, "cache:1", "session:1") == 2
    assert await _count_keys(other, "of another application") == 1
    await empty(server.settings)
    assert await _count_keys(server.settings) == 0
    assert await _count_keys(other) == 1
