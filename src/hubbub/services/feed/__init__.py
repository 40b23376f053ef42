"""The feed: the logs of the followed rooms, delivered to the followers of this process.

Each gets every entry once and in order, whatever happens to Redis.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from typing import Final
from uuid import UUID

from hubbub import inputs
from hubbub.background import BackgroundTask
from hubbub.commits import Commits
from hubbub.errors import Invalid, Unavailable
from hubbub.events import MEMBERSHIPS_CHANNEL
from hubbub.instrumentation import SILENT, Instrumentation, LatencyHistogram
from hubbub.positions import START, Position
from hubbub.postgres import Executor
from hubbub.redis import CallbackSubscription, Connection, Subscriptions
from hubbub.repositories.messages import Logs
from hubbub.services.feed.announcements import Announcements, ProcessFigures, UserAnnouncement
from hubbub.services.feed.ephemeral import EphemeralEvents
from hubbub.services.feed.followers import Follower, Followers, SessionChecks
from hubbub.services.feed.memberships import Memberships
from hubbub.services.feed.rooms import FollowedRooms, Inbox

__all__ = ["Feed", "Follower"]

logger = logging.getLogger("hubbub.feed")

MAX_BUFFER: Final = 100_000
"""Events that may wait for one follower. The size of their messages has a bound of its own, `rooms.MAX_UNREAD`."""
FIGURES_SECONDS: Final = 5.0
"""How long the figures of a process are valid. A console polls each second."""
MAX_CURSORS: Final = 10_000
"""Each may be of a room that is gone, and its `RoomGone` comes however full the buffer is."""


class Feed:
    """Gives each follower the log of each of its rooms, without a gap or a repeat.

    A followed room has one subscription in this process, however many follow it. An announced entry that is the
    next one goes to the followers at once. Anything else makes the room read its log. Each heartbeat compares the
    heads of 100 followed rooms, or of a tenth of them if that is more, with PostgreSQL, a thousand per statement.
    While announcements cannot come, it compares all. So a lost announcement delays an entry by ten heartbeats at
    most.
    """

    def __init__(
        self,
        executor: Executor,
        connection: Connection,
        subscriptions: Subscriptions,
        *,
        heartbeat_seconds: float,
        at_most_behind: int,
        on_rewind: Callable[[UUID], None],
        ended_sessions: Callable[[Sequence[str]], Awaitable[Mapping[str, bool]]],
        sends: LatencyHistogram,
        instrumentation: Instrumentation = SILENT,
    ) -> None:
        """`on_rewind` is called when a follower gets a `Resync` because the log of a room was rewound. It must not
        wait. `ended_sessions` returns whether the sessions with these keys have ended, without those that it
        cannot look up at present. `sends` are shown on a console."""
        if not heartbeat_seconds > 0:
            raise Invalid("follow_heartbeat_seconds", "must be more than 0")
        inputs.limit(at_most_behind, longest=2**31, field="follow_at_most_behind")
        self._heartbeat_seconds = heartbeat_seconds
        self._subscriptions = subscriptions
        self._instrumentation = instrumentation
        self._comparing = BackgroundTask("comparing heads of logs", self._compare)
        logs, memberships = Logs(executor), Memberships(executor)
        self._executor = executor
        self._announcements = announcements = Announcements(connection, instrumentation)
        self._rooms = FollowedRooms(
            logs,
            memberships,
            subscriptions,
            announcements,
            wake_comparing=self._comparing.wake,
            on_rewind=on_rewind,
        )
        self._sessions = SessionChecks(ended_sessions, heartbeat_seconds=heartbeat_seconds)
        self._ephemeral = EphemeralEvents(subscriptions, memberships, self._rooms)
        self._followers = Followers(
            executor,
            self._rooms,
            self._ephemeral,
            self._sessions,
            logs=logs,
            memberships=memberships,
            announcements=announcements,
            wake_comparing=self._comparing.wake,
            on_announced=self._take_announcement,
            at_most_behind=at_most_behind,
        )
        self._sends = sends
        self._figures: dict[str, tuple[float, ProcessFigures]] = {}  # by process, with the time of the answer
        self._figures_until = 0.0  # answers are for another process after that
        self._memberships_subscription: CallbackSubscription | None = None
        self._next_heartbeat = 0.0

    async def load_key(self) -> None:
        """Read the key under which announcements of other processes are believed. Raises: Unavailable."""
        await self._announcements.load_key(self._executor)

    def start(self) -> None:
        """Begin to compare heads. Does not wait."""
        self._memberships_subscription = self._subscriptions.subscribe_soon_with(
            MEMBERSHIPS_CHANNEL, self._followers.receive
        )
        self._next_heartbeat = asyncio.get_running_loop().time() + self._heartbeat_seconds
        self._comparing.start()
        self._ephemeral.task.start()
        self._sessions.task.start()

    async def close(self) -> None:
        """End all followers. Idempotent."""
        await self._followers.close()
        self._announcements.close()
        if self._memberships_subscription is not None:
            self._memberships_subscription.unsubscribe()
        await self._comparing.close()
        await self._ephemeral.task.close()
        await self._sessions.task.close()
        await self._rooms.close()

    def seq_of(self, room_id: UUID) -> int:
        """The `received_seq` of a room. 0 for a room that is not followed."""
        room = self._rooms.get(room_id)
        return 0 if room is None else room.received_seq

    def on_unfollowed(self, action: Callable[[UUID, int], None]) -> None:
        """Call this with each room that is followed no longer, and its `seq_of`. It must not wait."""
        self._rooms.on_unfollowed = action

    def register(self, commits: Commits) -> None:
        """Notify followers, here and in other processes, of what this process commits from now on."""
        self._rooms.register(commits)
        self._followers.register(commits)
        self._ephemeral.register(commits)
        self._announcements.register(commits)

    async def cursors_of(self, user_id: UUID) -> dict[UUID, str]:
        """The cursor at the end of the log of each room of the user. Raises: Unavailable."""
        return await self._followers.cursors_of(user_id)

    # Figures for a console. Processes publish them only when one asks.

    def ask_for_figures(self) -> None:
        """Ask the other processes. Their answers come within a round trip of Redis, and are in `figures` then."""
        self._figures_until = asyncio.get_running_loop().time() + FIGURES_SECONDS
        self._announcements.ask_for_figures()

    def figures(self) -> dict[str, ProcessFigures]:
        """The figures of this process, under an empty name, and of those that have answered lately."""
        now = asyncio.get_running_loop().time()
        self._figures = {name: one for name, one in self._figures.items() if now - one[0] < FIGURES_SECONDS}
        return {name: figures for name, (_, figures) in self._figures.items()} | {"": self._own_figures()}

    def _own_figures(self) -> ProcessFigures:
        return ProcessFigures(self._followers.number, dict(self._sends.counts))

    def _take_announcement(self, announced: UserAnnouncement) -> None:
        if announced.asks:
            self._announcements.publish_figures(self._own_figures())
        if announced.figures is not None and asyncio.get_running_loop().time() < self._figures_until:
            self._figures[announced.origin] = asyncio.get_running_loop().time(), announced.figures

    def disconnect(self, user_id: UUID) -> None:
        """End the followers of the user. `Hub.disconnect` describes it."""
        self._followers.disconnect(inputs.uuid("user_id", user_id))

    def follow(
        self,
        user_id: UUID,
        *,
        after: Mapping[UUID, str | None],
        rooms: Iterable[UUID] | None,
        buffer: int,
        typing: bool = False,
        presence: bool | Iterable[UUID] = False,
        read_marks: bool = False,
        profiles: bool = False,
        session: str | None = None,
        complete: bool = False,
    ) -> Follower:
        """A follower for `async with`. `Hub.follow` describes the arguments. `session` is the key of a session."""
        user_id = inputs.uuid("user_id", user_id)
        only = None if rooms is None else inputs.uuids("rooms", rooms)
        if len(inputs.mapping("after", after)) > MAX_CURSORS:
            raise Invalid("after", f"must have at most {MAX_CURSORS} cursors")
        starts: dict[UUID, Position] = {}
        for key, cursor in after.items():
            room_id = inputs.uuid("after", key)
            if only is not None and room_id not in only:
                raise Invalid("after", "has a cursor for a room that is not among the rooms")
            starts[room_id] = START if cursor is None else Position.decode(room_id, cursor)
        inbox = Inbox(
            user_id,
            inputs.limit(buffer, longest=MAX_BUFFER, field="buffer"),
            wants_typing=inputs.flag("typing", typing),
            watched=_watched(presence),
            wants_read_marks=inputs.flag("read_marks", read_marks),
            wants_profiles=inputs.flag("profiles", profiles),
            instrumentation=self._instrumentation,
        )
        is_complete = inputs.flag("complete", complete)
        return Follower(self._followers, inbox, starts, only, session, is_complete)

    async def _compare(self) -> float:
        """Compare some rooms and users at each heartbeat, and between heartbeats those with work."""
        clock = asyncio.get_running_loop().time
        if clock() >= self._next_heartbeat:
            self._next_heartbeat = clock() + self._heartbeat_seconds
            self._rooms.schedule_some()
            self._followers.schedule_some()
        try:
            await self._rooms.compare()
            await self._followers.compare()
        except Unavailable as error:
            logger.info("comparing heads again at the next heartbeat, after: %s", error)
        return max(self._next_heartbeat - clock(), 0)


def _watched(presence: bool | Iterable[UUID]) -> Set[UUID] | None:
    """The rooms of an argument that is True for all, or names them."""
    if isinstance(presence, bool):
        return None if presence else frozenset()
    return frozenset(inputs.uuids("presence", presence))
