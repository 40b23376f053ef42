"""Writing down who is online where queries can see it: `users.is_online` and `last_seen`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from itertools import islice
from typing import Final, TypeAlias
from uuid import UUID

from hubbub.errors import HubbubError

logger = logging.getLogger("hubbub.presence")

BATCH: Final = 500
RETRY_SECONDS: Final = 1.0

Read: TypeAlias = Callable[[Collection[UUID]], Awaitable[dict[UUID, bool | None]]]
Write: TypeAlias = Callable[[Mapping[UUID, bool]], Awaitable[None]]


class Projection:
    """Follows the truth in Redis, at a distance, for the users whose presence this process saw change.

    It writes what Redis says at the time of writing, and then looks again: where that has changed meanwhile, it
    writes again. Two processes that saw different transitions of one user may write in any order: the one that
    wrote last looked after its write, so what stands in the end is what Redis says. No clocks are compared.

    A user is written at once and then at most every `every_seconds`.
    """

    def __init__(self, read: Read, write: Write, *, every_seconds: float) -> None:
        self._read = read
        self._write = write
        self._every_seconds = every_seconds
        self._changed: dict[UUID, None] = {}
        self._written_at: dict[UUID, float] = {}
        """Of those that were written less than `every_seconds` ago."""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def note(self, user_ids: Iterable[UUID]) -> None:
        """The presence of these users has, or may have, changed."""
        for user_id in user_ids:
            self._changed[user_id] = None
            self._wake.set()

    def start(self) -> None:
        """Begin to write. A second start does nothing."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep_writing(), name="hubbub-presence-projection")

    async def close(self) -> None:
        """Write what is left, without waiting for its time. What cannot be written now is not. Idempotent."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        left = list(self._changed)
        for start in range(0, len(left), BATCH):
            if not await self._project(left[start : start + BATCH]):
                break

    async def _keep_writing(self) -> None:
        while True:
            self._wake.clear()
            now = asyncio.get_running_loop().time()
            self._forget_written_before(now - self._every_seconds)
            ready = list(islice((user for user in self._changed if user not in self._written_at), BATCH))
            if not ready:
                await self._rest(now)
            elif not await self._project(ready):
                await asyncio.sleep(RETRY_SECONDS)

    def _forget_written_before(self, then: float) -> None:
        for user_id, at in list(self._written_at.items()):
            if at > then:
                break  # they stand in the order of writing
            del self._written_at[user_id]

    async def _rest(self, now: float) -> None:
        """Until somebody changes or, where a change waits for its time, until that has come."""
        ready_at = [self._written_at[user] + self._every_seconds for user in self._changed]
        with suppress(TimeoutError):
            async with asyncio.timeout(min(ready_at) - now if ready_at else None):
                await self._wake.wait()

    async def _project(self, user_ids: Collection[UUID]) -> bool:
        """Write these users. False when one of the servers did not take part: they stay to be written."""
        for user_id in user_ids:
            self._changed.pop(user_id, None)
        done: Mapping[UUID, bool | None] = {}
        try:
            before = await self._read(user_ids)
            known = {user_id: is_online for user_id, is_online in before.items() if is_online is not None}
            if known:
                await self._write(known)
                self._note_written(known)
                after = await self._read(known)
                done = {user: is_online for user, is_online in known.items() if after[user] is is_online}
        except HubbubError as error:
            logger.warning("presence could not be written down: %s", error)
            return False
        else:
            return len(known) == len(user_ids)
        finally:
            self.note(user_id for user_id in user_ids if user_id not in done)

    def _note_written(self, user_ids: Iterable[UUID]) -> None:
        now = asyncio.get_running_loop().time()
        for user_id in user_ids:
            self._written_at.pop(user_id, None)
            self._written_at[user_id] = now
