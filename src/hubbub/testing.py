"""The parts of the fixtures of the pytest plugin (docs/testing.md): servers, databases, an empty Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeVar
from uuid import uuid4

from hubbub import migrations
from hubbub.embedded import Servers
from hubbub.errors import Unavailable
from hubbub.postgres import Pool, Statement
from hubbub.redis import connection_to
from hubbub.settings import PostgresSettings, RedisSettings, Settings

__all__ = ["Template", "drop", "empty", "run", "serving"]

R = TypeVar("R")

COPY_DEADLINE_SECONDS: Final = 60
"""For CREATE and DROP DATABASE. They take 15 to 80 ms, and minutes only where they hang."""


@contextmanager
def serving(folder: Path) -> Iterator[Settings]:
    """PostgreSQL and Valkey in a new or empty folder. They end with the block, and with the process.

    They do not wait for the disk, which makes them fast and loses data in a crash.
    Raises: Unavailable (there are no servers on this machine, with what to install).
    """
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        servers = Servers(folder, fsync=False)
        settings = runner.run(servers.start())
        try:
            yield settings
        finally:
            runner.run(servers.stop())


def run(coroutine: Coroutine[Any, Any, R]) -> R:
    """Run it to its end in the thread of the caller, without touching the event loop that the tests use.

    `asyncio.run` would leave the thread without a current loop, which plugins that have set one rely on. Another
    thread would not do either: servers end with the thread that started them.
    """
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(coroutine)


async def empty(settings: RedisSettings) -> None:
    """Delete all keys of the database of `settings`, and none of the server's other databases."""
    connection = connection_to(settings)
    try:
        await connection.start()
        for server in connection.servers.values():
            await server.execute("FLUSHDB")
    finally:
        await connection.close()


class Template(NamedTuple):
    """A migrated database that others are copied from. PostgreSQL copies it only while it has no connection.

    A copy takes a tenth of the time of migrating.
    """

    settings: PostgresSettings
    as_sql: str
    """The text after TEMPLATE in the CREATE DATABASE of a copy."""

    @classmethod
    async def make(cls, settings: PostgresSettings) -> Self:
        """A template on the server of `settings`, whose user may create databases."""
        template = replace(settings, database=f"hubbub_template_{uuid4().hex}")
        await _fetch(settings, f"CREATE DATABASE {template.database}")
        await migrations.up(template)
        [major] = await _fetch(settings, "SELECT current_setting('server_version_num')::integer / 10000 AS major")
        # A copy through the log takes a third of the time of a copy of files. PostgreSQL 15 is the first with it.
        return cls(template, f"{template.database}{' STRATEGY wal_log' if major >= 15 else ''}")

    async def copy(self, settings: PostgresSettings) -> PostgresSettings:
        """A new database, with the user of `settings`. The statement runs in the database of `settings`."""
        copied = replace(settings, database=f"hubbub_{uuid4().hex}")
        await _fetch(settings, f"CREATE DATABASE {copied.database} TEMPLATE {self.as_sql}")
        return copied


async def drop(database: PostgresSettings, settings: PostgresSettings) -> None:
    """Remove a database and end its connections. The statement runs in the database of `settings`."""
    try:
        await _fetch(settings, f"DROP DATABASE {database.database} WITH (FORCE)")
    except Unavailable as refusal:
        if refusal.retryable:
            raise
        # Only a superuser may end autovacuum by force. Without FORCE PostgreSQL itself asks it to leave.
        await _fetch(settings, f"DROP DATABASE {database.database}")


async def _fetch(settings: PostgresSettings, sql: str) -> list[int]:
    pool = Pool(replace(settings, deadline_seconds=COPY_DEADLINE_SECONDS))
    try:
        return await pool.fetch_all(Statement("testing.database", int, sql))
    finally:
        await pool.close()
