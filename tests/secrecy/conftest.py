"""Servers that log every statement with its parameters and plan."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from commands import execute
from hubbub import PostgresSettings, Settings, migrations
from hubbub.embedded import Servers
from hubbub.postgres import connect
from rights import superuser

LOG_ALL = (
    *("log_statement = 'all'", "log_min_duration_statement = 0", "log_parameter_max_length = -1"),
    *("log_parameter_max_length_on_error = -1", "log_connections = on", "log_min_messages = debug1"),
)
LIBRARIES = "auto_explain, pg_stat_statements"
EXPLAIN_ALL = (
    *("auto_explain.log_min_duration = 0", "auto_explain.log_analyze = on", "auto_explain.log_verbose = on"),
    *("auto_explain.log_nested_statements = on", "pg_stat_statements.track = 'all'"),
)


@pytest.fixture
async def folder() -> AsyncIterator[Path]:
    """A folder that the account of the servers may enter."""
    folder = Path(tempfile.mkdtemp(prefix="hubbub-secrets-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
async def talkative(folder: Path) -> AsyncIterator[Settings]:
    async with Servers(folder, fsync=False) as settings:
        await execute(
            superuser(settings.postgres, folder), f"ALTER SYSTEM SET shared_preload_libraries = {LIBRARIES}"
        )
    async with Servers(folder, fsync=False) as settings:
        await migrations.up(settings.postgres)
        of_all = superuser_of(settings, folder)
        await execute(of_all, *(f"ALTER SYSTEM SET {setting}" for setting in (*LOG_ALL, *EXPLAIN_ALL)))
        await execute(of_all, "SELECT pg_reload_conf()", "CREATE EXTENSION pg_stat_statements")
        yield settings


def superuser_of(settings: Settings, folder: Path) -> PostgresSettings:
    """A superuser in the database of the application."""
    return replace(superuser(settings.postgres, folder), database=settings.postgres.database)


@asynccontextmanager
async def statements_seen(administrator: PostgresSettings) -> AsyncIterator[set[str]]:
    """The statements that an administrator sees: other sessions' during the block, and all of them after it."""
    seen: set[str] = set()
    over = asyncio.Event()
    connection = await connect(administrator)

    async def see(queries: str) -> None:
        seen.update(str(query) for (query,) in await connection.fetch(queries))

    async def keep_reading() -> None:
        while not over.is_set():
            await see("SELECT query FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            await asyncio.sleep(0.005)  # so that the server has time for other sessions

    reading = asyncio.create_task(keep_reading())
    try:
        yield seen
    finally:
        over.set()
        await reading
    await see("SELECT query FROM pg_stat_statements")
    await connection.close()
