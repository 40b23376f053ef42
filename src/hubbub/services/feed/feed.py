"""The feed: what happens in the rooms of this process's followers, from the log and at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final
from uuid import UUID

from hubbub import inputs
from hubbub.background import ReportErrors
from hubbub.commits import Commits, MembersJoined, MessagesSent, RoomTouched
from hubbub.errors import Invalid, Unavailable
from hubbub.instrumentation import SILENT, Instrumentation
from hubbub.positions import START, Position
from hubbub.repositories.messages import Logs, Readers, Reading, entry_of
from hubbub.services.feed.doorbell import MEMBERSHIPS_CHANNEL, Doorbell
from hubbub.services.feed.followed_room import FollowedRoom
from hubbub.services.feed.follower import Follower
from hubbub.services.feed.place import Place
from hubbub.services.feed.rooms import FollowedRooms
from hubbub.services.feed.signals import Signals
from hubbub.services.feed.users import FollowedUsers

if TYPE_CHECKING:
    from hubbub.postgres import Executor
    from hubbub.redis import CallbackSubscription, Connection, Subscriptions

logger = logging.getLogger("hubbub.feed")

LARGEST_BUFFER: Final = 100_000
# Each may be of a room that is gone, and that is said however full the buffer is.
MOST_CURSORS: Final = 10_000


class Feed:
    """Gives each follower the log of each room, whatever becomes of the doorbell.

    A room that is followed here has one subscription, however many follow. What rings and is the next seq goes to
    the followers at once; anything else makes the room read the log. At each heartbeat the heads of all followed
    rooms are compared with PostgreSQL in one query: so a ring that was lost costs a heartbeat and no event.
    """

    def __init__(
        self,
        executor: Executor,
        connection: Connection,
        subscriptions: Subscriptions,
        *,
        heartbeat_seconds: float,
        most_behind: int,
        was_rewound: Callable[[UUID], None],
        instrumentation: Instrumentation = SILENT,
    ) -> None:
        """`was_rewound` is called when a follower is told that the log of a room was. It must not wait."""
        if not heartbeat_seconds > 0:
            raise Invalid("follow_heartbeat_seconds", "must be more than 0")
        inputs.limit(most_behind, longest=2**31, field="follow_at_most_behind")
        self._heartbeat_seconds = heartbeat_seconds
        self._executor = executor
        self._subscriptions = subscriptions
        self._instrumentation = instrumentation
        self._doorbell = Doorbell(connection, instrumentation)
        self._work = asyncio.Event()
        logs = Logs(executor)
        self._rooms = FollowedRooms(
            logs, subscriptions, self._doorbell, has_work=self._work.set, was_rewound=was_rewound
        )
        readers = Readers(executor)
        self._signals = Signals(subscriptions, readers, self._rooms)
        self._users = FollowedUsers(
            logs,
            readers,
            self._rooms,
            self._signals,
            self._doorbell,
            has_work=self._work.set,
            most_behind=most_behind,
        )
        self._memberships_bell: CallbackSubscription | None = None
        self._comparing: asyncio.Task[None] | None = None
        self._is_closed = False

    def start(self) -> None:
        """Begin to compare heads. Does not wait."""
        self._memberships_bell = self._subscriptions.subscribe_soon_with(MEMBERSHIPS_CHANNEL, self._users.hear)
        self._comparing = asyncio.create_task(self._keep_comparing(), name="hubbub: compare heads of logs")

    async def close(self) -> None:
        """End all followers. Idempotent."""
        self._is_closed = True
        for follower in self._users.followers():
            follower.close()
        if self._memberships_bell is not None:
            self._memberships_bell.unsubscribe()
        if self._comparing is not None:
            self._comparing.cancel()
            await asyncio.gather(self._comparing, return_exceptions=True)
        await self._signals.close()
        await self._rooms.close()

    def follow(
        self,
        user_id: UUID,
        *,
        after: Mapping[UUID, str | None],
        rooms: Iterable[UUID] | None,
        buffer: int,
        typing: bool = False,
        presence: bool = False,
    ) -> Follower:
        """One who follows, for `async with`. Raises `Invalid`."""
        user_id = inputs.uuid("user_id", user_id)
        only = None if rooms is None else inputs.uuids("rooms", rooms)
        if len(inputs.mapping("after", after)) > MOST_CURSORS:
            raise Invalid("after", f"must have at most {MOST_CURSORS} cursors")
        starts: dict[UUID, Position] = {}
        for key, cursor in after.items():
            room_id = inputs.uuid("after", key)
            if only is not None and room_id not in only:
                raise Invalid("after", "has a cursor for a room that is not among the rooms")
            starts[room_id] = START if cursor is None else Position.decode(room_id, cursor)
        limit = inputs.limit(buffer, longest=LARGEST_BUFFER, field="buffer")
        return Follower(
            self,
            user_id,
            after=starts,
            rooms=only,
            limit=limit,
            wants_typing=inputs.flag("typing", typing),
            wants_presence=inputs.flag("presence", presence),
            instrumentation=self._instrumentation,
        )

    def register(self, commits: Commits) -> None:
        """Notify followers, here and in other processes, of what this process commits from now on."""
        commits.on(MessagesSent, self._messages_sent)
        commits.on(RoomTouched, self._room_touched)
        commits.on(MembersJoined, self._members_joined)

    def _messages_sent(self, change: MessagesSent) -> None:
        for message in change.messages:
            room = self._rooms.get(message.room_id)
            if room is not None:
                room.hear(entry_of(message))
            self._doorbell.ring(message)

    def _room_touched(self, change: RoomTouched) -> None:
        room = self._rooms.get(change.room_id)
        if room is not None:
            room.ask()
        self._doorbell.ring_for_more(change.room_id)

    def _members_joined(self, change: MembersJoined) -> None:
        self._users.look_at(change.user_ids)
        self._doorbell.ring_for(change.user_ids)

    # What a follower asks for.

    async def enter(self, follower: Follower) -> None:
        """Put the follower at its starting places. Raises `NotAMember`, `Unavailable`."""
        if self._is_closed:
            raise Unavailable("hub", "it is closed", retryable=False)
        await self._users.enter(follower, deadline=self._executor.deadline())

    async def read(self, room_id: UUID, after: Position, limit: int) -> Reading:
        """Read the log of a room. Raises `NotFound`, `Unavailable`."""
        return await self._rooms.read(room_id, after, limit)

    async def head(self, room: FollowedRoom) -> Position:
        """The head of a room's log, once all who follow it here know whether it was rewound. Raises as `read`."""
        return await self._rooms.head(room)

    def leave(self, place: Place) -> None:
        """A place has come to its end."""
        self._signals.end(place)
        self._rooms.leave(place)

    def forget(self, follower: Follower) -> None:
        """The follower is gone."""
        self._users.leave(follower)

    async def _keep_comparing(self) -> None:
        """At each heartbeat all rooms and some of the users; between them those that there is a doubt about."""
        loop = asyncio.get_running_loop()
        heartbeat_at = loop.time() + self._heartbeat_seconds
        while True:
            try:
                async with asyncio.timeout_at(heartbeat_at):
                    await self._work.wait()
            except TimeoutError:
                pass
            if loop.time() >= heartbeat_at:  # there may be work without a pause
                heartbeat_at = loop.time() + self._heartbeat_seconds
                self._rooms.doubt_all()
                self._users.doubt_some()
            self._work.clear()
            with ReportErrors("comparing heads of logs"):
                await self._compare()

    async def _compare(self) -> None:
        try:
            await self._rooms.compare()
            await self._users.compare()
        except Unavailable as error:
            logger.info("comparing heads again at the next heartbeat, after: %s", error)
