"""Other connections and processes in the same database, and queries for the locks that they wait for."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from hubbub import PostgresSettings, Settings
from hubbub.postgres import connect

if TYPE_CHECKING:
    from hubbub.postgres.connection import Connection

WAITS_FOR_A_TABLE = """
    SELECT EXISTS (
        SELECT
        FROM pg_locks
        WHERE relation = 'messages'::regclass
            AND mode = 'AccessExclusiveLock'
            AND NOT granted
    )
"""
WAITS_FOR_A_SNAPSHOT = """
    SELECT EXISTS (
        SELECT
        FROM pg_locks
        WHERE locktype = 'virtualxid'
            AND NOT granted
    )
"""
CLIENTS = """
    SELECT count(*)
    FROM pg_stat_activity
    WHERE datname = current_database()
        AND backend_type = 'client backend'
"""
FIVE_CLIENTS = f"SELECT ({CLIENTS}) = 5"
ALONE = f"SELECT ({CLIENTS}) = 1"


@asynccontextmanager
async def connected(settings: PostgresSettings) -> AsyncIterator[Connection]:
    connection = await connect(settings)
    try:
        yield connection
    finally:
        connection.terminate()


async def until(connection: Connection, condition: str) -> None:
    """Query until the condition holds. Otherwise the timeout of the test ends it."""
    while not await connection.fetchval(condition):
        await asyncio.sleep(0.005)
        # Within a transaction pg_stat_activity does not change after the first query.
        await connection.execute("SELECT pg_stat_clear_snapshot()")


async def process(settings: Settings, postgres: PostgresSettings, *command: str) -> asyncio.subprocess.Process:
    environment = replace(settings, postgres=postgres).to_env()
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hubbub", "migrate", *command, env=environment, stdout=asyncio.subprocess.PIPE
    )
