"""Writing down who is online where queries can see it: `users.is_online` and `last_seen`."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from itertools import islice
from typing import Final, TypeAlias
from uuid import UUID

from hubbub.background import ReportErrors, report
from hubbub.errors import Unavailable

logger = logging.getLogger("hubbub.presence")

BATCH: Final = 500
RETRY_SECONDS: Final = 1.0

MOST_REFUSED: Final = 4
"""Where so many users are refused one by one and nobody is written, it is not for them: the others can wait."""

Read: TypeAlias = Callable[[Collection[UUID]], Awaitable[dict[UUID, bool | None]]]
Write: TypeAlias = Callable[[Mapping[UUID, bool]], Awaitable[None]]


class Projection:
    """Follows the truth in Redis, at a distance, for the users whose presence this process saw change.

    It writes what Redis says at the time of writing, and then looks again: where that has changed meanwhile, it
    writes again. Two processes that saw different transitions of one user may write in any order: the one that
    wrote last looked after its write, so what stands in the end is what Redis says. No clocks are compared.

    A user is written at once and then at most every `every_seconds`. One whose row cannot be written, be it for a
    trigger of the application's own, keeps nobody else from being written and is tried again as often.
    """

    def __init__(self, read: Read, write: Write, *, every_seconds: float) -> None:
        self._read = read
        self._write = write
        self._every_seconds = every_seconds
        self._changed: dict[UUID, None] = {}
        self._tried_at: dict[UUID, float] = {}
        """Of those that were written, or could not be, less than `every_seconds` ago."""
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
            self._forget_tried_before(now - self._every_seconds)
            ready = list(islice((user for user in self._changed if user not in self._tried_at), BATCH))
            if not ready:
                await self._rest(now)
            elif not await self._project(ready):
                await asyncio.sleep(RETRY_SECONDS)

    def _forget_tried_before(self, then: float) -> None:
        for user_id, at in list(self._tried_at.items()):
            if at > then:
                break  # they stand in the order of trying
            del self._tried_at[user_id]

    async def _rest(self, now: float) -> None:
        """Until somebody changes or, where a change waits for its time, until that has come."""
        ready_at = [self._tried_at[user] + self._every_seconds for user in self._changed]
        with suppress(TimeoutError):
            async with asyncio.timeout(min(ready_at) - now if ready_at else None):
                await self._wake.wait()

    async def _project(self, user_ids: Collection[UUID]) -> bool:
        """Write these users. False when it is no use to go on at once: they stay to be written."""
        with ReportErrors("writing down who is online"):
            return await self._write_down(user_ids)
        return False

    async def _write_down(self, user_ids: Collection[UUID]) -> bool:
        """As `_project`. False when one of the servers did not take part, or not everybody was tried."""
        for user_id in user_ids:
            self._changed.pop(user_id, None)
        done: Mapping[UUID, bool | None] = {}
        try:
            before = await self._read(user_ids)
            known = {user_id: is_online for user_id, is_online in before.items() if is_online is not None}
            written = await self._write_by_halves(known)
            after = await self._read(written)
            done = {user: is_online for user, is_online in written.items() if after[user] is is_online}
        except Unavailable as error:
            logger.warning("presence could not be written down: %s", error)
            return False
        else:
            return len(known) == len(user_ids) and all(user_id in self._tried_at for user_id in known)
        finally:
            self.note(user_id for user_id in user_ids if user_id not in done)

    async def _write_by_halves(self, known: Mapping[UUID, bool]) -> dict[UUID, bool]:
        """Write together who can be written; those that were. Raises `Unavailable`."""
        written: dict[UUID, bool] = {}
        refused: dict[UUID, Exception] = {}
        # Shuffled, so that others come first in the next round.
        parts = [random.sample(list(known), len(known))] if known else []
        while parts and (written or len(refused) < MOST_REFUSED):
            part = parts.pop()
            changes = {user_id: known[user_id] for user_id in part}
            try:
                await self._write(changes)
                written |= changes
            except Unavailable:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, it may be about one row
                if len(part) > 1:
                    middle = len(part) // 2
                    parts += [part[:middle], part[middle:]]
                    continue
                refused[part[0]] = error
            self._note_tried(part)
        if refused:
            user_id, first = next(iter(refused.items()))
            report(f"the presence of {len(refused)} users, {user_id} for one, could not be written down", first)
        return written

    def _note_tried(self, user_ids: Iterable[UUID]) -> None:
        now = asyncio.get_running_loop().time()
        for user_id in user_ids:
            self._tried_at.pop(user_id, None)
            self._tried_at[user_id] = now
