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

from hubbub.background import BackgroundTask, jittered, report
from hubbub.errors import Unavailable
from hubbub.postgres import Executor, Statement
from hubbub.redis import Connection, ReplyError

logger = logging.getLogger("hubbub.presence")

BATCH: Final = 500
"""Users per statement: bounds the rows that one transaction locks."""

COLUMN_RETRY_SECONDS: Final = 1.0
"""The pause after a batch for which a server was unavailable, long enough for others to reconnect."""

MAX_REFUSED: Final = 4
"""After this many users were refused one by one and none was written, the cause is not a single user. The rest is
retried later."""

CHECKED_KEY: Final = "presence:checked"
CHECKED_MS: Final = 24 * 3600 * 1000
"""The time until users whose presence was lost in another way are found."""
CLAIM_MS: Final = 60_000
"""How long another process waits for a check whose process died. It is longer than a page takes."""
USERS_PER_PAGE: Final = 1_000
"""A few ms for PostgreSQL and for one step of the event loop."""

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
            await asyncio.sleep(COLUMN_RETRY_SECONDS)
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


class ColumnCheck:
    """Finds users that are online in PostgreSQL alone, and has the column written.

    Such users remain after a crash of all processes that would have written the column, together with a loss of
    Redis data. Redis keeps a key for a day after each check. So one process checks after Redis has lost its data,
    and once a day.
    """

    def __init__(
        self,
        connection: Connection,
        executor: Executor,
        read: Read,
        write_soon: Callable[[Iterable[UUID]], None],
        *,
        heartbeat_seconds: float,
    ) -> None:
        self._connection = connection
        self._executor = executor
        self._read = read
        self._write_soon = write_soon
        self._heartbeat_seconds = heartbeat_seconds
        self.task = BackgroundTask("checking the presence of all users", self._check_if_lost)

    # By the primary key and in pages: an index of the users that are online would slow down each of their changes.
    _PAGE = Statement(
        "presence.page_of_users",
        lambda id, is_online: (id, is_online),
        """
        SELECT id, is_online
        FROM users
        WHERE id > $1
        ORDER BY id
        LIMIT $2
        """,
        distributed="""
        SELECT user_id AS id, is_online
        FROM hubbub_presence
        WHERE user_id > $1
        ORDER BY user_id
        LIMIT $2
        """,
    )

    async def _check_if_lost(self) -> float:
        try:
            if await self._connection.execute("SET", CHECKED_KEY, "1", "NX", "PX", CLAIM_MS) is not None:
                await asyncio.sleep(self._heartbeat_seconds)  # in which living processes renew their leases
                await self._check()
        except (Unavailable, ReplyError) as error:
            logger.info("checking the presence of all users again, after: %s", error)
        return jittered(2 * self._heartbeat_seconds)

    async def _check(self) -> None:
        last = UUID(int=0)
        while True:
            users = await self._executor.fetch_all(self._PAGE, last, USERS_PER_PAGE)
            states = await self._read([user_id for user_id, is_online in users if is_online])
            if None in states.values():
                return  # without Redis; the claim ends, and another check follows
            self._write_soon(user_id for user_id, is_online in states.items() if not is_online)
            is_last = len(users) < USERS_PER_PAGE
            await self._connection.execute("SET", CHECKED_KEY, "1", "PX", CHECKED_MS if is_last else CLAIM_MS)
            if is_last:
                return
            last = users[-1][0]
