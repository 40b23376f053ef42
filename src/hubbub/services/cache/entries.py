"""Reading through: from Redis what is there, and else from PostgreSQL, leaving it in Redis."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar
from uuid import UUID, uuid4

from hubbub.errors import HubbubError, Unavailable
from hubbub.redis import ReplyError
from hubbub.services.cache.store import LEASE_MARK

if TYPE_CHECKING:
    from hubbub.services.cache.counts import Counts
    from hubbub.services.cache.invalidations import Invalidations
    from hubbub.services.cache.store import Store

T = TypeVar("T")

JITTER = 0.2
"""So that what was stored together does not end together: 20 % of the time to live, either way."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """What is kept of one noun. `prefix` names the layout of the values, too: a new layout has a new prefix."""

    prefix: str
    load: Callable[[UUID], Awaitable[T]]
    encode: Callable[[T], bytes]
    decode: Callable[[UUID, bytes], T | None]
    """None for what is not the value of this id in this layout."""


class Entries(Generic[T]):
    """The entries of one kind.

    Who finds nothing puts a lease of its own in the place of the entry, then reads PostgreSQL, then replaces the
    lease by the value, which the server does only if that very lease is still there. A change deletes whatever is
    there after its COMMIT. So a value read before a change is never stored after it: the lease is gone, or another
    reader holds one, who took it after the change.

    Who finds a lease of this process shares that read: as the lease is still there, nothing was invalidated since
    before the read began. Who finds the lease of another process reads PostgreSQL without storing; it does not
    wait, so the death of a process that holds a lease holds nobody up.
    """

    def __init__(
        self, kind: Kind[T], store: Store, invalidations: Invalidations, counts: Counts, *, ttl_seconds: float
    ) -> None:
        self._kind = kind
        self._store = store
        self._invalidations = invalidations
        self._counts = counts
        self._ttl_seconds = ttl_seconds
        # A fill can be joined by key until it has its lease, which is before it reads; from then on by the lease.
        self._without_lease: dict[str, asyncio.Task[T]] = {}
        self._by_lease: dict[bytes, asyncio.Task[T]] = {}
        self._fills: set[asyncio.Task[T]] = set()

    def key(self, id: UUID) -> str:
        return f"{self._kind.prefix}{id}"

    def invalidate(self, id: UUID) -> None:
        """After the COMMIT of a change. Neither waits nor raises."""
        self._invalidations.add(self.key(id))

    async def get(self, id: UUID) -> T:
        """The value. Raises what reading PostgreSQL raises, and nothing because of Redis."""
        key = self.key(id)
        # A change is announced before its writer is answered: who asks after that finds it here, or Redis has it.
        if key in self._invalidations:
            return await self._load(id)
        try:
            held = await self._store.get(key)
        except Unavailable:
            return await self._load(id)
        except ReplyError:  # somebody else's key: no string at all
            held = b""
        if held is None:
            return await self._fill(id, key)
        return await self._use(id, key, held)

    async def _use(self, id: UUID, key: str, held: bytes) -> T:
        if held.startswith(LEASE_MARK):
            fill = self._by_lease.get(held)
            return await (asyncio.shield(fill) if fill is not None else self._load(id))
        value = self._kind.decode(id, held)
        if value is None:
            self._invalidations.add(key)
            return await self._load(id)
        self._counts.hits += 1
        return value

    async def _load(self, id: UUID) -> T:
        self._counts.bypasses += 1
        return await self._kind.load(id)

    async def _fill(self, id: UUID, key: str) -> T:
        fill = self._without_lease.get(key)
        if fill is None:
            lease = LEASE_MARK + uuid4().hex.encode()
            fill = asyncio.create_task(self._lease_and_load(id, key, lease), name="hubbub: fill the cache")
            self._without_lease[key] = fill
            self._fills.add(fill)
            fill.add_done_callback(partial(self._filled, lease))
        # Shielded: whoever of those who wait is cancelled, the others get their answer.
        return await asyncio.shield(fill)

    def _filled(self, lease: bytes, fill: asyncio.Task[T]) -> None:
        self._fills.discard(fill)
        self._by_lease.pop(lease, None)

    async def _lease_and_load(self, id: UUID, key: str, lease: bytes) -> T:
        try:
            held = await self._store.lease(key, lease)
        except Unavailable:
            held = LEASE_MARK  # for all we know somebody has it, if only this call when it arrives late
        finally:
            fill = self._without_lease.pop(key)
        if held is not None:
            return await self._use(id, key, held)
        self._by_lease[lease] = fill
        self._counts.misses += 1
        try:
            value = await self._kind.load(id)
        except HubbubError:
            await self._settle(key, lease, b"")
            raise
        await self._settle(key, lease, self._kind.encode(value))
        return value

    async def _settle(self, key: str, lease: bytes, value: bytes) -> None:
        seconds = self._ttl_seconds * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads load only
        try:
            if not await self._store.settle(key, lease, value, seconds):
                self._counts.overtaken += 1
        except Unavailable:
            pass  # the lease ends by itself

    async def close(self) -> None:
        """Wait for the fills that are under way, which end by their deadline."""
        await asyncio.gather(*self._fills, return_exceptions=True)
