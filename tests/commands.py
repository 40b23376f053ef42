"""Commands to PostgreSQL on their own connection, bypassing any pool.

Drop a database as the administrator, because its owner may not end an autovacuum worker in it.
"""

from __future__ import annotations

import os

from hubbub import PostgresSettings
from hubbub.postgres import connect

ON_CITUS = "ON_CITUS" in os.environ
"""Whether the databases of tests have distributed rooms."""

LOCK_IS_AWAITED = """
    SELECT EXISTS (
        SELECT 1 FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted AND datname = current_database()
    )
"""
if ON_CITUS:
    LOCK_IS_AWAITED = f"SELECT bool_or(result::boolean) FROM run_command_on_all_nodes($${LOCK_IS_AWAITED}$$)"


async def execute(settings: PostgresSettings, *commands: str) -> None:
    """Execute the statements in order, each in its own transaction."""
    connection = await connect(settings)
    try:
        for command in commands:
            await connection.execute(command)
    finally:
        await connection.close()
