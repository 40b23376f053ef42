"""One who follows: a bounded buffer of what has happened, and a place in each of the rooms."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Collection, Mapping
from typing import TYPE_CHECKING, Protocol, Self
from uuid import UUID

from hubbub.errors import NotFound, Unavailable
from hubbub.events import FeedEvent, MemberJoined, MemberLeft, PresenceChanged, RoomGone, TypingChanged
from hubbub.instrumentation import SILENT, Instrumentation
from hubbub.positions import Position

if TYPE_CHECKING:
    from hubbub.repositories.messages.log import Entry, Reading
    from hubbub.services.feed.followed_room import FollowedRoom
    from hubbub.services.feed.place import Place

logger = logging.getLogger("hubbub.feed")

# Entries read at a time by one who is behind.
PAGE = 200
# Rooms of which a follower remembers where its user left them: one may live long, and see many rooms come and go.
MOST_LEFT = 1_000
# How long to wait before the log is read again when PostgreSQL was away: between these.
PAUSE_SECONDS = (0.1, 0.5)


class Source(Protocol):
    """What a follower asks the feed for."""

    def enter(self, follower: Follower) -> Awaitable[None]:
        """Put the follower at a place in each of the rooms. Raises `NotAMember`, `Invalid`, `Unavailable`."""
        ...

    def read(self, room_id: UUID, after: Position, limit: int) -> Awaitable[Reading]:
        """Read the log of a room. Raises `NotFound`, `Unavailable`."""
        ...

    def head(self, room: FollowedRoom) -> Awaitable[Position]:
        """The head of a room's log, whose rewinding is told to all who follow it here. Raises as `read`."""
        ...

    def leave(self, place: Place) -> None:
        """A place has come to its end."""
        ...

    def forget(self, follower: Follower) -> None:
        """The follower is gone."""
        ...


class Follower:
    """Iterate over it for what happens in the rooms of a user; `async with` begins and ends it.

    Of each room it gives every entry of the log from the starting point on, in order, each once. One reader at a
    time. The iteration ends when the block or the hub does. At most `limit` events wait to be read; what comes
    then is read from PostgreSQL once there is space again: a slow reader misses nothing and costs no memory.
    """

    __slots__ = (
        "__weakref__",
        "_has_reader",
        "_reader",
        "_reading",
        "_source",
        "after",
        "behind",
        "buffer",
        "digest",
        "instrumentation",
        "is_closed",
        "is_passed_over",
        "is_placed",
        "left",
        "left_at",
        "limit",
        "places",
        "rooms",
        "user_id",
        "wants_presence",
        "wants_typing",
    )

    def __init__(
        self,
        source: Source,
        user_id: UUID,
        *,
        after: Mapping[UUID, Position],
        rooms: Collection[UUID] | None,
        limit: int,
        wants_typing: bool = False,
        wants_presence: bool = False,
        instrumentation: Instrumentation = SILENT,
    ) -> None:
        self._source = source
        self.instrumentation = instrumentation
        self._has_reader = False
        self._reader: asyncio.Future[None] | None = None
        self._reading: asyncio.Timeout | None = None
        self.user_id = user_id
        self.after = after
        self.rooms = rooms
        self.limit = limit
        self.wants_typing = wants_typing
        self.wants_presence = wants_presence
        self.buffer: deque[FeedEvent] = deque()
        self.places: dict[UUID, Place] = {}
        self.behind: dict[Place, None] = {}
        self.digest: int | None = None
        """Of the user's rooms, as long as there is a place in each that is wanted; else None."""
        self.left = 0
        """How many places have come to their end."""
        self.left_at: dict[UUID, Position] = {}
        """Where they did, by room."""
        self.is_placed = False
        """Whether it has its starting places; before that nobody may give it others."""
        self.is_passed_over = False
        """Whether somebody wanted to, meanwhile."""
        self.is_closed = False

    async def __aenter__(self) -> Self:
        if self.is_placed or self.is_closed:
            raise RuntimeError("a follower is entered once")
        try:
            await self._source.enter(self)
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Follow no more, at once. Idempotent."""
        if self.is_closed:
            return
        self.is_closed = True
        for place in tuple(self.places.values()):
            place.end()
        self.buffer.clear()
        self._source.forget(self)
        self.wake()
        if self._reading is not None:
            self._reading.reschedule(0)  # long ago: PostgreSQL may be frozen, and nobody wants its answer

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> FeedEvent:
        if not self.buffer:
            await self._fill()
        self.instrumentation.delivered()
        return self.buffer.popleft()

    async def _fill(self) -> None:
        """Returns in the same step in which it finds an event."""
        if self._has_reader:
            raise RuntimeError("a follower has one reader at a time")
        self._has_reader = True
        try:
            while not self.buffer:
                if self.is_closed:
                    raise StopAsyncIteration
                if not self.is_placed:
                    raise RuntimeError("a follower is entered by `async with` before it is iterated over")
                if self.behind:
                    await self._read_on(next(iter(self.behind)))
                else:
                    await self._wait()
        finally:
            self._has_reader = False

    async def _wait(self) -> None:
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def wake(self) -> None:
        """Somebody who waits for an event looks again."""
        reader = self._reader
        if reader is not None and not reader.done():
            reader.set_result(None)

    def put(self, event: FeedEvent) -> None:
        self.buffer.append(event)
        self.wake()

    def signal(self, event: TypingChanged | PresenceChanged) -> None:
        """Something that cannot be read later: told if there is space."""
        if len(self.buffer) < self.limit:
            self.put(event)

    def leave(self, place: Place) -> None:
        """Forget a place that has come to its end."""
        self.behind.pop(place, None)
        if self.places.pop(place.room.id, None) is not None:
            self.digest = None
            self.left += 1
            self.left_at[place.room.id] = place.position
            if len(self.left_at) > MOST_LEFT:
                del self.left_at[next(iter(self.left_at))]
            self._source.leave(place)

    def lose(self, place: Place) -> None:
        """The room is gone for this user, and no log says so."""
        self.put(RoomGone(place.room.id))
        place.end()

    def wants(self, room_id: UUID) -> bool:
        return self.rooms is None or room_id in self.rooms

    async def _read_on(self, place: Place) -> None:
        """The next page for a place that is behind, unless the follower is closed meanwhile."""
        try:
            async with asyncio.timeout(None) as self._reading:
                await self._try_to_read(place)
        except TimeoutError:
            pass  # closed
        finally:
            self._reading = None

    async def _try_to_read(self, place: Place) -> None:
        """While PostgreSQL is away it waits, and nothing is lost."""
        try:
            await self._read_page(place)
        except NotFound:
            if place in self.behind:
                self.lose(place)
        except Unavailable as error:
            if not error.retryable:
                raise
            logger.info("reading the log again after: %s", error)
            await asyncio.sleep(random.uniform(*PAUSE_SECONDS))  # noqa: S311 - jitter, not a secret

    async def _read_page(self, place: Place) -> None:
        asked = place.position
        reading = await self._source.read(place.room.id, asked, min(PAGE, self.limit))
        head = await self._source.head(place.room) if reading.is_rewound else None
        if place not in self.behind or place.position is not asked:
            return  # it was moved meanwhile: what was read is not the next of it
        if head is not None:
            place.resync(head, "rewound")
        space = max(self.limit - len(self.buffer), 0)  # other rooms have put events there meanwhile
        for entry in reading.entries[:space]:
            self._take(place, entry)
        if len(reading.entries) <= space:
            place.skip_to(reading.end)
        self._turn(place)

    def _take(self, place: Place, entry: Entry) -> None:
        event = entry.event
        place.position = entry.position
        if place.is_outside and isinstance(event, MemberJoined) and event.user_id == self.user_id:
            place.is_outside = False
        if place.is_outside:
            return
        self.put(event)
        if isinstance(event, MemberLeft) and event.user_id == self.user_id:
            place.is_outside = True

    def _turn(self, place: Place) -> None:
        """Go live, or let the next of the rooms that are behind have its turn."""
        self.behind.pop(place, None)
        place.catch_up()
