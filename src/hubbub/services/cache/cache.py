"""The cache: what a chat reads with nearly every request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from hubbub import inputs
from hubbub.commits import Commits, MessagesSent, RoomRewound, RoomTouched, UserChanged
from hubbub.errors import Invalid
from hubbub.models import User
from hubbub.services.cache.counts import Counts
from hubbub.services.cache.entries import JITTER, Entries, Kind
from hubbub.services.cache.invalidations import Invalidations
from hubbub.services.cache.store import Store

if TYPE_CHECKING:
    from uuid import UUID

    from hubbub.models import Room, RoomUser
    from hubbub.redis import Connection
    from hubbub.repositories import Messages, Rooms, RoomUsers, Users

LAYOUT: Final = 3
"""Of the values in Redis. A change of `User`, `Message` or `MessagePage` takes the next number, so that no release
reads what another one wrote."""

TTL_SECONDS: Final = 60.0
LEASE_SECONDS: Final = 3.0
PAGE_LENGTH: Final = 50

DEADLINE_SECONDS: Final = 0.1
"""How long a read waits for Redis before it goes to PostgreSQL. A reply takes a hundredth of it."""


class Cache:
    """Reads of what is hot: users and newest pages from Redis, rooms and memberships from PostgreSQL.

    **Permissions are never stale.** Whether somebody is a member, as what, and whether a room is private, is asked
    of PostgreSQL each time, together with all who ask at that moment. So leaving a room is effective in every
    process with the next call, also while Redis is down. The row of a room changes with each message (`last_seq`),
    which is the other reason why none is kept.

    **What is kept is at most this old.** In the process that made a change, no call that starts after the change
    was acknowledged gives what was there before it. In any other process, no call that starts after Redis has
    deleted the entry does, which is a round trip after the COMMIT. A value that was read before a change cannot be
    stored after it (`Entries` says how). Where the deletion is lost for good, an entry ends with its time to live:
    after `ttl_seconds` and 20 %, 72 s by default, and the 3 s that the lease of a read under way lasts. So it is
    when the process dies between COMMIT and DEL, or never learns that the COMMIT was done; when Redis loses what
    it had acknowledged, as in a failover; and between releases with different layouts that run side by side.

    **A restore of PostgreSQL**, or a failover that lost commits, is a change that nobody announces. The page of a
    room goes with the first `Resync` that says so, so that who then loads the room anew sees what is there; all
    else lives on for as long as an entry does.

    **Without Redis** everything is read from PostgreSQL, and nothing raises because of it. A change that this
    process could not tell Redis of is told later, and until then the process does not use that entry; others may,
    for as long as an entry lives. A Redis that does not answer within `deadline_seconds` is left alone for a
    second.

    Keys: `cache:3:user:<id>` and `cache:3:page:<id>`, 3 being the layout. Each has a time to live.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        users: Users,
        rooms: Rooms,
        messages: Messages,
        room_users: RoomUsers,
        ttl_seconds: float = TTL_SECONDS,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        """The repositories are those of the hub, on the pool. Raises `Invalid` for a time that cannot be."""
        if not 0.1 <= ttl_seconds <= 86_400:
            raise Invalid("ttl_seconds", "must be from 0.1 to 86400")
        self._rooms = rooms
        self._messages = messages
        self._room_users = room_users
        self.counts = Counts()
        store = Store(connection, deadline_seconds=deadline_seconds, lease_seconds=LEASE_SECONDS)
        self._invalidations = Invalidations(
            connection, self.counts, longest_life_seconds=LEASE_SECONDS + ttl_seconds * (1 + JITTER)
        )
        self._users: Entries[User] = Entries(
            Kind(f"cache:{LAYOUT}:user:", users.get, msgspec.json.encode, _user),
            store,
            self._invalidations,
            self.counts,
            ttl_seconds=ttl_seconds,
        )
        self._pages: Entries[bytes] = Entries(
            Kind(f"cache:{LAYOUT}:page:", self._load_page, bytes, _page),
            store,
            self._invalidations,
            self.counts,
            ttl_seconds=ttl_seconds,
        )

    @property
    def unacknowledged(self) -> int:
        """How many entries are out of date without Redis having said that they are gone: 0 but for a moment."""
        return len(self._invalidations)

    async def user(self, user_id: UUID) -> User:
        """The user. Raises `NotFound`."""
        return await self._users.get(inputs.uuid("user_id", user_id))

    async def newest_page(self, room_id: UUID) -> bytes:
        """The newest 50 messages as `messages.page_json` gives them, to be sent as they are. Raises `NotFound`.

        It does not ask who wants to read it: `is_member` does. When an account is deleted, its id may stand as the
        author on pages of rooms that it had left before, for as long as an entry lives.
        """
        return await self._pages.get(inputs.uuid("room_id", room_id))

    async def room(self, room_id: UUID) -> Room:
        """The room as it is now, from PostgreSQL. Raises `NotFound`."""
        return await self._rooms.get(room_id)

    async def membership(self, room_id: UUID, user_id: UUID) -> RoomUser:
        """The membership as it is now, from PostgreSQL. Raises `NotAMember`, also when there is no such room."""
        return await self._room_users.get(room_id, user_id)

    async def is_member(self, room_id: UUID, user_id: UUID) -> bool:
        """Whether the user is in the room now, from PostgreSQL."""
        return await self._room_users.is_member(room_id, user_id)

    def register(self, commits: Commits) -> None:
        """Forget, from now on, what a commit made out of date."""
        commits.on(UserChanged, lambda change: self._users.invalidate(change.user_id))
        commits.on(RoomTouched, lambda change: self._pages.invalidate(change.room_id))
        commits.on(RoomRewound, lambda change: self._pages.invalidate(change.room_id))
        commits.on(MessagesSent, self._forget_pages)

    def _forget_pages(self, change: MessagesSent) -> None:
        for room_id in {message.room_id for message in change.messages}:
            self._pages.invalidate(room_id)

    async def close(self) -> None:
        """Wait for what is under way, and for Redis to hear of the last changes, at most a second.

        To be called before the connection and the pool are closed. May be called again.
        """
        await self._invalidations.close()
        await self._users.close()
        await self._pages.close()

    async def _load_page(self, room_id: UUID) -> bytes:
        return await self._messages.page_json(room_id, limit=PAGE_LENGTH)


_decode_user = msgspec.json.Decoder(User).decode


def _user(user_id: UUID, data: bytes) -> User | None:
    try:
        user = _decode_user(data)
    except msgspec.DecodeError:
        return None
    return user if user.id == user_id else None


def _page(room_id: UUID, data: bytes) -> bytes | None:
    """Not taken apart: that it begins with the room's id and ends as JSON does has to do."""
    return data if data.startswith(b'{"room_id" : "%s",' % str(room_id).encode()) and data.endswith(b"}") else None
