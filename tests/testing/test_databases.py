from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from hubbub import PostgresSettings, Settings, migrations
from hubbub.errors import Unavailable
from hubbub.migrations import HEAD
from hubbub.postgres import connect
from hubbub.testing import Template
from hubbub.testing.databases import drop


@pytest.fixture
async def made(servers: Settings) -> AsyncIterator[Template]:
    made = await Template.make(servers.postgres)
    yield made
    await made.drop(servers.postgres)


async def _databases(settings: PostgresSettings) -> set[str]:
    connection = await connect(settings)
    try:
        return {name for (name,) in await connection.fetch("SELECT datname FROM pg_database")}
    finally:
        await connection.close()


async def test_a_copy_is_migrated_and_a_world_of_its_own(servers: Settings, made: Template) -> None:
    one, other = await made.copy(servers.postgres), await made.copy(servers.postgres)
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


async def test_a_database_in_use_is_dropped_all_the_same(servers: Settings, made: Template) -> None:
    copy = await made.copy(servers.postgres)
    left_open = await connect(copy)
    await drop(copy, servers.postgres)
    assert copy.database not in await _databases(servers.postgres)
    left_open.terminate()


async def test_dropping_what_is_gone_says_so(servers: Settings, made: Template) -> None:
    copy = await made.copy(servers.postgres)
    await drop(copy, servers.postgres)
    with pytest.raises(Unavailable, match="does not exist"):
        await drop(copy, servers.postgres)
