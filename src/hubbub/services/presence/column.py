"""Presence in PostgreSQL, where queries can use it: `users.is_online` and `last_seen`."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from itertools import islice
from math import inf
from typing import Final, TypeAlias
from uuid import UUID

from hubbub.background import BackgroundTask, report
from hubbub.errors import Unavailable

logger = logging.getLogger("hubbub.presence")

BATCH: Final = 500
"""Users per statement: bounds the rows that one transaction locks."""

RETRY_SECONDS: Final = 1.0
"""The pause after a batch for which a server was unavailable, long enough for others to reconnect."""

MAX_REFUSED: Final = 4
"""After so many users were refused one by one and none was written, the reason is not in the users. The rest
waits."""

Read: TypeAlias = Callable[[Collection[UUID]], Awaitable[dict[UUID, bool | None]]]
Write: TypeAlias = Callable[[Mapping[UUID, bool]], Awaitable[None]]


class PresenceColumn:
    """Writes presence to PostgreSQL for the users whose presence changed as far as this process has seen.

    It reads Redis, writes what Redis has, and reads again. If that has changed meanwhile, it writes again. Two
    processes that saw different transitions of a user may write in any order. The one that wrote last read after
    its write, so in the end PostgreSQL has what Redis has. No clocks are compared.

    A user is written at once, and then at most every `every_seconds`. A user whose row cannot be written, for
    instance because of a trigger of the application, does not keep others from being written. That user is tried
    again as often.
    """

    def __init__(self, read: Read, write: Write, *, every_seconds: float) -> None:
        self._read = read
        self._write = write
        self._every_seconds = every_seconds
        self._changed: dict[UUID, None] = {}
        self._tried_at: dict[UUID, float] = {}
        """When users were written or refused, for `every_seconds`. In the order of time."""
        self.task = BackgroundTask("writing presence", self._write_due, finish=self._write_rest)

    def write_soon(self, user_ids: Iterable[UUID]) -> None:
        """The presence of these users has changed, or may have."""
        for user_id in user_ids:
            self._changed[user_id] = None
            self.task.wake()

    async def _write_due(self) -> float | None:
        now = asyncio.get_running_loop().time()
        for user_id, tried_at in list(self._tried_at.items()):
            if tried_at > now - self._every_seconds:
                break
            del self._tried_at[user_id]
        ready = list(islice((user for user in self._changed if user not in self._tried_at), BATCH))
        if not ready:
            return min((self._tried_at[user] + self._every_seconds for user in self._changed), default=inf) - now
        if not await self._write_batch(ready):
            await asyncio.sleep(RETRY_SECONDS)
        return None

    async def _write_rest(self) -> None:
        """Write all that have changed, without waiting for their time, as far as the servers are available."""
        rest = list(self._changed)
        for start in range(0, len(rest), BATCH):
            if not await self._write_batch(rest[start : start + BATCH]):
                break

    async def _write_batch(self, user_ids: Collection[UUID]) -> bool:
        """Write these users. False when a server was unavailable or not all were tried. The rest stays changed."""
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
            logger.warning("could not write presence: %s", error)
            return False
        else:
            return len(known) == len(user_ids) and all(user_id in self._tried_at for user_id in known)
        finally:
            self.write_soon(user_id for user_id in user_ids if user_id not in done)

    async def _write_by_halves(self, known: Mapping[UUID, bool]) -> dict[UUID, bool]:
        """Write these users in one statement, or in halves of it where that is refused. Returns the written ones.

        Raises: Unavailable.
        """
        written: dict[UUID, bool] = {}
        refused: dict[UUID, Exception] = {}
        # Shuffled, so that other users come first in the next round.
        parts = [random.sample(list(known), len(known))] if known else []
        while parts and (written or len(refused) < MAX_REFUSED):
            part = parts.pop()
            changes = {user_id: known[user_id] for user_id in part}
            try:
                await self._write(changes)
                written |= changes
            except Unavailable:
                raise
            except Exception as error:  # noqa: BLE001 - any error may be about one row
                if len(part) > 1:
                    middle = len(part) // 2
                    parts += [part[:middle], part[middle:]]
                    continue
                refused[part[0]] = error
            now = asyncio.get_running_loop().time()
            for user_id in part:
                self._tried_at.pop(user_id, None)  # to be the last of them
                self._tried_at[user_id] = now
        if refused:
            user_id, first = next(iter(refused.items()))
            report(f"could not write the presence of {len(refused)} users, {user_id} among them", first)
        return written
