"""Presence: the users who are online, their devices, and an event per change.

Leases in Redis are renewed by heartbeats, and swept when they are not. Presence follows in PostgreSQL, in
`users.is_online` and `last_seen`, where queries can use it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from itertools import islice
from math import inf
from typing import Final, TypeAlias
from uuid import UUID

from hubbub import inputs
from hubbub.background import BackgroundTask, jittered, report
from hubbub.errors import Invalid, Unavailable
from hubbub.events import PRESENCE_CHANNEL, PresenceChanged
from hubbub.postgres import Executor, Statement
from hubbub.redis import NOW, Connection, Gap, ReplyError, Script, Subscriptions
from hubbub.redis.expiring_sets import by_bucket, log_refusal
from hubbub.redis.replies import as_bytes_list, as_list
from hubbub.services.presence.leases import Device, Lease, Leases, Sweeper, leases_key, online_key

__all__ = ["Device", "Presence"]

logger = logging.getLogger("hubbub.presence")

MAX_DEVICE_LENGTH: Final = 100
"""Room for the name of a browser and its system. Each lease in Redis has it."""

USERS_PER_ROUND: Final = 500
"""Bounds one script of `is_online`, during which Redis serves no other client, and one step of the event loop."""

PRESENCE_ROWS_PER_STATEMENT: Final = 500
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


class OnlineLease(AbstractAsyncContextManager[None]):
    """A lease that is held for as long as a block runs.

    A class, because ten thousand of them lengthen a full garbage collection by 10 ms, generators by 24 ms.
    """

    __slots__ = ("_lease", "_leases", "_on_disconnect")

    def __init__(self, leases: Leases, lease: Lease, on_disconnect: Callable[[UUID], None]) -> None:
        self._leases = leases
        self._lease = lease
        self._on_disconnect = on_disconnect

    async def __aenter__(self) -> None:
        try:
            await self._leases.acquire(self._lease)
        except BaseException:
            await self._leases.release(self._lease)
            raise

    async def __aexit__(self, *_: object) -> None:
        self._on_disconnect(self._lease.user_id)
        await self._leases.release(self._lease)


class Presence:
    """A user is online while one of their connections holds a lease, and for a grace time after the last left.

    A lease lasts two heartbeats. So after a process was killed, any other process ends its leases within two
    heartbeats and the time to the next sweep. Redis decides who comes online and goes offline, and publishes it in
    the same step: one event per transition, however many processes take part. If Redis loses its data, the leases
    are back after the next sweep. Only then is an online event repeated for a user that never left.
    """

    def __init__(
        self,
        connection: Connection,
        subscriptions: Subscriptions,
        write: Write,
        *,
        executor: Executor | None = None,
        on_disconnect: Callable[[UUID], None] = lambda _: None,
        heartbeat_seconds: float = 10,
        grace_seconds: float = 5,
        sweep_seconds: float = 0.5,
        write_seconds: float = 3,
    ) -> None:
        """`write` writes presence to PostgreSQL in batches, each user at most once in `write_seconds`. Users that
        are online in the table of `executor` alone are found and written. `on_disconnect` is called with the user
        of each connection that ended, also if they have others. It must not wait.

        All times have to be above zero, and the grace time at most two heartbeats.
        """
        if min(heartbeat_seconds, sweep_seconds, write_seconds) <= 0:
            raise Invalid("heartbeat_seconds, sweep_seconds, write_seconds", "must be above zero")
        if not 0 <= grace_seconds <= 2 * heartbeat_seconds:
            raise Invalid("grace_seconds", "must be at most two heartbeats")
        self._connection = connection
        self._subscriptions = subscriptions
        self._on_disconnect = on_disconnect
        self._column = PresenceColumn(self.is_online, write, every_seconds=write_seconds)
        self._check: ColumnCheck | None = None
        if executor is not None:
            read, write_soon = self.is_online, self._column.write_soon
            self._check = ColumnCheck(connection, executor, read, write_soon, heartbeat_seconds=heartbeat_seconds)
        self._leases = Leases(
            connection,
            heartbeat_seconds=heartbeat_seconds,
            grace_seconds=grace_seconds,
            on_transition=self._leases_sent,
        )
        self._sweeper = Sweeper(
            connection,
            every_seconds=sweep_seconds,
            heartbeat_seconds=heartbeat_seconds,
            on_transition=self._column.write_soon,
            on_empty=self._leases.renew_soon,
            holds_leases=lambda: self._leases.is_holding,
        )

    def _leases_sent(self, may_have_come: Iterable[UUID]) -> None:
        self._column.write_soon(may_have_come)
        self._sweeper.end_idling()

    def _start(self) -> None:
        """Begin to send heartbeats, to sweep and to write to PostgreSQL. A second start does nothing."""
        self._leases.start()
        self._sweeper.task.start()
        self._column.task.start()
        if self._check is not None:
            self._check.task.start()

    async def _close(self) -> None:
        """Release all leases, and write the known transitions to PostgreSQL. Idempotent.

        The users' grace time begins. If no process is left at its end, the next one that starts ends it.
        """
        if self._check is not None:
            await self._check.task.close()
        await self._sweeper.task.close()
        await self._leases.close()
        await self._column.task.close()

    def online(self, user_id: UUID, device: str | None = None) -> AbstractAsyncContextManager[None]:
        """The user is online for as long as the block runs, on a device with a name of at most 100 characters.

        Redis has stored it when the block begins. While Redis is down nothing is raised, and it is stored when
        Redis is back. At the end of the block the user stops typing in all rooms. A user who is still typing on
        another device starts again with its next `typing.start`.

        Raises: Unavailable (the hub is not open).
        """
        name = None if device is None else inputs.text("device", device, longest=MAX_DEVICE_LENGTH)
        return OnlineLease(self._leases, Lease(inputs.uuid("user_id", user_id), name), self._on_disconnect)

    async def is_online(self, user_ids: Iterable[UUID]) -> dict[UUID, bool | None]:
        """Whether each of these users is online, as the events have it. None while Redis is unavailable.

        It does not raise `Unavailable`. A user is online through the grace time. An unknown id is not online.
        """
        rest, found = iter(inputs.items("user_ids", user_ids)), dict[UUID, bool | None]()
        is_available = True
        while some := inputs.uuids("user_ids", islice(rest, USERS_PER_ROUND)):
            flags = await self._are_some_online(some) if is_available else dict.fromkeys(some)
            is_available = None not in flags.values()
            found |= flags
        return found

    async def _are_some_online(self, user_ids: Iterable[UUID]) -> dict[UUID, bool | None]:
        buckets = by_bucket(user_ids, lambda id: id)
        answers = await asyncio.gather(*[self._are_online(*one) for one in buckets.items()])
        return {user_id: is_online for answer in answers for user_id, is_online in answer.items()}

    _ARE_ONLINE = Script(
        keys=("online",),
        args=("*users",),
        source="""
    local flags = {}
    for i, user in ipairs(ARGV) do
        flags[i] = redis.call('ZSCORE', online, user) and 1 or 0
    end
    return flags
    """,
        reply=as_list,
        writes=False,
    )

    async def _are_online(self, bucket: int, users: list[UUID]) -> dict[UUID, bool | None]:
        try:
            flags = await self._ARE_ONLINE(
                self._connection, keys=(online_key(bucket),), args=[str(user_id) for user_id in users]
            )
        except (Unavailable, ReplyError) as error:
            if isinstance(error, Unavailable) and error.service == "hub":
                raise  # no outage: the caller is in another process or event loop
            log_refusal(logger, error)
            return dict.fromkeys(users)
        return {user_id: flag == 1 for user_id, flag in zip(users, flags, strict=True)}

    _LEASES = Script(
        keys=("leases",),
        source=NOW + "return redis.call('ZRANGEBYSCORE', leases, '(' .. now, '+inf')",
        reply=as_bytes_list,
        writes=False,
    )

    async def devices(self, user_id: UUID) -> list[Device]:
        """The connections that the user has now: none in the grace time."""
        key = leases_key(inputs.uuid("user_id", user_id))
        return [Device._from_member(member) for member in await self._LEASES(self._connection, keys=(key,))]

    async def watch(self, *, buffer: int = 1_000) -> AsyncGenerator[PresenceChanged | Gap, None]:
        """The transitions of all users as they happen, for as long as the iteration lasts.

        The first item is a `Gap`, as soon as Redis has confirmed the subscription. Another `Gap` stands wherever
        events may be missing: after a reconnect, and when more than `buffer` were waiting. Call `is_online` then.
        The events that follow are newer. Redis may be down at the beginning.
        """
        buffer = inputs.limit(buffer, longest=100_000, field="buffer")
        async with self._subscriptions.subscribe_soon(PRESENCE_CHANNEL, buffer=buffer) as payloads:
            async for payload in payloads:
                change = payload if isinstance(payload, Gap) else PresenceChanged.from_json(payload)
                if change is not None:
                    yield change


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
        ready = list(
            islice((user for user in self._changed if user not in self._tried_at), PRESENCE_ROWS_PER_STATEMENT)
        )
        if not ready:
            return min((self._tried_at[user] + self._every_seconds for user in self._changed), default=inf) - now
        if not await self._write_batch(ready):
            await asyncio.sleep(COLUMN_RETRY_SECONDS)
        return None

    async def _write_rest(self) -> None:
        """Write all that have changed, without waiting for their time, as far as the servers are available."""
        rest = list(self._changed)
        for start in range(0, len(rest), PRESENCE_ROWS_PER_STATEMENT):
            if not await self._write_batch(rest[start : start + PRESENCE_ROWS_PER_STATEMENT]):
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
