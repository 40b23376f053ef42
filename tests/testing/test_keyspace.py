from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hubbub import RedisSettings
from hubbub.redis import Connection
from hubbub.testing import empty
from redis_server import Server, binaries


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(binaries()[0], tmp_path)
    yield server.start()
    server.stop()


async def _keys(settings: RedisSettings, *new: str) -> object:
    connection = Connection(settings)
    await connection.start()
    for name in new:
        await connection.execute("SET", name, "")
    count = await connection.execute("DBSIZE")
    await connection.close()
    return count


async def test_all_keys_go_and_those_of_other_databases_stay(server: Server) -> None:
    other = replace(server.settings, database=1)
    assert await _keys(server.settings, "cache:1", "session:1") == 2
    assert await _keys(other, "of somebody else") == 1
    await empty(server.settings)
    assert await _keys(server.settings) == 0
    assert await _keys(other) == 1
