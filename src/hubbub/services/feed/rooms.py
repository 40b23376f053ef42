"""The followed rooms of a process: what rings is heard, what is missing is read, what was lost is found."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final
from uuid import UUID

from hubbub.errors import NotFound, Unavailable
from hubbub.positions import NOT_SEEN, Position
from hubbub.redis import Gap
from hubbub.repositories.messages import Entry, Head, Logs, Reading, entry_of
from hubbub.services.feed.doorbell import Doorbell, room_channel
from hubbub.services.feed.followed_room import FollowedRoom

if TYPE_CHECKING:
    from hubbub.models import Message
    from hubbub.redis import CallbackSubscription, Received, Subscriptions
    from hubbub.services.feed.place import Place

logger = logging.getLogger("hubbub.feed")

# Entries read at a time when a room is behind.
PAGE: Final = 500
# Statements that read logs for the feed at a time: the pool has other callers as well.
READERS: Final = 6
# Rooms whose heads are compared in one statement.
TOGETHER: Final = 1_000
# Events given to followers before the rest of the process has its turn: some milliseconds.
A_TURN: Final = 10_000


class FollowedRooms:
    """One `FollowedRoom` and one subscription for each room that somebody here follows."""

    def __init__(
        self,
        logs: Logs,
        subscriptions: Subscriptions,
        doorbell: Doorbell,
        *,
        has_work: Callable[[], None],
        was_rewound: Callable[[UUID], None],
    ) -> None:
        """`has_work` is called when there are rooms to compare now, `was_rewound` when a follower is
        told that the log of a room was. Neither may wait."""
        self._logs = logs
        self._subscriptions = subscriptions
        self._doorbell = doorbell
        self._has_work = has_work
        self._was_rewound = was_rewound
        self._rooms: dict[UUID, FollowedRoom] = {}
        self._bells: dict[UUID, CallbackSubscription] = {}
        self._readers = asyncio.Semaphore(READERS)
        self._reading: dict[FollowedRoom, asyncio.Task[None]] = {}
        self._doubtful: dict[FollowedRoom, None] = {}
        self._given = 0  # in this turn of the loop, because of what rang

    def __len__(self) -> int:
        return len(self._rooms)

    def get(self, room_id: UUID) -> FollowedRoom | None:
        return self._rooms.get(room_id)

    def open(self, room_id: UUID, last_seq: int) -> FollowedRoom:
        """The room; one that nobody has followed so far begins at `last_seq`."""
        room = self._rooms.get(room_id)
        if room is None:
            room = self._rooms[room_id] = FollowedRoom(
                room_id,
                Position(last_seq, NOT_SEEN),
                read_soon=self._read_soon,
                compare_soon=self._compare_soon,
                was_rewound=self._was_rewound,
            )
            hear = partial(self._hear, room)
            self._bells[room_id] = self._subscriptions.subscribe_soon_with(room_channel(room_id), hear)
        return room

    def leave(self, place: Place) -> None:
        """One fewer follows a room. With the last one the process stops listening to it."""
        room = place.room
        room.leave(place)
        if not room.places and self._rooms.get(room.id) is room:
            del self._rooms[room.id]
            self._bells.pop(room.id).unsubscribe()

    async def close(self) -> None:
        """Stop reading."""
        tasks = tuple(self._reading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _hear(self, room: FollowedRoom, heard: Received) -> None:
        if isinstance(heard, Gap):
            self._compare_soon(room)
            return
        messages = self._doorbell.messages_in(heard)
        if messages is None:
            return
        for message in messages:
            if message.room_id == room.id:
                self._hear_of(room, message)
        if not messages:
            room.ask()

    def _hear_of(self, room: FollowedRoom, message: Message) -> None:
        """Many rings may arrive in one step. What is too much for it is read from the log, which makes pauses."""
        if message.seq > room.position.seq and self._given >= A_TURN:
            room.heard_of(message.seq)
            return
        if not self._given:
            asyncio.get_running_loop().call_soon(self._begin_a_turn)
        self._given += 1 + len(room.live)
        room.hear(entry_of(message))

    def _begin_a_turn(self) -> None:
        self._given = 0

    # Reading what is missing.

    async def read(self, room_id: UUID, after: Position, limit: int) -> Reading:
        """Read the log of a room. Raises `NotFound`, `Unavailable`."""
        async with self._readers:
            return await self._logs.read(room_id, after, limit)

    async def head(self, room: FollowedRoom) -> Position:
        """The head of the log, once all who follow the room know whether it was rewound. Raises as `read`."""
        async with self._readers:
            await self._compare([room])
            return await self._logs.head(room.id)

    def _read_soon(self, room: FollowedRoom) -> None:
        if room not in self._reading and self._rooms.get(room.id) is room:
            task = asyncio.create_task(self._read_on(room), name="hubbub: read the log of a room")
            self._reading[room] = task
            task.add_done_callback(_complain)

    async def _read_on(self, room: FollowedRoom) -> None:
        """Read until nothing is missing. When PostgreSQL is away, the next heartbeat tries again."""
        try:
            while room.is_behind and room.places:
                await self._read_page(room)
        except NotFound:
            self._is_gone(room)
        except Unavailable as error:
            logger.info("reading a log again at the next heartbeat, after: %s", error)
        finally:
            # In the same step as the last look at the room: what rings from now on starts to read anew.
            self._reading.pop(room, None)

    async def _read_page(self, room: FollowedRoom) -> None:
        rung, rewindings = room.rung, room.rewindings
        room.asked = False
        try:
            reading = await self.read(room.id, room.position, PAGE)
        except Unavailable:
            room.asked = True
            raise
        if room.rewindings != rewindings:
            room.asked = True
            return
        if reading.is_rewound:
            await self._rewind(room)
            return
        await self._take_all(room, reading.entries)
        if room.rewindings != rewindings:
            room.asked = True
            return
        room.skip_to(reading.end)
        if rung > reading.head and room.rung == rung:
            room.rung = room.position.seq  # who rang did not know this log: what is committed was read

    async def _take_all(self, room: FollowedRoom, entries: Iterable[Entry]) -> None:
        """All of them that are news, unless the log turns out to be another one meanwhile."""
        rewindings = room.rewindings
        given = 0
        for entry in entries:
            if entry.position.seq > room.position.seq:
                given += len(room.live)
                room.take(entry)
            if given >= A_TURN:
                given = 0
                await asyncio.sleep(0)
                if room.rewindings != rewindings:
                    return

    async def _rewind(self, room: FollowedRoom) -> None:
        """Go on from the head of another log. Raises `NotFound`, `Unavailable`."""
        rewindings = room.rewindings
        head = await self._logs.head(room.id)
        if room.rewindings == rewindings:
            room.rewind(head)
            room.ask()  # what was heard of meanwhile looked old

    def _is_gone(self, room: FollowedRoom) -> None:
        for place in tuple(room.places):
            place.follower.lose(place)

    # Finding what nobody rang for.

    def _compare_soon(self, room: FollowedRoom) -> None:
        self._doubtful[room] = None
        self._has_work()

    def doubt_all(self) -> None:
        """Compare all rooms, in the next `compare`."""
        self._doubtful = dict.fromkeys(self._rooms.values())

    async def compare(self) -> None:
        """Compare the heads of the rooms in doubt with what is known of them here. Raises `Unavailable`."""
        doubtful, self._doubtful = tuple(self._doubtful), {}
        for start in range(0, len(doubtful), TOGETHER):
            await self._compare(doubtful[start : start + TOGETHER])

    async def _compare(self, rooms: Iterable[FollowedRoom]) -> None:
        asked = {room.id: (room, room.suspect or room.position, room.rewindings) for room in rooms if room.places}
        if not asked:
            return
        heads = await self._logs.heads({room_id: position.seq for room_id, (_, position, _) in asked.items()})
        for head in heads:
            room, position, rewindings = asked.pop(head.room_id)
            if room.rewindings == rewindings:
                await self._judge(room, position, head)
        for room, _, _ in asked.values():
            self._is_gone(room)

    async def _judge(self, room: FollowedRoom, asked: Position, head: Head) -> None:
        """What was known here has to stand in the log, also if more is known meanwhile."""
        if room.suspect is asked:
            room.suspect = None
        if not head.holds(asked):
            try:
                await self._rewind(room)
            except NotFound:
                self._is_gone(room)
            return
        if room.position is asked and head.position is not None:
            room.know(head.position)
        room.heard_of(head.last_seq)
        if room.is_behind:
            self._read_soon(room)  # again, if PostgreSQL was away


def _complain(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error  # a mistake of ours: the event loop reports it
