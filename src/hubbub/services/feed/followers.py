"""The followers of this process: which rooms they follow, and the iteration that delivers their events.

    new --async with--> entered: a position in each room --the block ends, or the hub is closed--> closed

A follower gets a position in each room that its user joins meanwhile, and loses it when the user leaves.
`rooms.py` shows how a position moves between behind and live.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Self
from uuid import UUID

from msgspec.structs import replace

from hubbub import inputs
from hubbub.background import BackgroundTask, jittered
from hubbub.commits import Commits, MembersJoined, UserDeleted
from hubbub.errors import NotAMember, NotFound, Unavailable
from hubbub.events import (
    FeedEvent,
    LoggedEvent,
    MemberJoined,
    MemberLeft,
    MessageEdited,
    MessageSent,
    Resync,
    RoomGone,
)
from hubbub.forks import abandon_in_child, forked
from hubbub.instrumentation import SILENT
from hubbub.models import ResyncReason
from hubbub.positions import ANY_ENTRY, Position
from hubbub.postgres import Executor
from hubbub.redis import Gap, Received
from hubbub.repositories.messages import Entry, Logs, LogSlice
from hubbub.scheduling import Pace, TimeSlice, next_in_turn, take
from hubbub.services.feed.announcements import Announcements, UserAnnouncement
from hubbub.services.feed.ephemeral import EphemeralEvents, discard
from hubbub.services.feed.memberships import MemberRoom, Memberships
from hubbub.services.feed.rooms import FollowedPosition, FollowedRooms, Inbox, edited_in, part_of_round

logger = logging.getLogger("hubbub.feed")

FOLLOWER_LOG_PAGE: Final = 200
"""Entries that a follower reads at a time, for itself alone: fewer than a room reads for all of its followers."""
LOG_BYTES: Final = 256 * 1024
"""After this much content it reads no further entry. It bounds the memory of a client that is back and does not
read: 200 of the longest messages are 16 MB."""
READ_RETRY_SECONDS: Final = 0.5
"""The longest pause before a follower reads again while PostgreSQL is unavailable. The shortest is a fifth of it,
as many followers wait at once."""
REMEMBERED_ENDS: Final = 1_000
"""The rooms of which a follower remembers where its user left. It bounds the memory of a long-lived follower."""
ABSENT_LOOKUPS: Final = 2
"""Lookups without a membership that a live position outlasts. The first answer may be older than the position.
After the second the log is read, which has the leaving. If it does not, the third lookup ends the position."""
MAX_SKIPPED_ENTRIES: Final = 1_000
"""Entries of a log. It bounds how much is read and not delivered. After a longer absence the room begins with the
newest joining, without visits in between that this process did not notice."""
CONFIRM_SECONDS: Final = 1.0
"""How long a follower that enters waits for Redis to confirm the subscriptions of its rooms: a few round trips.
Its reader reads marks and profiles after that. If it took longer, a `Missed` has them read again."""
USER_ROUND_HEARTBEATS: Final = 30
"""The digests of users and the sessions of followers are looked up once in this many heartbeats."""
SESSIONS_PER_WRITE: Final = 1_000
"""Sessions that are looked up in Redis in one write."""
HEADS_PER_STATEMENT: Final = 1_000
"""Rooms whose heads a follower that enters reads in one statement."""
DIGESTS_PER_STATEMENT: Final = 1_000
"""Users whose rooms are compared by digest in one statement. It bounds the work of a heartbeat."""
CHANGED_USERS_PER_STATEMENT: Final = 100
"""Users whose rooms are read again in one statement. After it the heads of rooms have their turn, so that a mass
join does not hold them up."""
POSITIONS_PER_STATEMENT: Final = 2_000
"""The positions that these users may have together, if they are several. It bounds the rows of a statement."""
ENTERING_PER_TURN: Final = 50
"""Followers that begin to enter in one turn of the event loop. Two thousand at once would hold it for 80 ms."""


@dataclass(slots=True, weakref_slot=True, eq=False, repr=False)
class Follower:
    """Iterate over it for the events in the rooms of a user. `async with` begins and ends it.

    It delivers every entry of the log of each room from the starting point on, in order, each once. One reader at
    a time. The iteration ends when the block or the session ends, or the hub is closed. A limited number of events
    wait unread. Later ones are read from PostgreSQL once there is space: a slow reader misses nothing and costs no
    memory.
    """

    _followers: Followers
    inbox: Inbox
    after: Mapping[UUID, Position]
    rooms: Collection[UUID] | None
    session: str | None = None
    """The key of the session that it ends with."""
    is_complete: bool = False
    """Whether `after` has all rooms of the client."""
    positions: dict[UUID, FollowedPosition] = field(default_factory=dict)
    digest: int | None = None
    """The digest of the user's rooms while there is a position in each that is wanted; else None."""
    ended: int = 0
    """How many positions have ended."""
    ended_at: dict[UUID, Position] = field(default_factory=dict)
    """Where the user left, by room."""
    has_entered: bool = False
    """Whether it has its starting positions. Until then it gets no others."""
    missed_update: bool = False
    """Whether the user's rooms changed before that."""
    is_closed: bool = False
    was_disconnected: bool = False
    """Whether `Hub.disconnect` or the deletion of the user has ended it."""
    is_abandoned: bool = False
    """Whether it is that of the parent process."""
    _has_reader: bool = False
    _reading: asyncio.Timeout | None = None
    _events: deque[FeedEvent] = field(init=False)
    _cursors: dict[UUID, str] = field(default_factory=dict)
    """The cursors of rooms of which an event was read, or whose end is still to be read."""

    def __post_init__(self) -> None:
        self._events = self.inbox.events
        self.inbox.positions = self.positions

    @property
    def user_id(self) -> UUID:
        return self.inbox.user_id

    @property
    def cursors(self) -> dict[UUID, str]:
        """The cursor of each room, for `after` of the next `Hub.follow`: that of the newest event that was read.

        Until there is one it is where the feed started. A room that is joined later is in it from its first event
        on, and a room that ends until that event. After the `async with` block it stays as it was.
        """
        started = {
            room_id: one.start for room_id, one in self.positions.items() if one.start.entry_hash != ANY_ENTRY
        }
        return {room_id: at.encode(room_id) for room_id, at in started.items()} | self._cursors

    async def __aenter__(self) -> Self:
        if self.has_entered or self.is_closed:
            raise RuntimeError("a follower can be entered once")
        try:
            await self._followers.enter(self)
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def _end(self) -> None:
        """As `close`, and wait until no room has a position of it."""
        time_slice = TimeSlice()
        try:
            for room_id in tuple(self.positions):
                if followed := self.positions.get(room_id):
                    followed.end()
                    await time_slice.pause_if_due()
        finally:
            self.close()

    def close(self) -> None:
        """End at once. Idempotent."""
        if self.is_closed:
            return
        self.is_closed = self.inbox.is_closed = True
        self._events.clear()
        self._followers.leave(self)
        self.inbox.wake()
        if self._reading is not None:
            self._reading.reschedule(0)  # in the past: PostgreSQL may be frozen, and no reader needs its answer
        self._end_positions(iter(tuple(self.positions.values())))

    def _end_positions(self, rest: Iterator[FollowedPosition]) -> None:
        """End some, and the rest in the next turns of the loop: 5,000 at once would hold it for 100 ms."""
        time_slice = TimeSlice()
        for followed in rest:
            followed.end()
            if time_slice.is_due:
                asyncio.get_running_loop().call_soon(self._end_positions, rest)
                return

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> FeedEvent:
        if not self._events:
            await self._fill()
        return self._take_event()

    def waiting(self, most: int) -> list[FeedEvent]:
        """Up to `most` buffered events. It does not wait, and may return none."""
        return [self._take_event() for _ in range(min(most, len(self._events)))]

    def watch(self, room_ids: Iterable[UUID]) -> None:
        """From now on the presence of the members of these rooms, and of no others, is wanted.

        Outside of the `async with` block it does nothing.

        Raises: Invalid (not ids).
        """
        watched = frozenset(inputs.uuids("room_ids", room_ids))
        if self.has_entered and not self.is_closed:
            self._followers.ephemeral.watch(self.inbox, watched)

    async def _end_with(self, session: str | None) -> None:
        """From now on end with the session of this key instead of the one before, or with none."""
        self.session = session
        await self._followers.sessions.change(self)

    def _take_event(self) -> FeedEvent:
        """Remove the oldest event from the inbox, and keep its cursor."""
        if (instrumentation := self.inbox.instrumentation) is not SILENT:
            instrumentation.delivered()
        event = self._events.popleft()
        if event.__class__ is MessageSent:  # nearly every event
            self._cursors[event.room_id] = event.cursor
        elif isinstance(event, RoomGone) or (isinstance(event, MemberLeft) and event.user_id == self.user_id):
            self._cursors.pop(event.room_id, None)
        elif isinstance(event, LoggedEvent | Resync):
            self._cursors[event.room_id] = event.cursor
        return event

    async def _fill(self) -> None:
        """Wait for an event. A position that is behind reads its log.

        It returns in the same step in which there is an event.
        """
        if self._has_reader:
            raise RuntimeError("a follower can only have one reader at a time")
        self._has_reader = True
        try:
            while not self._events:
                self.inbox.size = 0
                if self.is_abandoned:
                    raise forked()
                if self.is_closed:
                    raise StopAsyncIteration
                if not self.has_entered:
                    raise RuntimeError("enter a follower by `async with` before you iterate over it")
                self.inbox.put_missed()
                if self._events:
                    break
                if self.inbox.behind:
                    await self._read_on(next(iter(self.inbox.behind)))
                else:
                    await self.inbox.wait()
        finally:
            self._has_reader = False

    async def _read_on(self, followed: FollowedPosition) -> None:
        """Read the next page for a position that is behind, unless the follower is closed meanwhile."""
        try:
            async with asyncio.timeout(None) as self._reading:
                await self._try_to_read(followed)
        except TimeoutError:
            pass  # closed
        finally:
            self._reading = None

    async def _try_to_read(self, followed: FollowedPosition) -> None:
        """Nothing is lost while PostgreSQL is unavailable: the position stays where it is."""
        try:
            await self._read_page(followed)
        except NotFound:
            if followed in self.inbox.behind:
                followed.end_without_entry()
        except Unavailable as error:
            if not error.retryable:
                raise
            logger.info("reading the log again after: %s", error)
            await asyncio.sleep(jittered(READ_RETRY_SECONDS, at_least=0.2))

    async def _read_page(self, followed: FollowedPosition) -> None:
        rooms, inbox, asked = self._followers.rooms, self.inbox, followed.position
        if followed.room.contradicts(asked):
            await rooms.head(followed.room)  # which compares the room: one of both is of a former log
        page = await rooms.read(followed.room.id, asked, min(FOLLOWER_LOG_PAGE, inbox.limit), LOG_BYTES)
        head = await rooms.head(followed.room) if page.is_rewound else None
        withheld = await self._withheld(followed.room.id, asked.seq, page)
        if followed not in inbox.behind or followed.position is not asked:
            return  # it was moved meanwhile: this page is not the next one
        if head is not None:
            followed.resync(head, "rewound")
        space = max(inbox.limit - len(inbox.events), 0)  # other rooms have put events there meanwhile
        for entry in page.entries[:space]:
            self._take(followed, _without_content(entry, withheld) if withheld else entry)
        if len(page.entries) <= space:
            followed.skip_to(page.complete_up_to)
        inbox.behind.pop(followed, None)  # to the end of the queue, so that each room that is behind has its turn
        followed.catch_up()

    async def _withheld(self, room_id: UUID, seq: int, page: LogSlice) -> Set[UUID]:
        """The messages on the page whose content is of an edit from after the user left. Raises: Unavailable."""
        edited, is_last = edited_in(page), page.complete_up_to == page.last_seq
        if not edited or (is_last and not any(self._is_own_leave(entry.event) for entry in page.entries)):
            return frozenset()
        return await self._followers.memberships.edited_after_leaving(room_id, self.user_id, seq, edited)

    def _is_own_leave(self, event: FeedEvent) -> bool:
        return isinstance(event, MemberLeft) and event.user_id == self.inbox.user_id

    def _take(self, followed: FollowedPosition, entry: Entry) -> None:
        event = entry.event
        followed.position = entry.position
        if followed.is_away and isinstance(event, MemberJoined) and event.user_id == self.user_id:
            followed.is_away = False
        if followed.is_away:
            return
        self.inbox.put(event)
        if self._is_own_leave(event):
            followed.is_away = True

    def _put_room_gone(self, room_id: UUID) -> None:
        """The user is not in a room of which the client has a cursor."""
        self._cursors[room_id] = self.after[room_id].encode(room_id)
        self.inbox.put(RoomGone(room_id))

    def _position_ended(self, followed: FollowedPosition) -> None:
        """Forget a position that has ended."""
        if self.positions.pop(followed.room.id, None) is not None:
            if followed.start.entry_hash != ANY_ENTRY:
                self._cursors.setdefault(followed.room.id, followed.start.encode(followed.room.id))
            self.digest = None
            self.ended += 1
            if not followed.is_gone:
                self.ended_at[followed.room.id] = followed.position
            if len(self.ended_at) > REMEMBERED_ENDS:
                del self.ended_at[next(iter(self.ended_at))]
            self._followers.ephemeral.unfollow(followed)
            self._followers.rooms.leave(followed)


def _without_content(entry: Entry, withheld: Set[UUID]) -> Entry:
    """The entry, with a tombstone in place of a message that is withheld."""
    event = entry.event
    if not isinstance(event, MessageSent | MessageEdited) or event.message.id not in withheld:
        return entry
    message = event.message
    tombstone = replace(message, content="", metadata=None, deleted_at=message.updated_at)
    return Entry(entry.position, replace(event, message=tombstone))


class SessionChecks:
    """Ends the followers whose sessions have ended.

    A revocation is announced by the script that makes it. At each heartbeat some of the sessions are looked up as
    well, and all of them after the subscription was interrupted. While Redis is unavailable followers go on.
    """

    def __init__(
        self, ended: Callable[[Sequence[str]], Awaitable[Mapping[str, bool]]], *, heartbeat_seconds: float
    ) -> None:
        """`ended` returns whether each session has ended, without those that it cannot look up at present."""
        self._ended = ended
        self._heartbeat_seconds = heartbeat_seconds
        self._followers: dict[Follower, None] = {}  # those with a session, the next in turn first
        self._due: dict[Follower, None] = {}
        self._next_round = 0.0
        self.task = BackgroundTask("checking sessions of followers", self._check)

    async def enter(self, follower: Follower) -> None:
        """End the follower when its session ends, also if it has ended already."""
        self._followers[follower] = None
        await self._end_ended([follower])

    async def change(self, follower: Follower) -> None:
        """The follower has another session, or none."""
        self.leave(follower)
        if follower.session is not None and not follower.is_closed:
            await self.enter(follower)

    def leave(self, follower: Follower) -> None:
        self._followers.pop(follower, None)
        self._due.pop(follower, None)

    def check_soon(self, followers: Iterable[Follower] | None = None) -> None:
        """Look up the sessions of these followers now; of all followers without an argument."""
        due = self._followers if followers is None else [one for one in followers if one in self._followers]
        self._due |= dict.fromkeys(due)
        if due:
            self.task.wake()

    async def _check(self) -> float:
        """Look up the sessions that are due. At each heartbeat some of the others are."""
        clock = asyncio.get_running_loop().time
        if clock() >= self._next_round:
            self._next_round = clock() + self._heartbeat_seconds
            part = min(SESSIONS_PER_WRITE, part_of_round(len(self._followers), USER_ROUND_HEARTBEATS))
            self._due |= dict.fromkeys(next_in_turn(self._followers, part))
        due, self._due = list(self._due), {}
        for start in range(0, len(due), SESSIONS_PER_WRITE):
            await self._end_ended(due[start : start + SESSIONS_PER_WRITE])
        return max(self._next_round - clock(), 0)

    async def _end_ended(self, followers: Iterable[Follower]) -> None:
        sessions = {follower: follower.session for follower in followers if follower.session is not None}
        try:
            ended = await self._ended(list(sessions.values()))
        except Unavailable as error:
            logger.info("checking sessions of followers at the next heartbeat, after: %s", error)
            ended = {}
        for follower, session in sessions.items():
            if session not in ended:
                self._check_later(follower)
            elif ended[session] and session == follower.session:
                follower.close()

    def _check_later(self, follower: Follower) -> None:
        """Look up its session in the next round, because it is not known whether it has ended."""
        if follower in self._followers:
            self._due[follower] = None


class Followers:
    """Gives each follower a position in each of the rooms of its user, also in those that the user joins later.

    A join is announced, as is the deletion of a user. A lost announcement is found by a digest of each user's
    rooms: some users at each heartbeat, and all users after the subscription was interrupted.
    """

    def __init__(
        self,
        executor: Executor,
        rooms: FollowedRooms,
        ephemeral: EphemeralEvents,
        sessions: SessionChecks,
        *,
        logs: Logs,
        memberships: Memberships,
        announcements: Announcements,
        wake_comparing: Callable[[], None],
        on_announced: Callable[[UserAnnouncement], None],
        at_most_behind: int,
    ) -> None:
        """`wake_comparing` is called when there are users whose rooms are to be read now, `on_announced` with each
        announcement of another process. Neither may wait."""
        self._executor = executor
        self._logs = logs
        self.memberships = memberships
        self.rooms = rooms
        self.ephemeral = ephemeral
        self.sessions = sessions
        self._announcements = announcements
        self._wake_comparing = wake_comparing
        self._on_announced = on_announced
        self._at_most_behind = at_most_behind
        self._users: dict[UUID, dict[Follower, None]] = {}  # the next to compare first
        self._entering = Pace(ENTERING_PER_TURN)
        self._changed: dict[UUID, None] = {}  # users whose rooms have to be read again
        self._to_compare: dict[UUID, None] = {}  # users whose digests are compared next
        self._is_closed = False
        self._is_subscribed = False
        """Whether the subscription to announcements of memberships was confirmed once."""
        abandon_in_child(self.abandon)

    def abandon(self) -> None:
        """In a child process no follower gets an event."""
        for follower in [one for followers in self._users.values() for one in followers]:
            follower.is_abandoned = True
            follower.inbox.events.clear()

    async def close(self) -> None:
        """Close all followers. None is entered from now on."""
        self._is_closed = True
        for follower in [one for followers in self._users.values() for one in followers]:
            await follower._end()

    async def enter(self, follower: Follower) -> None:
        """Put the follower at its starting positions. Raises: NotAMember, Unavailable."""
        if self._is_closed:
            raise Unavailable("hub", "it is closed", retryable=False)
        deadline = self._executor.deadline()
        self._users.setdefault(follower.user_id, {})[follower] = None
        await self._entering.wait()
        if not self._is_open(follower):
            return
        if follower.session is not None:
            await self.sessions.enter(follower)
        member_of = (await self.memberships.rooms_of([follower.user_id], deadline=deadline))[follower.user_id]
        wanted = _wanted(follower, member_of)
        for room_id in follower.rooms or ():
            if room_id not in wanted:
                raise NotAMember(room_id, follower.user_id)
        await self._begin(follower, wanted, deadline)
        if not self._is_open(follower):
            return
        digest = member_of[0].digest if member_of else 0
        follower.digest = digest if follower.positions.keys() == wanted.keys() else None
        follower.has_entered = True
        self.ephemeral.enter(follower.inbox)
        if follower.missed_update:
            self.read_rooms_of([follower.user_id])
        if follower.inbox.can_miss and self.rooms.is_connected:
            await self._confirmed(follower)

    async def _begin(self, follower: Follower, wanted: Mapping[UUID, MemberRoom], deadline: float) -> None:
        """Open a position in each room, unless the follower is closed meanwhile."""
        time_slice = TimeSlice()
        without_cursor = [room for room_id, room in wanted.items() if room_id not in follower.after]
        heads = await self._heads(without_cursor, deadline)
        await time_slice.pause_if_due()
        resyncs = await self._resyncs(follower, wanted, deadline)
        await time_slice.pause_if_due()
        left = await self._left_at_cursor(follower, wanted, deadline)
        await time_slice.pause_if_due()
        joined = await self._joined_while_away(follower, wanted, deadline)
        if not self._is_open(follower):
            return
        for room_id in follower.after.keys() - wanted.keys():  # the user has left it meanwhile, or it was deleted
            follower._put_room_gone(room_id)
            await time_slice.pause_if_due()
            if not self._is_open(follower):
                return
        on_end = follower._position_ended  # bound once: a method per position would lengthen garbage collections
        for room_id, room in wanted.items():
            newest = heads.get(room_id) or Position(room.last_seq, ANY_ENTRY)
            start = Position(room.joined_seq - 1, ANY_ENTRY) if room_id in joined else newest
            followed = self._open(follower, room, follower.after.get(room_id, start), on_end, newest)
            if room_id in resyncs:
                followed.resync(*resyncs[room_id])
            elif room_id in joined and newest.seq - start.seq > self._at_most_behind:
                followed.resync(newest, "too_far_behind")
            if room_id in left and room_id not in resyncs:
                followed.read_to_next_joining()
            else:
                followed.catch_up()
            await time_slice.pause_if_due()
            if not self._is_open(follower):
                return

    async def _confirmed(self, follower: Follower) -> None:
        """Wait until announcements come in all rooms, so that the reader misses no mark or profile from now on."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CONFIRM_SECONDS):
                while not follower.is_closed and not (
                    self._is_subscribed and all(one.room.is_subscribed for one in follower.positions.values())
                ):
                    await follower.inbox.wait()
        follower.inbox.has_missed = False

    @property
    def number(self) -> int:
        """How many followers there are."""
        return sum(map(len, self._users.values()))

    def _is_open(self, follower: Follower) -> bool:
        """Whether it is not closed."""
        return follower in self._users.get(follower.user_id, ())

    async def _left_at_cursor(
        self, follower: Follower, wanted: Mapping[UUID, MemberRoom], deadline: float
    ) -> set[UUID]:
        """The rooms that the user had left at the cursor, and has joined again since."""
        before = {
            room_id: at.seq
            for room_id, at in follower.after.items()
            if room_id in wanted and 0 < at.seq < wanted[room_id].joined_seq
        }
        return await self.memberships.left_at(follower.user_id, before, deadline=deadline) if before else set()

    async def _joined_while_away(
        self, follower: Follower, wanted: Mapping[UUID, MemberRoom], deadline: float
    ) -> set[UUID]:
        """The rooms without a cursor that the user joined after the newest entry that the client has.

        A client that was connected then would have the cursor of its joining.
        """
        seen = {room_id: at.seq for room_id, at in follower.after.items() if at.seq > 0}
        if not (seen or follower.is_complete):
            return set()
        after = follower.after
        unknown = [room_id for room_id, room in wanted.items() if room_id not in after and room.joined_seq]
        if follower.is_complete or not unknown:
            return set(unknown)
        return await self.memberships.joined_after(follower.user_id, unknown, seen, deadline=deadline)

    async def _heads(self, rooms: Sequence[MemberRoom], deadline: float) -> dict[UUID, Position]:
        """The positions at the ends of the logs, as these were when the memberships were read.

        A user who has been removed since receives the leaving. From a later end the follower would go on.
        """
        heads: dict[UUID, Position] = {}
        for start in range(0, len(rooms), HEADS_PER_STATEMENT):
            some = {room.room_id: room.last_seq for room in rooms[start : start + HEADS_PER_STATEMENT]}
            for head in await self._logs.check(some, deadline=deadline):
                if head.position is not None:
                    heads[head.room_id] = head.position
        return heads

    async def cursors_of(self, user_id: UUID) -> dict[UUID, str]:
        """The cursor at the end of the log of each room of the user. Raises: Unavailable."""
        deadline = self._executor.deadline()
        rooms = (await self.memberships.rooms_of([user_id], deadline=deadline))[user_id]
        heads = await self._heads(rooms, deadline)
        return {room_id: head.encode(room_id) for room_id, head in heads.items() if head.entry_hash != ANY_ENTRY}

    async def _resyncs(
        self, follower: Follower, wanted: Mapping[UUID, MemberRoom], deadline: float
    ) -> dict[UUID, tuple[Position, ResyncReason]]:
        """The heads of the rooms that cannot be read on from the client's cursors, with the reasons."""
        after = follower.after
        seen = [(room_id, at.seq) for room_id, at in after.items() if at.seq > 0 and room_id in wanted]
        reasons: dict[UUID, ResyncReason] = {}
        for start in range(0, len(seen), HEADS_PER_STATEMENT):
            some = dict(seen[start : start + HEADS_PER_STATEMENT])
            for found in await self._logs.check(some, deadline=deadline):
                if not found.holds(after[found.room_id]):
                    reasons[found.room_id] = "rewound"
                elif after[found.room_id].seq < found.last_seq - self._at_most_behind:
                    reasons[found.room_id] = "too_far_behind"
        heads = await self._heads([wanted[room_id] for room_id in reasons], deadline)
        return {room_id: (head, reasons[room_id]) for room_id, head in heads.items()}

    def _open(
        self,
        follower: Follower,
        member_of: MemberRoom,
        start: Position,
        on_end: Callable[[FollowedPosition], None],
        newest: Position | None = None,
    ) -> FollowedPosition:
        room = self.rooms.open(member_of.room_id, newest or Position(member_of.last_seq, ANY_ENTRY))
        followed = FollowedPosition(follower.inbox, room, start, on_end, start)
        follower.positions[room.id] = followed
        room.positions[followed] = None
        self.ephemeral.follow(followed)
        return followed

    def leave(self, follower: Follower) -> None:
        """Forget a follower that is closed."""
        if follower.has_entered:
            self.ephemeral.leave(follower.inbox)
        self.sessions.leave(follower)
        discard(self._users, follower.user_id, follower)

    # Rooms that are joined later, and memberships that end without an entry.

    def register(self, commits: Commits) -> None:
        """Follow the rooms that users join in this process, and end the followers of users that it deletes."""
        commits.on(MembersJoined, lambda change: self.read_rooms_of(change.user_ids))
        commits.on(UserDeleted, lambda change: self.disconnect(change.user_id))

    def disconnect(self, user_id: UUID) -> None:
        """End the followers of the user, here and in other processes. Does not wait."""
        self._disconnect(user_id)
        self._announcements.user_disconnected(user_id)

    def _disconnect(self, user_id: UUID) -> None:
        for follower in tuple(self._users.get(user_id, ())):
            follower.was_disconnected = True
            follower.close()

    def receive(self, received: Received) -> None:
        """Take an announcement of another process."""
        if isinstance(received, Gap):
            self._is_subscribed = True
            self.ephemeral.miss_all()
            self.sessions.check_soon()
            self._to_compare |= dict.fromkeys(self._users)
            self._wake_comparing()
        else:
            announced = self._announcements.decode_users(received)
            self._on_announced(announced)
            for profile in announced.profiles:
                self.ephemeral.take_profile(profile)
            for user_id in announced.disconnected:
                self._disconnect(user_id)
            self.read_rooms_of(announced.users)
            self.sessions.check_soon(one for user_id in announced.users for one in self._users.get(user_id, ()))

    def read_rooms_of(self, user_ids: Iterable[UUID]) -> None:
        """Read the rooms of these users again in the next `compare`, which is now."""
        changed = [user_id for user_id in user_ids if user_id in self._users]
        if changed:
            self._changed |= dict.fromkeys(changed)
            self._wake_comparing()

    def schedule_some(self) -> None:
        """Have the next `compare` compare the digests of some of the users, in turn."""
        if not self._to_compare:  # else some are left from before
            part = min(DIGESTS_PER_STATEMENT, part_of_round(len(self._users), USER_ROUND_HEARTBEATS))
            self._to_compare |= dict.fromkeys(next_in_turn(self._users, part))

    async def compare(self) -> None:
        """Find users who are in other rooms than before, and follow these rooms.

        One call compares at most `DIGESTS_PER_STATEMENT` users.

        Raises: Unavailable.
        """
        users = [user_id for user_id in take(self._to_compare, DIGESTS_PER_STATEMENT) if user_id in self._users]
        try:
            await self._compare_digests(users)
        except Unavailable:
            self._to_compare |= dict.fromkeys(users)
            raise
        users = self._next_changed()
        try:
            await self.update(users)
        except Unavailable:
            self._changed |= dict.fromkeys(users)
            raise
        if self._to_compare or self._changed:
            self._wake_comparing()

    async def _compare_digests(self, user_ids: list[UUID]) -> None:
        digests = await self.memberships.digests(user_ids) if user_ids else {}
        roomless = [user_id for user_id, digest in digests.items() if not digest]  # as a deleted user is
        for user_id in set(roomless) - await self.memberships.existing(roomless) if roomless else ():
            self._disconnect(user_id)
        for user_id, digest in digests.items():
            if any(one.has_entered and one.digest != digest for one in self._users.get(user_id, ())):
                self._changed[user_id] = None

    def _next_changed(self) -> list[UUID]:
        """The next users in turn, at least one if there is one."""
        users: list[UUID] = []
        positions = 0
        while self._changed and len(users) < CHANGED_USERS_PER_STATEMENT and positions < POSITIONS_PER_STATEMENT:
            user_id = next(iter(self._changed))
            del self._changed[user_id]
            users.append(user_id)
            positions += sum(len(follower.positions) for follower in self._users.get(user_id, ()))
        return users

    async def update(self, user_ids: list[UUID]) -> None:
        """Read the rooms of the users, and give their followers positions in these alone. Raises: Unavailable."""
        followers = [follower for user_id in user_ids for follower in self._users.get(user_id, ())]
        ended = {follower: follower.ended for follower in followers if follower.has_entered}
        rooms = await self.memberships.rooms_of(user_ids) if followers else {}
        time_slice = TimeSlice()
        for user_id, member_of in rooms.items():
            await self._update_user(user_id, member_of, ended, time_slice)

    async def _update_user(
        self,
        user_id: UUID,
        member_of: Sequence[MemberRoom],
        ended: Mapping[Follower, int],
        time_slice: TimeSlice,
    ) -> None:
        """Other tasks run in between: a position may end, and a follower may be closed or enter."""
        digest = member_of[0].digest if member_of else 0
        for follower in tuple(self._users.get(user_id, ())):
            if follower not in ended:
                if follower.has_entered:  # meanwhile, perhaps by an older answer than this one
                    self._changed[user_id] = None
                follower.missed_update = True
                continue
            if follower.is_closed:
                continue
            wanted = _wanted(follower, member_of)
            await self._end_absent(follower, wanted, time_slice)
            await self._open_joined(follower, wanted.values(), ended[follower], time_slice)
            follower.digest = digest if follower.positions.keys() == wanted.keys() else None

    async def _end_absent(
        self, follower: Follower, member_of: Mapping[UUID, MemberRoom], time_slice: TimeSlice
    ) -> None:
        """Look for positions in rooms that the user is not in.

        Usually the log is about to show the leaving. Where it does not, because the account was deleted by SQL, a
        later lookup ends the position.
        """
        for room_id, followed in tuple(follower.positions.items()):
            await time_slice.pause_if_due()
            if room_id in member_of:
                followed.times_absent, followed.joined_seq = 0, member_of[room_id].joined_seq
                continue
            if followed in follower.inbox.behind or follower.positions.get(room_id) is not followed:
                continue  # it reads the log, which may be of more than one visit, or has ended in a pause
            if followed.times_absent >= ABSENT_LOOKUPS and not followed.room.is_behind:
                followed.end_without_entry()
            else:
                followed.times_absent += 1
                followed.room.read_log()

    async def _open_joined(
        self, follower: Follower, wanted: Iterable[MemberRoom], ended: int, time_slice: TimeSlice
    ) -> None:
        """Open positions in the rooms that the user has joined."""
        on_end = follower._position_ended
        for room in wanted:
            await time_slice.pause_if_due()
            if follower.is_closed:
                return
            if room.room_id in follower.positions:
                continue
            # The user's own joining is the first event, where its seq is known.
            start = room.joined_seq - 1 if room.joined_seq else room.last_seq
            if follower.ended != ended:
                # Perhaps in this room, after the memberships were read: then this joining was delivered before.
                self._changed[follower.user_id] = None
                return
            ended_at = follower.ended_at.pop(room.room_id, None)
            if ended_at is not None and start - ended_at.seq <= MAX_SKIPPED_ENTRIES:
                self._open(follower, room, ended_at, on_end).read_to_next_joining()
            else:
                self._open(follower, room, Position(start, ANY_ENTRY), on_end).catch_up()


def _wanted(follower: Follower, member_of: Iterable[MemberRoom]) -> dict[UUID, MemberRoom]:
    """The rooms that the follower is to follow, by id."""
    if follower.rooms is None:
        return {room.room_id: room for room in member_of}
    return {room.room_id: room for room in member_of if room.room_id in follower.rooms}
