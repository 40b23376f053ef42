"""The cost of an operation in quantities that can be counted, and that are the same on a busy machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from asyncpg.connection import LoggedQuery

from hubbub import Hub, Options, Settings
from hubbub.redis import Connection
from hubbub.redis.replies import as_bytes
from rights import as_redis_user

# asyncpg's own queries for types, once per connection, and the check of presence, once a day.
ASYNCPG_QUERIES = ("typeinfo_tree", "set_config('jit'", "SELECT id, is_online")


@pytest.fixture
def long_deadlines(settings: Settings) -> Settings:
    """Deadlines that a busy machine can meet."""
    postgres = replace(settings.postgres, deadline_seconds=60, connect_timeout_seconds=30)
    redis = as_redis_user(settings.redis, "on-any-channel")
    return replace(settings, postgres=postgres, redis=replace(redis, deadline_seconds=60))


class Statements:
    """The statements that hubbub sends to PostgreSQL. A prepared statement is one round trip."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def note(self, record: LoggedQuery) -> None:
        if not any(part in record.query for part in ASYNCPG_QUERIES):
            self.sent.append(record.query)

    async def of(self, *operations: Awaitable[object]) -> int:
        """The number of statements of concurrent operations."""
        await _logged()
        self.sent.clear()
        await asyncio.gather(*operations)
        await _logged()
        return len(self.sent)


async def _logged() -> None:
    """asyncpg logs a statement in the next turn of the loop."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Statements:
    statements = Statements()
    connect = asyncpg.connect

    async def logged(**settings: Any) -> asyncpg.Connection[asyncpg.Record]:  # noqa: ANN401 - as asyncpg takes them
        connection: asyncpg.Connection[asyncpg.Record] = await connect(**settings)
        connection.add_query_logger(statements.note)
        return connection

    monkeypatch.setattr("hubbub.postgres.connection.asyncpg.connect", logged)
    return statements


@pytest.fixture
async def hub(long_deadlines: Settings, statements: Statements) -> AsyncIterator[Hub]:
    # A read mark of an author is a statement more, a second later.
    async with Hub(long_deadlines, options=Options(mark_read_on_send=False)) as hub:
        yield hub


class Reads:
    """The number of reads of Redis from its clients. Commands written together are read together."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def count(self) -> int:
        statistics = as_bytes(await self._connection.execute("INFO", "stats")).decode()
        [line] = [line for line in statistics.splitlines() if line.startswith("total_reads_processed:")]
        return int(line.partition(":")[2])


@pytest.fixture
async def reads(servers: Settings) -> AsyncIterator[Reads]:
    connection = Connection(replace(servers.redis, deadline_seconds=60))
    await connection.start()
    yield Reads(connection)
    await connection.close()
