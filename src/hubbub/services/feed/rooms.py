"""The rooms that are followed in this process, and how far each follower has come in each of them.

A room takes the entries of its log one after the other. They come from commits of this process, from announcements
of other processes, or from PostgreSQL. An `Entry` is an event and its `Position`: a seq and a hash of the entry.

    current --a seq after the next, an unknown change, or a head that is ahead--> behind: it reads the log
       ^                                                                             |
       +------------------------all entries up to the head were taken----------------+

    The log holds another entry than was taken: it was rewound. The room goes on from the new head.

A follower has a position in the room. It starts behind, or live when it starts at the newest entry:

                  nothing is missing
      behind ------------------------> live: receives each entry that the room takes
        ^ |                            | |
        | |                            | |
        +-|--------the inbox is full---+ |
          |                              |
          +------------------------------+--> ended, by the user's MemberLeft, by RoomGone, or with the follower

    The log was rewound: the position goes on from the new head, with a Resync.

A position that is behind reads the log by itself. It goes live in the same step of the event loop in which it
finds that nothing is missing, so no entry is skipped or repeated between the two.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Final
from uuid import UUID

import msgspec

from hubbub.background import ReportErrors
from hubbub.commits import Commits, MessagesSent, ReadMarkMoved, RoomTouched, ignore
from hubbub.errors import NotFound, Unavailable
from hubbub.events import (
    FeedEvent,
    MemberJoined,
    MemberLeft,
    Missed,
    PresenceChanged,
    ProfileChanged,
    ReadMarkChanged,
    Resync,
    RoomGone,
    Signal,
    room_channel,
)
from hubbub.instrumentation import Instrumentation
from hubbub.models import Message, ResyncReason
from hubbub.positions import ANY_ENTRY, Position
from hubbub.redis import CallbackSubscription, Gap, Received, Subscriptions
from hubbub.repositories.messages import PAGE_BYTES, Entry, LogCheck, Logs, LogSlice, entry_of
from hubbub.scheduling import OncePerTurn, Pace, next_in_turn
from hubbub.services.feed.announcements import Announcements
from hubbub.services.feed.memberships import Memberships

logger = logging.getLogger("hubbub.feed")

LOG_PAGE: Final = 500
"""Entries that a room reads at a time. It bounds the rows that are decoded in one step of the event loop."""
CONCURRENT_READS: Final = 6
"""Statements that read logs at a time. They leave most of the pool, 20 connections by default, to callers."""
ROUND_HEARTBEATS: Final = 10
"""Each room is compared with the database once in this many heartbeats, and at each heartbeat while announcements
cannot arrive. A thousand quiet rooms at each heartbeat cost 1 % of a core."""
MIN_PER_HEARTBEAT: Final = 100
"""At least this many rooms, users and sessions are compared per heartbeat."""
ROOMS_PER_STATEMENT: Final = 1_000
"""Rooms whose heads are compared in one statement. It bounds the rows that are decoded in one step."""
READS_PER_TURN: Final = 50
"""Rooms that begin to read their logs in one turn. A thousand at once would take 50 ms."""
EVENTS_PER_TURN: Final = 10_000
"""Events given to followers before other tasks run: 20 ms, at 2 ms per message to 1,000 followers."""
MAX_UNREAD: Final = 1024 * 1024
"""Characters of messages that wait for one follower. The rest is read from the log, as beyond the buffer."""
NO_USERS: Final[frozenset[UUID]] = frozenset()
REMEMBERED_HASHES: Final = 64
"""The newest entries whose hashes a room keeps, for its memory. Announcements of older ones are not compared."""


class FollowedRooms:
    """One `FollowedRoom`, with one subscription, for each room that is followed in this process."""

    def __init__(
        self,
        logs: Logs,
        memberships: Memberships,
        subscriptions: Subscriptions,
        announcements: Announcements,
        *,
        wake_comparing: Callable[[], None],
        on_rewind: Callable[[UUID], None],
    ) -> None:
        """`wake_comparing` is called when there are heads to compare now, `on_rewind` when a follower gets a
        `Resync` because the log of a room was rewound. Neither may wait."""
        self._logs = logs
        self._memberships = memberships
        self._subscriptions = subscriptions
        self._announcements = announcements
        self._wake_comparing = wake_comparing
        self.on_rewind = on_rewind
        self.on_mark: Callable[[ReadMarkMoved], None] = ignore
        """Called with each read mark that another process announced."""
        self.on_unfollowed: Callable[[UUID, int], None] = lambda _, __: None
        """Called with a room that is followed no longer, and the seq up to which its log was received."""
        self._rooms: dict[UUID, FollowedRoom] = {}  # the next to compare first
        self._concurrent_reads = asyncio.Semaphore(CONCURRENT_READS)
        self._waiting: dict[tuple[UUID, Position, int, int], asyncio.Task[LogSlice]] = {}  # reads without a slot
        self._reads: set[asyncio.Task[LogSlice]] = set()
        self._reading: dict[FollowedRoom, asyncio.Task[None]] = {}
        self._to_check: dict[FollowedRoom, None] = {}
        self._beginning_reads = Pace(READS_PER_TURN)
        self._delivered = 0  # in this turn of the loop, because of announcements
        self._next_turn = OncePerTurn(self._begin_turn)

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection on which announcements come."""
        return self._subscriptions.connected

    def get(self, room_id: UUID) -> FollowedRoom | None:
        return self._rooms.get(room_id)

    def open(self, room_id: UUID, newest: Position) -> FollowedRoom:
        """The room. One that was not followed so far begins at its newest entry.

        This does not wait for the subscription. The event loop calls `receive_announcement` with a Gap once it is
        live, and with each payload.
        """
        room = self._rooms.get(room_id)
        if room is None:
            room = FollowedRoom(room_id, newest, self, announced_seq=newest.seq)
            self._rooms[room_id] = room
            channel = room_channel(room_id)
            room.subscription = self._subscriptions.subscribe_soon_with(channel, room.receive_announcement)
        return room

    def leave(self, followed: FollowedPosition) -> None:
        """Remove a position. With the last one of a room its subscription ends."""
        room = followed.room
        room.remove(followed)
        if not room.positions:
            self._forget(room)

    def _forget(self, room: FollowedRoom) -> None:
        if self._rooms.get(room.id) is room:
            del self._rooms[room.id]
            self.on_unfollowed(room.id, room.received_seq)
            if room.subscription is not None:
                room.subscription.unsubscribe()
                room.subscription = None  # it refers to the room: a cycle, as garbage, waits for a full collection

    async def close(self) -> None:
        """Stop reading."""
        tasks = (*self._reading.values(), *self._reads)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Entries that were committed, here or in another process.

    def register(self, commits: Commits) -> None:
        """Deliver what this process commits from now on."""
        commits.on(MessagesSent, self._messages_sent)
        commits.on(RoomTouched, self._room_touched)

    def _messages_sent(self, change: MessagesSent) -> None:
        for message in change.messages:
            room = self._rooms.get(message.room_id)
            if room is not None:
                room.receive_entry(entry_of(message))

    def _room_touched(self, change: RoomTouched) -> None:
        room = self._rooms.get(change.room_id)
        if room is not None:
            room.read_log()

    def take_announcement(self, room: FollowedRoom, received: Received) -> None:
        """Take an announcement of another process about this room."""
        if isinstance(received, Gap):
            # The subscription is live, for the first time or again. Earlier announcements may have been missed.
            room.is_subscribed = True
            self.check_soon(room)
            for followed in room.positions:
                followed.inbox.miss()
            return
        announced = self._announcements.decode_room(received)
        if announced is None:
            return
        for message in announced.messages:
            if message.room_id == room.id:
                self._receive_message(room, message)
        for mark in announced.marks:
            if mark.room_id == room.id:
                self.on_mark(mark)
        if announced.must_be_read:
            room.read_log()

    def _receive_message(self, room: FollowedRoom, message: Message) -> None:
        """Many announcements may arrive in one step. Beyond `EVENTS_PER_TURN` the log is read, which pauses."""
        if message.seq > room.position.seq and self._delivered >= EVENTS_PER_TURN:
            room.read_up_to(message.seq)
            return
        if not self._delivered:
            self._next_turn.request()
        self._delivered += 1 + len(room.live)
        room.receive_entry(entry_of(message))

    def _begin_turn(self) -> None:
        self._delivered = 0

    # Reading what is missing.

    async def read(self, room_id: UUID, after: Position, limit: int, most_bytes: int = PAGE_BYTES) -> LogSlice:
        """Read the log of a room, in one statement for all callers that wait to read on from the same place.

        Raises: NotFound, Unavailable.
        """
        key = room_id, after, limit, most_bytes
        read = self._waiting.get(key)
        if read is None:
            read = self._waiting[key] = asyncio.create_task(self._read(*key), name="hubbub: read a part of a log")
            self._reads.add(read)
            read.add_done_callback(self._reads.discard)
        return await asyncio.shield(read)

    async def _read(self, room_id: UUID, after: Position, limit: int, most_bytes: int) -> LogSlice:
        async with self._concurrent_reads:
            # A caller that comes now may know of an entry that this statement does not see.
            del self._waiting[room_id, after, limit, most_bytes]
            return await self._logs.read(room_id, after, limit, most_bytes)

    async def head(self, room: FollowedRoom) -> Position:
        """The head of the log, once all followers of the room have a `Resync` if it was rewound.

        Raises: NotFound, Unavailable.
        """
        async with self._concurrent_reads:
            await self._compare([room])
            return await self._logs.head(room.id)

    def read_soon(self, room: FollowedRoom) -> None:
        """Have a task read the log of the room, unless one does."""
        if room not in self._reading and self._rooms.get(room.id) is room:
            self._reading[room] = asyncio.create_task(self._read_on(room), name="hubbub: read the log of a room")

    async def _read_on(self, room: FollowedRoom) -> None:
        """Read until nothing is missing. While PostgreSQL is unavailable, each heartbeat tries again."""
        with ReportErrors("reading the log of a room"):
            try:
                await self._beginning_reads.wait()
                while room.is_behind and room.positions:
                    await self._read_page(room)
            except NotFound:
                self._end_all(room)
            except Unavailable as error:
                logger.info("reading a log again at the next heartbeat, after: %s", error)
            finally:
                # In the same step as the last look at the room: a later announcement starts another task.
                self._reading.pop(room, None)

    async def _read_page(self, room: FollowedRoom) -> None:
        # At each await below, announcements may advance the position or raise `announced_seq`, and another task
        # may rewind the room. `_take_all` skips the entries up to the position. `rewinds` shows that the page is
        # of a former log.
        announced_seq, rewinds = room.announced_seq, room.rewinds
        room.must_read = False
        try:
            page = await self.read(room.id, room.position, LOG_PAGE)
            leaving = await self._leaving(room, page)
        except Unavailable:
            room.must_read = True
            raise
        if room.rewinds == rewinds and not page.is_rewound:
            room.set_leaving(leaving)
            await self._take_all(room, page.entries)
            room.set_leaving(NO_USERS)
        if room.rewinds != rewinds:
            room.must_read = True
        elif page.is_rewound:
            await self._rewind(room)
        else:
            room.skip_to(page.complete_up_to)
            # A seq beyond the head is of a former log, and is forgotten. One that was announced during the read
            # may be newer than the page, and is kept.
            is_new = room.announced_seq != announced_seq
            room.announced_seq = max(room.announced_seq, page.last_seq) if is_new else page.last_seq

    async def _leaving(self, room: FollowedRoom, page: LogSlice) -> Set[UUID]:
        """The users who left after an entry of the page that shows a later edit. Raises: Unavailable."""
        if not edited_in(page):
            return NO_USERS
        if page.complete_up_to < page.last_seq:
            return await self._memberships.left_after(room.id, room.position.seq)
        return {entry.event.user_id for entry in page.entries if isinstance(entry.event, MemberLeft)}

    async def _take_all(self, room: FollowedRoom, entries: Iterable[Entry]) -> None:
        """Take the new entries. Stops when the log turns out to be rewound in a pause."""
        rewinds = room.rewinds
        delivered = 0
        for entry in entries:
            if entry.position.seq > room.position.seq:
                delivered += len(room.live)
                room.take(entry)
            if delivered >= EVENTS_PER_TURN:
                delivered = 0
                await asyncio.sleep(0)
                if room.rewinds != rewinds:
                    return

    async def _rewind(self, room: FollowedRoom) -> None:
        """Go on from the head of another log. Raises: NotFound, Unavailable."""
        rewinds = room.rewinds
        head = await self._logs.head(room.id)
        if room.rewinds == rewinds:
            room.rewind(head)
            room.read_log()  # entries announced meanwhile looked old

    # Comparing heads, which finds what was not announced.

    def check_soon(self, room: FollowedRoom) -> None:
        """Have the background task compare the head of the room now."""
        self._to_check[room] = None
        self._wake_comparing()

    def schedule_some(self) -> None:
        """Have the next `compare` compare the heads of some of the rooms, in turn; without Redis, of all."""
        if self.is_connected:
            room_ids = next_in_turn(self._rooms, part_of_round(len(self._rooms)))
            self._to_check |= dict.fromkeys(self._rooms[room_id] for room_id in room_ids)
        else:
            self._to_check |= dict.fromkeys(self._rooms.values())

    async def compare(self) -> None:
        """Compare the heads to check with the entries that were taken here. Raises: Unavailable."""
        to_check, self._to_check = tuple(self._to_check), {}
        for start in range(0, len(to_check), ROOMS_PER_STATEMENT):
            try:
                await self._compare(to_check[start : start + ROOMS_PER_STATEMENT])
            except Unavailable:
                self._to_check = dict.fromkeys(to_check[start:]) | self._to_check
                raise

    async def _compare(self, rooms: Iterable[FollowedRoom]) -> None:
        asked = {
            room.id: (room, room.contradicted or room.position, room.rewinds) for room in rooms if room.positions
        }
        if not asked:
            return
        heads = await self._logs.check({room_id: position.seq for room_id, (_, position, _) in asked.items()})
        for head in heads:
            room, position, rewinds = asked.pop(head.room_id)
            if room.rewinds == rewinds:
                await self._compare_head(room, position, head)
        for room, _, _ in asked.values():
            self._end_all(room)

    async def _compare_head(self, room: FollowedRoom, asked: Position, head: LogCheck) -> None:
        """The log has to hold the entry that was taken here, also if more were taken meanwhile."""
        if not head.holds(asked):
            try:
                await self._rewind(room)
            except NotFound:
                self._end_all(room)
            return
        if room.contradicted is asked:
            room.contradicted = None
        if room.position is asked and head.position is not None:
            room.confirm(head.position)
        room.read_up_to(head.last_seq)
        if room.is_behind:
            self.read_soon(room)  # again, if PostgreSQL was unavailable

    def _end_all(self, room: FollowedRoom) -> None:
        """The room was deleted. In one step, so that no follower enters a new room with its id in between."""
        self._forget(room)
        for followed in tuple(room.positions):
            followed.end_without_entry()


def part_of_round(number: int, heartbeats: int = ROUND_HEARTBEATS) -> int:
    """The number of items per heartbeat, if all are compared once in `heartbeats`."""
    return min(number, max(MIN_PER_HEARTBEAT, -(-number // heartbeats)))


def edited_in(page: LogSlice) -> list[UUID]:
    """The messages on the page that were edited. Their content may be of an edit further on in the log."""
    messages = (getattr(entry.event, "message", None) for entry in page.entries)
    return [message.id for message in messages if message is not None and message.is_edited]


def _size(event: FeedEvent) -> int:
    """The size of a message, in characters. Metadata counts as in the bound of a page."""
    message = getattr(event, "message", None)
    if message is None:
        return 0
    return len(message.content) + (4 * len(msgspec.json.encode(message.metadata)) if message.metadata else 0)


class FollowedRoom(msgspec.Struct, eq=False):
    """The state of one followed room in this process, however many follow it.

    `position` is the newest entry that is known here. Entries are taken one after the other. One that is announced
    ahead of the next seq is not taken, but read from the log with those before it.
    """

    id: UUID
    position: Position
    rooms: FollowedRooms
    announced_seq: int
    """The highest seq that is known here, whether its entry was taken or not."""
    must_read: bool = False
    """Whether the log has to be read for a change that was announced without a seq."""
    contradicted: Position | None = None
    """A taken entry at whose seq another one was announced."""
    rewinds: int = 0
    """How often the log turned out to be rewound."""
    positions: dict[FollowedPosition, None] = msgspec.field(default_factory=dict)
    live: dict[FollowedPosition, None] = msgspec.field(default_factory=dict)
    """The positions that receive each entry as it is taken. The others read the log themselves."""
    left_users: frozenset[UUID] = NO_USERS
    """Users who have left the room as far as it is known here, and have a position in it that is behind."""
    leaving: Set[UUID] = NO_USERS
    """Users who leave further on in the entries that are being taken, which may show a message as edited since.
    The positions of these users read the log themselves, which leaves such content out."""
    subscription: CallbackSubscription | None = None
    is_subscribed: bool = False
    """Whether Redis has confirmed the subscription once. Announcements of before may be missing without a Gap."""
    _hashes: dict[int, bytes] = msgspec.field(default_factory=dict)

    @property
    def received_seq(self) -> int:
        """The highest seq that was received or announced here."""
        return max(self.position.seq, self.announced_seq)

    @property
    def is_behind(self) -> bool:
        return self.must_read or self.announced_seq > self.position.seq

    def receive_announcement(self, received: Received) -> None:
        """Pass it on. A `partial` per room would be two more objects for the garbage collector."""
        self.rooms.take_announcement(self, received)

    def receive_entry(self, entry: Entry) -> None:
        """An entry that was committed here or announced: take it if it is the next one.

        Otherwise read those before it, or compare it with the one that was taken.
        """
        seq = entry.position.seq
        if seq == self.position.seq + 1:
            self.take(entry)
        elif seq > self.position.seq:
            self.read_up_to(seq)
        else:
            self._compare_with_taken(entry.position)

    def _compare_with_taken(self, position: Position) -> None:
        """A late announcement is usually of an entry that was read before. If another entry was taken at its seq,
        the log may have been rewound and have grown past it since, which the head alone would not show."""
        taken = self._hashes.get(position.seq, position.entry_hash)
        if taken != position.entry_hash:
            self.contradicted = Position(position.seq, taken)
            self.rooms.check_soon(self)

    def contradicts(self, position: Position) -> bool:
        """Whether another entry was taken here as the newest one than was read at its seq."""
        is_known = self.position.entry_hash != ANY_ENTRY
        return is_known and position.seq == self.position.seq and not self.position.matches(position)

    def compare_newest(self) -> None:
        """Compare the newest entry with the log now: a follower has read another one at its seq."""
        self.contradicted = self.position
        self.rooms.check_soon(self)

    def confirm(self, position: Position) -> None:
        """Note the hash of the newest entry, as it was read. Announcements of its seq are compared with it."""
        if position.seq == self.position.seq and position.entry_hash != ANY_ENTRY:
            self.position = position
            self._hashes[position.seq] = position.entry_hash

    def read_up_to(self, seq: int) -> None:
        """The log has grown up to this seq."""
        if seq > self.position.seq:
            self.announced_seq = max(self.announced_seq, seq)
            self.rooms.read_soon(self)

    def read_log(self) -> None:
        """The log has grown to an unknown seq."""
        self.must_read = True
        self.rooms.read_soon(self)

    def set_leaving(self, leaving: Set[UUID]) -> None:
        """Have the positions of these users, and of no others, read the log themselves."""
        self.leaving = leaving
        for followed in [one for one in self.live if one.inbox.user_id in leaving] if leaving else ():
            followed.fall_behind()

    def take(self, entry: Entry) -> None:
        """Take the next entry: deliver it to the live positions."""
        self.position = position = entry.position
        seq = position.seq
        self._hashes[seq] = position.entry_hash
        self._hashes.pop(seq - REMEMBERED_HASHES, None)
        size = _size(entry.event)
        for followed in tuple(self.live):  # a copy: one whose inbox is full leaves
            if followed.position.seq < seq:
                followed.put(entry, size)
        if isinstance(entry.event, MemberLeft):
            self._end_positions_of(entry.event.user_id, seq)
        elif self.left_users and isinstance(entry.event, MemberJoined):
            self.left_users -= {entry.event.user_id}

    def skip_to(self, seq: int) -> None:
        """Go on after a seq up to which no entry is left that was not taken: the missing ones were purged."""
        if self.position.seq < seq:
            self.position = Position(seq, ANY_ENTRY)
            self._hashes.clear()

    def _end_positions_of(self, user_id: UUID, seq: int) -> None:
        """The user left. A position that is ahead of it stays: the user has joined again before it."""
        for followed in [one for one in self.positions if one.inbox.user_id == user_id]:
            if followed not in self.live:
                self.left_users |= {user_id}
            elif followed.position.seq == seq:
                followed.leave_room()

    def remove(self, followed: FollowedPosition) -> None:
        self.positions.pop(followed, None)
        user_id = followed.inbox.user_id
        if user_id in self.left_users and all(one.inbox.user_id != user_id for one in self.positions):
            self.left_users -= {user_id}

    def rewind(self, position: Position) -> None:
        """Go on from the head of another log, with a `Resync` for the live positions."""
        self.position = position
        self.announced_seq = position.seq
        self.contradicted = None
        self.rewinds += 1
        self._hashes.clear()
        self.left_users = NO_USERS
        for followed in tuple(self.live):
            followed.resync(position, "rewound")


class FollowedPosition(msgspec.Struct, eq=False):
    """How far one follower has come in one room."""

    inbox: Inbox
    room: FollowedRoom
    position: Position
    on_end: Callable[[FollowedPosition], None]
    start: Position
    is_away: bool = False
    """Whether the user has left the room at this position: no entry is for them until they join again."""
    joined_seq: int = 0
    """The seq of the user's newest joining, as the memberships were last read; 0 where it is not known."""
    is_gone: bool = False
    """Whether it ended with a `RoomGone`. A later room with this id starts fresh: its log may be another one."""
    times_absent: int = 0
    """How often in a row the user was not among the members while this was live."""

    def put(self, entry: Entry, size: int) -> None:
        """Put the next entry into the inbox. When that is full, fall behind: the entry is read later."""
        inbox = self.inbox
        if len(inbox.events) >= inbox.limit or inbox.size > MAX_UNREAD:
            inbox.instrumentation.fell_behind()
            self.fall_behind()
            return
        inbox.size += size
        self.position = entry.position
        inbox.put(entry.event)

    def resync(self, position: Position, reason: ResyncReason) -> None:
        """Go on from another position. The `Resync` comes however full the inbox is: it is one per rewind."""
        self.position = position
        self.is_away = False
        if reason == "rewound":
            self.room.rooms.on_rewind(self.room.id)
        self.inbox.instrumentation.resynced(reason)
        self.inbox.put(Resync(self.room.id, position.encode(self.room.id), reason))

    def skip_to(self, seq: int) -> None:
        """Go on after a seq up to which no entry is left that was not delivered: the missing ones were purged."""
        if self.position.seq < seq:
            self.position = Position(seq, ANY_ENTRY)

    def catch_up(self) -> None:
        """Go live when nothing is missing, else read the log."""
        if self.position.seq < self.room.position.seq or self.inbox.user_id in self.room.leaving:
            self.fall_behind()
        elif self.is_away:
            self.leave_room()
        elif self.room.contradicts(self.position):
            self.room.compare_newest()
            self.fall_behind()  # until it is known which of both is of a former log
        else:
            self.inbox.behind.pop(self, None)
            self.room.live[self] = None
            self.room.confirm(self.position)

    def leave_room(self) -> None:
        """End where the user has left the room, unless the user is known to have joined again further on."""
        if self.joined_seq > self.position.seq:
            self.joined_seq = 0  # read on for it once: the log may have been rewound
            self.read_to_next_joining()
        else:
            self.end()

    def read_to_next_joining(self) -> None:
        """Read on from where the user had left. The next entry for them is their joining."""
        self.is_away = True
        self.fall_behind()

    def fall_behind(self) -> None:
        self.times_absent = 0
        self.room.live.pop(self, None)
        self.inbox.behind[self] = None
        self.inbox.wake()

    def end(self) -> None:
        self.room.live.pop(self, None)
        self.inbox.behind.pop(self, None)
        self.on_end(self)

    def end_without_entry(self) -> None:
        """End with a `RoomGone`: the room is gone for this user, and the log has no entry for it."""
        self.is_gone = True
        self.inbox.put(RoomGone(self.room.id))
        self.end()


class Inbox(msgspec.Struct, eq=False):
    """The events that wait for one follower, at most `limit`, and its positions that have to read the log.

    Entries of followers of one room are the same objects.
    """

    user_id: UUID
    limit: int
    wants_typing: bool
    watched: Set[UUID] | None
    """The rooms of whose members the presence is wanted. None: all rooms."""
    wants_read_marks: bool
    wants_profiles: bool
    instrumentation: Instrumentation
    has_missed: bool = False
    is_closed: bool = False
    """Whether it takes no more events. Positions of a closed follower may end a moment later."""
    events: deque[FeedEvent] = msgspec.field(default_factory=deque)
    size: int = 0
    """The size of what rooms have put here since it was last empty."""
    behind: dict[FollowedPosition, None] = msgspec.field(default_factory=dict)
    positions: Mapping[UUID, FollowedPosition] = msgspec.field(default_factory=dict)
    """All positions of the follower, by room."""
    _reader: asyncio.Future[None] | None = None

    def put(self, event: FeedEvent) -> None:
        if not self.is_closed:
            self.events.append(event)
            self.wake()

    @property
    def can_miss(self) -> bool:
        return self.wants_read_marks or self.wants_profiles

    @property
    def wants_presence(self) -> bool:
        return self.watched is None or bool(self.watched)

    def wants(self, event: type[PresenceChanged | ProfileChanged], room_id: UUID) -> bool:
        """Whether it is wanted of the members of this room."""
        if event is ProfileChanged:
            return self.wants_profiles
        return self.watched is None or room_id in self.watched

    def offer(self, event: Signal) -> None:
        """Put an event that is not in a log, and is wanted, if there is space."""
        if len(self.events) < self.limit:
            self.put(event)
        elif isinstance(event, ReadMarkChanged | ProfileChanged):
            self.miss()

    def miss(self) -> None:
        """Read marks or profiles may have changed without an event. `Missed` comes after the events that wait."""
        if self.can_miss:
            self.has_missed = True
            self.wake()

    def put_missed(self) -> None:
        if self.has_missed:
            self.has_missed = False
            self.events.append(Missed())

    def wake(self) -> None:
        """Have the reader look again."""
        reader = self._reader
        if reader is not None and not reader.done():
            reader.set_result(None)

    async def wait(self) -> None:
        """Wait for `wake`."""
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None
