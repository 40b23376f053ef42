"""Redis as the cache uses it: asked briefly, and not at all for a moment after it was slow."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from hubbub.errors import Unavailable
from hubbub.redis import Script
from hubbub.redis.replies import as_bool, as_optional_bytes

if TYPE_CHECKING:
    from hubbub.redis import Connection

REST_SECONDS: Final = 1.0
"""How long Redis is left alone after it failed or was too slow."""

LEASE_MARK: Final = b"?"
"""What a lease begins with, and no value: those are JSON objects."""

# Gives what is there, or nothing, and then the lease is the caller's.
_LEASE = Script(
    keys=("entry",),
    args=("lease", "milliseconds"),
    source="""
local held = redis.call('GET', entry)
if held then return held end
redis.call('SET', entry, lease, 'PX', milliseconds)
return false
""",
    reply=as_optional_bytes,
)

# An invalidation deletes the lease; who then holds another lease has read later. Without a value the lease ends.
_SETTLE = Script(
    keys=("entry",),
    args=("lease", "value", "milliseconds"),
    source="""
if redis.call('GET', entry) ~= lease then return false end
if value == '' then
    redis.call('DEL', entry)
else
    redis.call('SET', entry, value, 'PX', milliseconds)
end
return true
""",
    reply=as_bool,
)


class Store:
    """Entries and leases. Each method raises `Unavailable`: at once while Redis is down or rests."""

    def __init__(self, connection: Connection, *, deadline_seconds: float, lease_seconds: float) -> None:
        self._connection = connection
        self._deadline_seconds = deadline_seconds
        self._lease_ms = round(lease_seconds * 1000)
        self._rests_until = 0.0

    async def get(self, key: str) -> bytes | None:
        """The value, the lease of somebody who reads it at this moment, or None."""
        self._check()
        try:
            reply = await self._connection.execute(
                "GET", key, deadline_seconds=self._deadline_seconds, writes=False
            )
        except Unavailable:
            self._rest()
            raise
        return as_optional_bytes(reply)

    async def lease(self, key: str, lease: bytes) -> bytes | None:
        """As `get`; and with None the lease is now the caller's, who reads PostgreSQL from here on."""
        self._check()
        try:
            return await _LEASE(
                self._connection,
                keys=(key,),
                args=(lease, self._lease_ms),
                deadline_seconds=self._deadline_seconds,
            )
        except Unavailable:
            self._rest()
            raise

    async def settle(self, key: str, lease: bytes, value: bytes, seconds: float) -> bool:
        """Replace the lease by the value, or by nothing where that is empty. False: the lease is gone."""
        self._check()
        try:
            return await _SETTLE(
                self._connection,
                keys=(key,),
                args=(lease, value, round(seconds * 1000)),
                deadline_seconds=self._deadline_seconds,
            )
        except Unavailable:
            self._rest()
            raise

    def _check(self) -> None:
        if not self._connection.connected:
            raise Unavailable("redis", "there is no connection")
        if asyncio.get_running_loop().time() < self._rests_until:
            raise Unavailable("redis", "it was too slow a moment ago")

    def _rest(self) -> None:
        self._rests_until = asyncio.get_running_loop().time() + REST_SECONDS
