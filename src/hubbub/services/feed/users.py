"""The users that somebody in this process follows for: which rooms they are in, now and from now on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final
from uuid import UUID

from hubbub.errors import NotAMember, Unavailable
from hubbub.events import RoomGone
from hubbub.models import ResyncReason
from hubbub.positions import NOT_SEEN, Position
from hubbub.redis import Gap
from hubbub.repositories.messages import Logs, Readable, Readers
from hubbub.services.feed.doorbell import Doorbell
from hubbub.services.feed.follower import Follower
from hubbub.services.feed.place import Place
from hubbub.services.feed.rooms import FollowedRooms
from hubbub.services.feed.signals import Signals

if TYPE_CHECKING:
    from hubbub.redis import Received

# The first may be by an answer that is older than the place. The log that is read after the second one says of a
# leaving; when it does not, the third ends the place.
LOOKS: Final = 2
# Entries of a log; who was away from the room for longer begins with the newest joining, and not with a visit
# between that nobody here has noticed.
LONGEST_ABSENCE: Final = 1_000
# Users whose memberships are compared in one statement, once a heartbeat.
TOGETHER: Final = 1_000
# Users whose rooms are read again, in one statement, before the heads of rooms have their turn. The second is how
# many places they may have: all of them are looked at in one step of the event loop.
A_TURN: Final = 100
PLACES_A_TURN: Final = 2_000


class FollowedUsers:
    """Gives each follower a place in each of the rooms of its user, also in those that the user joins later.

    A join rings. That a ring was lost is found by a digest of each user's rooms: of 1,000 users at a heartbeat,
    and of all of them when the bell was out of order.
    """

    def __init__(
        self,
        logs: Logs,
        readers: Readers,
        rooms: FollowedRooms,
        signals: Signals,
        doorbell: Doorbell,
        *,
        has_work: Callable[[], None],
        most_behind: int,
    ) -> None:
        """`has_work` is called when there are users to look at now. It must not wait."""
        self._logs = logs
        self._readers = readers
        self._rooms = rooms
        self._signals = signals
        self._doorbell = doorbell
        self._has_work = has_work
        self._most_behind = most_behind
        self._users: dict[UUID, dict[Follower, None]] = {}
        self._moved: dict[UUID, None] = {}
        self._round: deque[UUID] = deque()
        self._in_doubt = 0

    def __len__(self) -> int:
        return sum(len(followers) for followers in self._users.values())

    def followers(self) -> list[Follower]:
        return [follower for followers in self._users.values() for follower in followers]

    async def enter(self, follower: Follower, *, deadline: float) -> None:
        """Put the follower at its starting places, until the deadline `by`. Raises `NotAMember`, `Unavailable`."""
        self._users.setdefault(follower.user_id, {})[follower] = None
        readable = (await self._readers.rooms_of([follower.user_id], deadline=deadline))[follower.user_id]
        wanted = {room.room_id: room for room in readable if follower.wants(room.room_id)}
        for room_id in follower.rooms or ():
            if room_id not in wanted:
                raise NotAMember(room_id, follower.user_id)
        resyncs = await self._resyncs(
            {room: at for room, at in follower.after.items() if room in wanted}, deadline
        )
        outside = await self._outside(follower, wanted.values(), deadline)
        if follower.is_closed:
            return
        for room_id in follower.after:
            if room_id not in wanted:  # the user has left it while away, or it was deleted
                follower.put(RoomGone(room_id))
        for room_id, room in wanted.items():
            start = follower.after.get(room_id, Position(room.last_seq, NOT_SEEN))
            place = self._place(follower, room, start)
            if room_id in resyncs:
                place.resync(*resyncs[room_id])
            if room_id in outside and room_id not in resyncs:
                place.return_from_outside()
            else:
                place.catch_up()
        digest = readable[0].digest if readable else 0
        follower.digest = digest if follower.places.keys() == wanted.keys() else None
        follower.is_placed = True
        self._signals.enter(follower)
        if follower.is_passed_over:
            self.look_at([follower.user_id])

    async def _outside(self, follower: Follower, rooms: Iterable[Readable], deadline: float) -> set[UUID]:
        """The rooms that the user had left at the cursor, and has joined again since."""
        before = {
            room.room_id: follower.after[room.room_id].seq
            for room in rooms
            if room.room_id in follower.after and 0 < follower.after[room.room_id].seq < room.joined_seq
        }
        return await self._readers.outside(follower.user_id, before, deadline=deadline) if before else set()

    async def _resyncs(
        self, after: Mapping[UUID, Position], deadline: float
    ) -> dict[UUID, tuple[Position, ResyncReason]]:
        """The heads of the rooms that cannot be read on from these positions, and why not."""
        seen = {room_id: position.seq for room_id, position in after.items() if position.seq > 0}
        reasons: dict[UUID, ResyncReason] = {}
        for found in await self._logs.heads(seen, deadline=deadline) if seen else ():
            if not found.holds(after[found.room_id]):
                reasons[found.room_id] = "rewound"
            elif after[found.room_id].seq < found.last_seq - self._most_behind:
                reasons[found.room_id] = "too_far_behind"
        heads = await self._logs.heads(dict.fromkeys(reasons), deadline=deadline) if reasons else ()
        return {
            head.room_id: (head.position, reasons[head.room_id]) for head in heads if head.position is not None
        }

    def _place(self, follower: Follower, readable: Readable, start: Position) -> Place:
        room = self._rooms.open(readable.room_id, readable.last_seq)
        place = follower.places[room.id] = Place(follower, room, start)
        room.places[place] = None
        self._signals.begin(place)
        return place

    def leave(self, follower: Follower) -> None:
        """The follower is gone."""
        if follower.is_placed:
            self._signals.leave(follower)
        followers = self._users.get(follower.user_id)
        if followers is not None:
            followers.pop(follower, None)
            if not followers:
                del self._users[follower.user_id]

    # Rooms that are joined later, and memberships that end without a word.

    def hear(self, heard: Received) -> None:
        """What the bell of memberships says."""
        if isinstance(heard, Gap):
            self._round = deque(self._users)
            self._in_doubt = len(self._round)
            self._has_work()
        else:
            self.look_at(self._doorbell.users_in(heard))

    def look_at(self, user_ids: Iterable[UUID]) -> None:
        """Read the rooms of these users again, in the next `compare`."""
        moved = [user_id for user_id in user_ids if user_id in self._users]
        if moved:
            self._moved |= dict.fromkeys(moved)
            self._has_work()

    def doubt_some(self) -> None:
        """Compare some of the users, the next in turn, in the next `compare`."""
        if not self._round:
            self._round = deque(self._users)
        self._in_doubt = max(self._in_doubt, min(TOGETHER, len(self._round)))

    async def compare(self) -> None:
        """Find out who is in other rooms than before, and go there; where these are many, with the first of them.
        Raises `Unavailable`."""
        if self._in_doubt > 0:
            users = [self._round.popleft() for _ in range(min(TOGETHER, len(self._round)))]
            self._in_doubt = self._in_doubt - len(users) if users else 0
            try:
                await self._compare(users)
            except Unavailable:
                self._round.extendleft(users)
                raise
        moved = self._next_moved()
        try:
            await self._move_all(moved)
        except Unavailable:
            self._moved |= dict.fromkeys(moved)
            raise
        if self._in_doubt > 0 or self._moved:
            self._has_work()

    async def _compare(self, user_ids: list[UUID]) -> None:
        digests = await self._readers.digests(user_ids) if user_ids else {}
        for user_id, digest in digests.items():
            if any(one.is_placed and one.digest != digest for one in self._users.get(user_id, ())):
                self._moved[user_id] = None

    def _next_moved(self) -> list[UUID]:
        """The next in turn, at least one where there is one."""
        moved: list[UUID] = []
        places = 0
        while self._moved and len(moved) < A_TURN and places < PLACES_A_TURN:
            user_id = next(iter(self._moved))
            del self._moved[user_id]
            moved.append(user_id)
            places += sum(len(follower.places) for follower in self._users.get(user_id, ()))
        return moved

    async def _move_all(self, user_ids: list[UUID]) -> None:
        followers = [follower for user_id in user_ids for follower in self._users.get(user_id, ())]
        left = {follower: follower.left for follower in followers if follower.is_placed}
        rooms = await self._readers.rooms_of(user_ids) if followers else {}
        for user_id, readable in rooms.items():
            self._move(user_id, {room.room_id: room for room in readable}, left)

    def _move(self, user_id: UUID, readable: Mapping[UUID, Readable], left: Mapping[Follower, int]) -> None:
        digest = next((room.digest for room in readable.values()), 0)
        for follower in tuple(self._users.get(user_id, ())):
            if follower not in left:
                if follower.is_placed:  # meanwhile, perhaps by an older answer than this one
                    self._moved[user_id] = None
                follower.is_passed_over = True
                continue
            wanted = {room_id: room for room_id, room in readable.items() if follower.wants(room_id)}
            self._check_out(follower, wanted)
            self._check_in(follower, wanted.values(), left[follower])
            follower.digest = digest if follower.places.keys() == wanted.keys() else None

    def _check_in(self, follower: Follower, wanted: Iterable[Readable], left: int) -> None:
        for room in wanted:
            if room.room_id in follower.places:
                continue
            # The first thing to hear is one's own joining, where it is known.
            start = room.joined_seq - 1 if room.joined_seq else room.last_seq
            if follower.left != left:
                # It may have been this room, after the memberships were read: then this joining was heard before.
                self._moved[follower.user_id] = None
                return
            left_at = follower.left_at.pop(room.room_id, None)
            if left_at is not None and start - left_at.seq <= LONGEST_ABSENCE:
                self._place(follower, room, left_at).return_from_outside()
            else:
                self._place(follower, room, Position(start, NOT_SEEN)).catch_up()

    def _check_out(self, follower: Follower, member_of: Mapping[UUID, Readable]) -> None:
        """Look for places in rooms that the user is not in. Mostly the log is about to say so; where it does not,
        because the account was deleted, a later look ends the place."""
        gone = follower.places.keys() - member_of.keys()
        for place in [follower.places[room_id] for room_id in gone]:
            if place in follower.behind:
                continue  # it reads the log, which may be of more than one visit
            if place.missed >= LOOKS and not place.room.is_behind:
                follower.lose(place)
            else:
                place.missed += 1
                place.room.ask()
        for room_id in follower.places.keys() & member_of.keys():
            place = follower.places[room_id]
            place.missed, place.member_since = 0, member_of[room_id].joined_seq
