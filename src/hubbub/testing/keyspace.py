"""A Redis without a key, for each test."""

from __future__ import annotations

from hubbub.redis import Connection
from hubbub.settings import RedisSettings


async def empty(settings: RedisSettings) -> None:
    """Delete all keys of the database of `settings`, and none of the server's others. Raises `Unavailable`."""
    connection = Connection(settings)
    try:
        await connection.start()
        await connection.execute("FLUSHDB")
    finally:
        await connection.close()
