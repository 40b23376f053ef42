"""One read of PostgreSQL for all who want the same at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar
from uuid import UUID

T = TypeVar("T")


class Shared(Generic[T]):
    """Reads that are shared by those who wait for them to begin.

    Who comes while one is under way shares the next, never that one: so nobody is given what was read before he
    asked. However many ask, two reads of one key do not run at the same time.
    """

    def __init__(self, read: Callable[[UUID], Awaitable[T]]) -> None:
        self._read = read
        self._next: dict[UUID, asyncio.Task[T]] = {}
        self._under_way: dict[UUID, asyncio.Task[T]] = {}

    async def __call__(self, id: UUID) -> T:
        """What the read gives or raises. Who is cancelled takes nothing from the others."""
        task = self._next.get(id)
        if task is None:
            task = asyncio.create_task(self._read_after(id, self._under_way.get(id)), name="hubbub: shared read")
            self._next[id] = task
        return await asyncio.shield(task)

    async def _read_after(self, id: UUID, previous: asyncio.Task[T] | None) -> T:
        if previous is not None:
            await asyncio.wait([previous])
        self._under_way[id] = self._next.pop(id)
        try:
            return await self._read(id)
        finally:
            del self._under_way[id]

    async def close(self) -> None:
        """Wait for the reads that are under way, which end by their deadline."""
        await asyncio.gather(*self._next.values(), *self._under_way.values(), return_exceptions=True)
