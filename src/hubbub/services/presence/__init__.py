"""Presence: the users who are online, their devices, and an event per change.

Leases in Redis are renewed by heartbeats, and swept when they are not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from itertools import islice
from typing import Final
from uuid import UUID

from hubbub import inputs
from hubbub.errors import Invalid, Unavailable
from hubbub.events import PRESENCE_CHANNEL, PresenceChanged
from hubbub.postgres import Executor
from hubbub.redis import NOW, Connection, Gap, ReplyError, Script, Subscriptions
from hubbub.redis.expiring_sets import by_bucket, log_refusal
from hubbub.redis.replies import as_bytes_list, as_list
from hubbub.services.presence.column import ColumnCheck, PresenceColumn, Write
from hubbub.services.presence.leases import Device, Lease, Leases, Sweeper, leases_key, online_key

__all__ = ["Device", "Presence"]

logger = logging.getLogger("hubbub.presence")

MAX_DEVICE_LENGTH: Final = 100

USERS_PER_ROUND: Final = 500
"""Bounds one script of `is_online`, during which Redis serves no other client, and one step of the event loop."""


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
        await self._leases.task.close()
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
