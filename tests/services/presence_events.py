"""A listener on the channel of presence, and a presence service with short times."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from uuid import UUID

from hubbub.events import PRESENCE_CHANNEL, PresenceChanged
from hubbub.redis import Connection, Gap, Subscriptions
from hubbub.services.presence import Presence, Write

GRACE_SECONDS = 0.2
THE_END = b"the end"


class Table:
    """Stands in for the users table. It has all writes in their order."""

    def __init__(self) -> None:
        self.writes: list[dict[UUID, bool]] = []
        self.users: dict[UUID, bool] = {}

    async def write(self, changes: Mapping[UUID, bool]) -> None:
        self.writes.append(dict(changes))
        self.users.update(changes)

    def writes_of(self, user_id: UUID) -> list[bool]:
        return [changes[user_id] for changes in self.writes if user_id in changes]


@asynccontextmanager
async def opened(
    connection: Connection,
    subscriptions: Subscriptions,
    write: Write | None = None,
    *,
    heartbeat_seconds: float = 3,
    grace_seconds: float = GRACE_SECONDS,
    write_seconds: float = 0.2,
) -> AsyncIterator[Presence]:
    """The presence service of one process. By default leases last 6 s, longer than a busy machine stalls."""
    presence = Presence(
        connection,
        subscriptions,
        write or Table().write,
        heartbeat_seconds=heartbeat_seconds,
        grace_seconds=grace_seconds,
        sweep_seconds=0.02,
        write_seconds=write_seconds,
    )
    presence._start()
    try:
        yield presence
    finally:
        await presence._close()


@asynccontextmanager
async def together_online(presence: Presence, user_ids: Iterable[UUID]) -> AsyncIterator[None]:
    """Users who come online and go offline at the same time. One by one, each would wait for its own script."""
    connections = [presence.online(user_id) for user_id in user_ids]
    await asyncio.gather(*[connection.__aenter__() for connection in connections])
    try:
        yield
    finally:
        await asyncio.gather(*[connection.__aexit__(None, None, None) for connection in connections])


class PresenceListener:
    """Subscribes to the channel like another program."""

    def __init__(self, connection: Connection, subscriptions: Subscriptions) -> None:
        self._connection = connection
        self._subscriptions = subscriptions

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[PresenceListener]:
        self._subscription = await self._subscriptions.subscribe(PRESENCE_CHANNEL, buffer=100_000)
        async with self._subscription:
            yield self

    async def next(self) -> PresenceChanged | Gap | None:
        heard = await anext(self._subscription)
        return heard if isinstance(heard, Gap) else PresenceChanged.from_json(heard)

    async def until_now(self) -> list[PresenceChanged]:
        """All unread events that were published before this call."""
        await self._connection.execute("PUBLISH", PRESENCE_CHANNEL, THE_END)
        changes: list[PresenceChanged] = []
        async for heard in self._subscription:
            if heard == THE_END:
                return changes
            if not isinstance(heard, Gap):
                change = PresenceChanged.from_json(heard)
                assert change is not None
                changes.append(change)
        raise AssertionError("the connection was closed")

    async def until_offline(self, user_ids: set[UUID]) -> list[PresenceChanged]:
        """All events up to the offline event of each of the users."""
        changes: list[PresenceChanged] = []
        missing = set(user_ids)
        while missing:
            change = await self.next()
            if isinstance(change, PresenceChanged):
                changes.append(change)
                missing -= set() if change.is_online else {change.user_id}
        return changes
