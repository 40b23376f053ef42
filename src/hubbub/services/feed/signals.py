"""Typing and presence in a feed: events that are delivered once, to followers that want them, and kept nowhere."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final
from uuid import UUID

from hubbub.background import BackgroundTask
from hubbub.errors import Unavailable
from hubbub.events import PRESENCE_CHANNEL, PresenceChanged, TypingChanged, typing_channel
from hubbub.redis import Gap
from hubbub.services.feed.memberships import Memberships
from hubbub.services.feed.rooms import FollowedPosition, FollowedRoom, FollowedRooms, Inbox

if TYPE_CHECKING:
    from hubbub.redis import CallbackSubscription, Received, Subscriptions

logger = logging.getLogger("hubbub.feed")

USERS_PER_STATEMENT: Final = 20
"""Changes of presence whose rooms are read in one statement. Each user may be in a thousand rooms, and all rows
are decoded in one step of the event loop."""
MAX_WAITING: Final = 10_000
"""Users whose presence has changed and whose rooms are still to be read. Changes of more users are dropped."""


class Signals:
    """Gives typing and presence to the followers that want them, for the rooms that they follow.

    The subscriptions are made with the first such follower, and end with the last.
    """

    def __init__(self, subscriptions: Subscriptions, memberships: Memberships, rooms: FollowedRooms) -> None:
        self._subscriptions = subscriptions
        self._memberships = memberships
        self._rooms = rooms
        self._typing: dict[UUID, dict[FollowedPosition, None]] = {}
        self._typing_subscriptions: dict[UUID, CallbackSubscription] = {}
        self._watchers = 0
        self._presence_subscription: CallbackSubscription | None = None
        self._changes: dict[UUID, PresenceChanged] = {}  # the newest of each user
        self._notifying = BackgroundTask("notifying followers of presence", self._notify)

    def start(self) -> None:
        self._notifying.start()

    async def close(self) -> None:
        await self._notifying.close()

    def enter(self, inbox: Inbox) -> None:
        """A follower has entered."""
        if inbox.wants_presence:
            self._watchers += 1
            if self._presence_subscription is None:
                self._presence_subscription = self._subscriptions.subscribe_soon_with(
                    PRESENCE_CHANNEL, self._receive_presence
                )

    def leave(self, inbox: Inbox) -> None:
        """A follower that had entered is closed."""
        if inbox.wants_presence:
            self._watchers -= 1
            if not self._watchers and self._presence_subscription is not None:
                self._presence_subscription.unsubscribe()
                self._presence_subscription = None

    def follow(self, followed: FollowedPosition) -> None:
        """A follower has a position in a room."""
        room_id = followed.room.id
        if followed.inbox.wants_typing:
            self._typing.setdefault(room_id, {})[followed] = None
            if room_id not in self._typing_subscriptions:
                receive = partial(self._receive_typing, room_id)
                subscription = self._subscriptions.subscribe_soon_with(typing_channel(room_id), receive)
                self._typing_subscriptions[room_id] = subscription

    def unfollow(self, followed: FollowedPosition) -> None:
        """The position has ended."""
        room_id = followed.room.id
        positions = self._typing.get(room_id, {})
        positions.pop(followed, None)
        if followed.inbox.wants_typing and not positions:
            self._typing.pop(room_id, None)
            if subscription := self._typing_subscriptions.pop(room_id, None):
                subscription.unsubscribe()

    def _receive_typing(self, room_id: UUID, received: Received) -> None:
        if isinstance(received, Gap):
            return  # a client lets typing expire by itself
        event = TypingChanged.from_json(room_id, received)
        if event is not None:
            for followed in tuple(self._typing.get(room_id, ())):
                # A follower that is behind may have been removed further on, and reads what is long past.
                if followed in followed.room.live:
                    followed.inbox.offer(event)

    def _receive_presence(self, received: Received) -> None:
        if isinstance(received, Gap):
            return
        event = PresenceChanged.from_json(received)
        if event is None or (len(self._changes) >= MAX_WAITING and event.user_id not in self._changes):
            return
        self._changes[event.user_id] = event
        self._notifying.wake()

    async def _notify(self) -> float:
        """Deliver changes of presence to the followers that share a room with the user.

        Changes that come while PostgreSQL is unavailable are not delivered.
        """
        changes, self._changes = self._changes, {}
        user_ids = list(changes)
        for start in range(0, len(user_ids), USERS_PER_STATEMENT):
            try:
                pairs = await self._memberships.pairs(user_ids[start : start + USERS_PER_STATEMENT])
            except Unavailable as error:
                logger.info("followers were not notified of presence: %s", error)
                continue
            self._deliver(pairs, changes)
        return inf

    def _deliver(self, pairs: Iterable[tuple[UUID, UUID]], changes: dict[UUID, PresenceChanged]) -> None:
        recipients: dict[UUID, set[Inbox]] = {}
        for user_id, room_id in pairs:
            room = self._rooms.get(room_id)
            if room is not None:
                recipients.setdefault(user_id, set()).update(_presence_recipients(room))
        for user_id, inboxes in recipients.items():
            for inbox in inboxes:
                inbox.offer(changes[user_id])


def _presence_recipients(room: FollowedRoom) -> Iterable[Inbox]:
    """Also followers that are behind, unless their user was removed further on in the log."""
    inboxes = (followed.inbox for followed in room.positions)
    return (one for one in inboxes if one.wants_presence and one.user_id not in room.left_users)
