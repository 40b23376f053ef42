"""Commands to PostgreSQL on a connection of their own, past any pool.

Drop a database as the administrator: its owner may not end the worker of autovacuum that visits it.
"""

from __future__ import annotations

from hubbub import PostgresSettings
from hubbub.postgres import connect


async def execute(settings: PostgresSettings, *commands: str) -> None:
    """One after the other, each in a transaction of its own."""
    connection = await connect(settings)
    try:
        for command in commands:
            await connection.execute(command)
    finally:
        await connection.close()
