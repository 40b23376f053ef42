"""Typing, presence, read marks and profiles in a feed: they are delivered once, to followers that want them.

None of them is an entry of a log. Read marks and profiles are kept in PostgreSQL, so a follower that may have
missed some gets a `Missed`. Typing and presence are not stored.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from functools import partial
from math import inf
from typing import Final, TypeAlias, TypeVar
from uuid import UUID

from hubbub.background import BackgroundTask
from hubbub.commits import Commits, ProfileUpdated, ReadMarkMoved
from hubbub.errors import Unavailable
from hubbub.events import (
    PRESENCE_CHANNEL,
    PresenceChanged,
    ProfileChanged,
    ReadMarkChanged,
    TypingChanged,
    typing_channel,
)
from hubbub.redis import CallbackSubscription, Gap, Received, Subscriptions
from hubbub.scheduling import TimeSlice
from hubbub.services.feed.memberships import Memberships
from hubbub.services.feed.rooms import FollowedPosition, FollowedRoom, FollowedRooms, Inbox

K = TypeVar("K")
V = TypeVar("V")

UserChange: TypeAlias = PresenceChanged | ProfileChanged

logger = logging.getLogger("hubbub.feed")

PRESENCE_USERS_PER_STATEMENT: Final = 20
"""Changes of presence whose rooms are read in one statement. Each user may be in a thousand rooms."""
MAX_PENDING_CHANGES: Final = 10_000
"""Users whose presence or profile has changed, and read marks that moved, that wait to be delivered: this many of
each. Instead of more, the followers get a `Missed`."""


class EphemeralEvents:
    """Gives these events to the followers that want them, for the rooms that they follow.

    The subscriptions of typing and presence are made with the first such follower, and end with the last. Read
    marks and profiles come on the channels of rooms and memberships.
    """

    def __init__(self, subscriptions: Subscriptions, memberships: Memberships, rooms: FollowedRooms) -> None:
        self._subscriptions = subscriptions
        self._memberships = memberships
        self._rooms = rooms
        rooms.on_mark = self._take_mark
        self._typing: dict[UUID, int] = {}  # how many positions want it, by room
        self._typing_subscriptions: dict[UUID, CallbackSubscription] = {}
        self._watchers = 0
        self._presence_subscription: CallbackSubscription | None = None
        self._inboxes: dict[UUID, dict[Inbox, None]] = {}  # of those that want read marks or profiles, by user
        self._marks: dict[tuple[UUID, UUID], ReadMarkMoved] = {}  # the newest of each room and user
        self._changes: dict[UUID, dict[type[UserChange], UserChange]] = {}  # the newest of each kind, by user
        self.task = BackgroundTask("notifying followers of presence, profiles and read marks", self._notify)

    def register(self, commits: Commits) -> None:
        """Deliver the read marks and profiles that this process commits from now on."""
        commits.on(ReadMarkMoved, self._take_mark)
        commits.on(ProfileUpdated, self.take_profile)

    def enter(self, inbox: Inbox) -> None:
        """A follower has entered."""
        self._count_watchers(inbox.wants_presence)
        if inbox.can_miss:
            self._inboxes.setdefault(inbox.user_id, {})[inbox] = None

    def leave(self, inbox: Inbox) -> None:
        """A follower that had entered is closed."""
        self._count_watchers(-inbox.wants_presence)
        discard(self._inboxes, inbox.user_id, inbox)

    def watch(self, inbox: Inbox, room_ids: Set[UUID]) -> None:
        """Have the presence of the members of these rooms, of a follower that has entered."""
        before = inbox.wants_presence
        inbox.watched = room_ids
        self._count_watchers(inbox.wants_presence - before)

    def _count_watchers(self, more: int) -> None:
        self._watchers += more
        if self._watchers and self._presence_subscription is None:
            self._presence_subscription = self._subscriptions.subscribe_soon_with(
                PRESENCE_CHANNEL, self._receive_presence
            )
        elif not self._watchers and self._presence_subscription is not None:
            self._presence_subscription.unsubscribe()
            self._presence_subscription = None

    def miss_all(self) -> None:
        """Announcements may have been lost."""
        for inboxes in self._inboxes.values():
            for inbox in inboxes:
                inbox.miss()

    def follow(self, followed: FollowedPosition) -> None:
        """A follower has a position in a room."""
        room_id = followed.room.id
        if followed.inbox.wants_typing:
            self._typing[room_id] = self._typing.get(room_id, 0) + 1
            if room_id not in self._typing_subscriptions:
                receive = partial(self._receive_typing, room_id)
                subscription = self._subscriptions.subscribe_soon_with(typing_channel(room_id), receive)
                self._typing_subscriptions[room_id] = subscription

    def unfollow(self, followed: FollowedPosition) -> None:
        """The position has ended."""
        room_id = followed.room.id
        if not followed.inbox.wants_typing:
            return
        self._typing[room_id] -= 1
        if not self._typing[room_id]:
            del self._typing[room_id]
            self._typing_subscriptions.pop(room_id).unsubscribe()

    def _receive_typing(self, room_id: UUID, received: Received) -> None:
        if isinstance(received, Gap):
            return  # clients expire typing on their own
        event = TypingChanged.from_json(room_id, received)
        room = self._rooms.get(room_id)
        if event is not None and room is not None:
            # A follower that is behind may have been removed further on, and reads what is long past.
            for followed in room.live:
                if followed.inbox.wants_typing:
                    followed.inbox.offer(event)

    def _receive_presence(self, received: Received) -> None:
        if isinstance(received, Gap):
            return
        event = PresenceChanged.from_json(received)
        if event is not None:
            self._take_change(event)

    def take_profile(self, change: ProfileUpdated) -> None:
        """Deliver a profile to the followers that share a room with the user, and to the user's own."""
        if self._inboxes:
            event = ProfileChanged(
                change.user_id, change.username, change.avatar_url, change.display_name, change.metadata
            )
            self._take_change(event)

    def _take_change(self, event: UserChange) -> None:
        if len(self._changes) >= MAX_PENDING_CHANGES and event.user_id not in self._changes:
            self.miss_all()
            return
        self._changes.setdefault(event.user_id, {})[type(event)] = event
        self.task.wake()

    def _take_mark(self, change: ReadMarkMoved) -> None:
        if not self._inboxes:
            return
        if len(self._marks) >= MAX_PENDING_CHANGES:
            self.miss_all()
            return
        self._marks[change.room_id, change.user_id] = change
        self.task.wake()

    async def _deliver_marks(self) -> None:
        """Deliver read marks to the user's own followers, and to the others in a room that shows them."""
        marks, self._marks = self._marks, {}
        time_slice = TimeSlice()
        for (room_id, user_id), change in marks.items():
            room = self._rooms.get(change.room_id)
            event = ReadMarkChanged(change.room_id, change.user_id, change.last_read_seq)
            own = [inbox for inbox in self._inboxes.get(user_id, ()) if room_id in inbox.positions]
            recipients = dict.fromkeys(own)
            for followed in room.positions if room is not None and change.is_shown else ():
                if followed in followed.room.live:
                    recipients[followed.inbox] = None
                elif followed.inbox not in recipients:
                    # It may have been removed further on. Then marks of others are not for it.
                    followed.inbox.miss()
            for inbox in recipients:
                if inbox.wants_read_marks:
                    inbox.offer(event)
            await time_slice.pause_if_due()

    async def _notify(self) -> float:
        """Deliver read marks, and changes of presence and profiles to followers that share a room with the user.

        Changes of presence that come while PostgreSQL is unavailable are not delivered.
        """
        await self._deliver_marks()
        changes, self._changes = self._changes, {}
        user_ids = list(changes)
        for start in range(0, len(user_ids), PRESENCE_USERS_PER_STATEMENT):
            some = user_ids[start : start + PRESENCE_USERS_PER_STATEMENT]
            try:
                pairs = await self._memberships.pairs(some)
            except Unavailable as error:
                logger.info("followers were not notified of presence and profiles: %s", error)
                self.miss_all()
                continue
            await self._deliver({user_id: changes[user_id] for user_id in some}, pairs)
        return inf

    async def _deliver(
        self,
        changes: Mapping[UUID, Mapping[type[UserChange], UserChange]],
        pairs: Iterable[tuple[UUID, UUID]],
    ) -> None:
        """Each inbox gets a change once, in the same step in which it is found to share a room with the user."""
        given = defaultdict[tuple[UUID, type[UserChange]], set[Inbox]](set)
        time_slice = TimeSlice()
        for user_id, of_user in changes.items():
            if ProfileChanged in of_user:
                own = (inbox for inbox in self._inboxes.get(user_id, ()) if inbox.wants_profiles)
                _offer(of_user[ProfileChanged], own, given[user_id, ProfileChanged])
                await time_slice.pause_if_due()
        for user_id, room_id in pairs:
            if (room := self._rooms.get(room_id)) is not None:
                for kind, event in changes[user_id].items():
                    _offer(event, _recipients(room, kind), given[user_id, kind])
            await time_slice.pause_if_due()


def _offer(event: UserChange, inboxes: Iterable[Inbox], given: set[Inbox]) -> None:
    """Offer the event to the inboxes that have not been given it."""
    new = {*inboxes} - given
    given |= new
    for inbox in new:
        inbox.offer(event)


def _recipients(room: FollowedRoom, kind: type[UserChange]) -> Iterable[Inbox]:
    """Also followers that are behind, unless their user was removed further on in the log."""
    inboxes = (followed.inbox for followed in room.positions)
    return (one for one in inboxes if one.wants(kind, room.id) and one.user_id not in room.left_users)


def discard(groups: dict[K, dict[V, None]], key: K, value: V) -> None:
    """Take the value out of its group, and the group away with its last value."""
    group = groups.get(key, {})
    group.pop(value, None)
    if not group:
        groups.pop(key, None)
