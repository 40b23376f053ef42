"""The keys that a test leaves in Redis."""

from __future__ import annotations

from hubbub.redis import Connection
from hubbub.redis.replies import as_bytes_list, as_int
from redis_server import Server


async def kept_for_ever(connection: Connection) -> list[bytes]:
    """The keys without a time to live."""
    left = as_bytes_list(await connection.execute("KEYS", "*"))
    return [key for key in left if as_int(await connection.execute("PTTL", key)) == -1]


async def all_keys_end(server: Server) -> None:
    """Assert that each key in the server has a time to live."""
    connection = Connection(server.settings)
    await connection.start()
    kept = await kept_for_ever(connection)
    await connection.close()
    assert not kept
