"""Who is online, on how many devices, and the word of it when that changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Final
from uuid import UUID

from hubbub import inputs
from hubbub.errors import Invalid, Unavailable
from hubbub.events import PRESENCE_CHANNEL, PresenceChanged
from hubbub.redis import Connection, Gap, ReplyError, Subscriptions
from hubbub.services.presence.leases import Device, Lease, Leases, device_of
from hubbub.services.presence.projection import Projection, Write
from hubbub.services.presence.scripts import ARE_ONLINE, LEASES_OF, by_bucket, leases_key, log_refusal, online_key
from hubbub.services.presence.sweeping import Sweeper

DEVICE_LENGTH: Final = 100
USERS_A_QUESTION: Final = 500


class Visit(AbstractAsyncContextManager[None]):
    """A lease that is held for as long as a block runs.

    A class and no generator: ten thousand of them make a full garbage collection 10 ms longer, and not 24.
    """

    __slots__ = ("_lease", "_leases", "_on_disconnect")

    def __init__(self, leases: Leases, lease: Lease, on_disconnect: Callable[[UUID], None]) -> None:
        self._leases = leases
        self._lease = lease
        self._on_disconnect = on_disconnect

    async def __aenter__(self) -> None:
        try:
            await self._leases.take(self._lease)
        except BaseException:
            await self._leases.give_up(self._lease)
            raise

    async def __aexit__(self, *_: object) -> None:
        self._on_disconnect(self._lease.user_id)
        await self._leases.give_up(self._lease)


class Presence:
    """A user is online while one of their connections holds a lease, and for a grace time after the last left.

    A lease lasts two heartbeats, so what a killed process held ends within two heartbeats and the time to the next
    sweep, by any other process. Coming online and going offline are decided in Redis and published there in the
    same step: one event a transition, whoever takes part. If Redis loses its data the leases come back with the
    next sweep, and only then is an online event repeated for somebody who never left.
    """

    def __init__(
        self,
        connection: Connection,
        subscriptions: Subscriptions,
        project: Write,
        *,
        on_disconnect: Callable[[UUID], None] = lambda _: None,
        heartbeat_seconds: float = 10,
        grace_seconds: float = 5,
        sweep_seconds: float = 0.5,
        project_seconds: float = 3,
    ) -> None:
        """`project` writes down who is online, in a batch; each user at most once every `project_seconds`.
        `on_disconnect` is told whose connection has ended, whether or not they have others; it may not wait.

        Raises `Invalid` for times that do not fit: all above zero, a grace of at most two heartbeats.
        """
        if min(heartbeat_seconds, sweep_seconds, project_seconds) <= 0:
            raise Invalid("heartbeat_seconds, sweep_seconds, project_seconds", "must be above zero")
        if not 0 <= grace_seconds <= 2 * heartbeat_seconds:
            raise Invalid("grace_seconds", "must be at most two heartbeats")
        self._connection = connection
        self._subscriptions = subscriptions
        self._on_disconnect = on_disconnect
        self._projection = Projection(self.is_online, project, every_seconds=project_seconds)
        self._leases = Leases(
            connection,
            heartbeat_seconds=heartbeat_seconds,
            grace_seconds=grace_seconds,
            on_transition=self._projection.note,
        )
        self._sweeper = Sweeper(
            connection,
            every_seconds=sweep_seconds,
            heartbeat_seconds=heartbeat_seconds,
            on_transition=self._projection.note,
            on_empty=self._leases.renew_soon,
        )

    def start(self) -> None:
        """Begin to send heartbeats, to sweep and to write down. A second start does nothing."""
        self._leases.start()
        self._sweeper.start()
        self._projection.start()

    async def close(self) -> None:
        """Give up all leases, and write down the transitions that are known. Idempotent.

        The users' grace time begins. When no process is left to see its end, the next one that starts does.
        """
        await self._sweeper.close()
        await self._leases.close()
        await self._projection.close()

    def online(self, user_id: UUID, device: str | None = None) -> AbstractAsyncContextManager[None]:
        """The user is online for as long as the block runs, on a device that may have a name.

        At its end the user types nowhere any more; one who types on another device does again with its next
        `typing.start`.

        Inside of it Redis knows, unless it is down: then it is told when it is back, and nothing is raised. Raises
        `Invalid` for a device name over 100 characters, `Unavailable` when the hub is not open.
        """
        name = None if device is None else inputs.text("device", device, longest=DEVICE_LENGTH)
        return Visit(self._leases, Lease(inputs.uuid("user_id", user_id), name), self._on_disconnect)

    async def is_online(self, user_ids: Iterable[UUID]) -> dict[UUID, bool | None]:
        """Who of these users is online, as the events said; None where Redis cannot say now.

        It does not raise for an unavailable Redis. A user is online through the grace time, and an unknown id is
        not. Raises `Invalid` for what is no UUID.
        """
        ids = inputs.uuids("user_ids", user_ids)
        parts = by_bucket(ids, lambda user_id: user_id, at_most=USERS_A_QUESTION)
        answers = await asyncio.gather(*[self._ask(bucket, users) for bucket, users in parts])
        return {user_id: is_online for answer in answers for user_id, is_online in answer.items()}

    async def devices(self, user_id: UUID) -> list[Device]:
        """The connections that the user has now: none in the grace time. Raises `Invalid`, `Unavailable`."""
        key = leases_key(inputs.uuid("user_id", user_id))
        return [device_of(word) for word in await LEASES_OF(self._connection, keys=(key,))]

    async def watch(self, *, buffer: int = 1_000) -> AsyncGenerator[PresenceChanged | Gap, None]:
        """Everybody's transitions as they happen, for as long as it is iterated over.

        The first thing is a `Gap`, as soon as Redis has confirmed, and another one comes wherever some may have
        been missed: after a reconnect, and when more than `buffer` waited. Ask `is_online` then; what follows is
        newer. Redis may be down when it begins. Raises `Invalid`, `Unavailable` when the hub is not open.
        """
        room = inputs.limit(buffer, longest=100_000, field="buffer")
        async with self._subscriptions.subscribe_soon(PRESENCE_CHANNEL, buffer=room) as payloads:
            async for heard in payloads:
                change = heard if isinstance(heard, Gap) else PresenceChanged.from_json(heard)
                if change is not None:
                    yield change

    async def _ask(self, bucket: int, users: list[UUID]) -> dict[UUID, bool | None]:
        try:
            flags = await ARE_ONLINE(
                self._connection, keys=(online_key(bucket),), args=[str(user_id) for user_id in users]
            )
        except Unavailable:
            return dict.fromkeys(users)
        except ReplyError as error:
            log_refusal(error)
            return dict.fromkeys(users)
        return dict(zip(users, flags, strict=True))
