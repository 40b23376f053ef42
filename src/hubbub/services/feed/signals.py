"""What is said once and kept nowhere, for followers that want it: who types, who comes and goes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Final
from uuid import UUID

from hubbub.errors import Unavailable
from hubbub.events import PRESENCE_CHANNEL, PresenceChanged, TypingChanged, typing_channel
from hubbub.redis import Gap
from hubbub.repositories.messages import Readers
from hubbub.services.feed.rooms import FollowedRooms

if TYPE_CHECKING:
    from hubbub.redis import CallbackSubscription, Received, Subscriptions
    from hubbub.services.feed.followed_room import FollowedRoom
    from hubbub.services.feed.follower import Follower
    from hubbub.services.feed.place import Place

logger = logging.getLogger("hubbub.feed")

# Changes of presence whose rooms are looked up in one statement: each user may be in a thousand, and all rows
# of the answer are read in one step. And how many changes wait for it at most.
TOGETHER: Final = 20
MOST_WAITING: Final = 10_000


class Signals:
    """Gives typing and presence to those of the followers that want them, for the rooms that they follow.

    The subscriptions are made with the first that wants them, and given up with the last.
    """

    def __init__(self, subscriptions: Subscriptions, readers: Readers, rooms: FollowedRooms) -> None:
        self._subscriptions = subscriptions
        self._readers = readers
        self._rooms = rooms
        self._typing: dict[UUID, dict[Place, None]] = {}
        self._typing_bells: dict[UUID, CallbackSubscription] = {}
        self._watchers = 0
        self._presence_bell: CallbackSubscription | None = None
        self._changes: dict[UUID, PresenceChanged] = {}  # the newest of each user
        self._looking: asyncio.Task[None] | None = None

    def enter(self, follower: Follower) -> None:
        """The follower is there now."""
        if follower.wants_presence:
            self._watchers += 1
            if self._presence_bell is None:
                self._presence_bell = self._subscriptions.subscribe_soon_with(
                    PRESENCE_CHANNEL, self._hear_presence
                )

    def leave(self, follower: Follower) -> None:
        """The follower that has entered is gone."""
        if follower.wants_presence:
            self._watchers -= 1
            if not self._watchers and self._presence_bell is not None:
                self._presence_bell.unsubscribe()
                self._presence_bell = None

    def begin(self, place: Place) -> None:
        """A follower follows a room."""
        room_id = place.room.id
        if place.follower.wants_typing:
            self._typing.setdefault(room_id, {})[place] = None
            if room_id not in self._typing_bells:
                hear = partial(self._hear_typing, room_id)
                bell = self._subscriptions.subscribe_soon_with(typing_channel(room_id), hear)
                self._typing_bells[room_id] = bell

    def end(self, place: Place) -> None:
        """And does no more."""
        places = self._typing.get(place.room.id, {})
        places.pop(place, None)
        if place.follower.wants_typing and not places:
            self._typing.pop(place.room.id, None)
            if bell := self._typing_bells.pop(place.room.id, None):
                bell.unsubscribe()

    async def close(self) -> None:
        """Tell no more."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    def _hear_typing(self, room_id: UUID, heard: Received) -> None:
        if isinstance(heard, Gap):
            return  # a client lets typing fade by itself
        event = TypingChanged.from_json(room_id, heard)
        if event is not None:
            for place in tuple(self._typing.get(room_id, ())):
                # Who is behind may have been removed further on, and would hear of now among what is long past.
                if place in place.room.live:
                    place.follower.signal(event)

    def _hear_presence(self, heard: Received) -> None:
        if isinstance(heard, Gap):
            return
        event = PresenceChanged.from_json(heard)
        if event is None or (len(self._changes) >= MOST_WAITING and event.user_id not in self._changes):
            return
        self._changes[event.user_id] = event
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._tell(), name="hubbub: tell who comes and goes")

    async def _tell(self) -> None:
        """To those who share a room with them. What comes while PostgreSQL is away is not told."""
        while self._changes:
            changes, self._changes = self._changes, {}
            user_ids = list(changes)
            for start in range(0, len(user_ids), TOGETHER):
                try:
                    pairs = await self._readers.rooms_of_all(user_ids[start : start + TOGETHER])
                except Unavailable as error:
                    logger.info("followers were not told who came and went: %s", error)
                    continue
                self._tell_rooms(pairs, changes)

    def _tell_rooms(self, pairs: Iterable[tuple[UUID, UUID]], changes: dict[UUID, PresenceChanged]) -> None:
        told: dict[UUID, set[Follower]] = {}
        for user_id, room_id in pairs:
            room = self._rooms.get(room_id)
            if room is not None:
                told.setdefault(user_id, set()).update(_wanting(room))
        for user_id, followers in told.items():
            for follower in followers:
                follower.signal(changes[user_id])


def _wanting(room: FollowedRoom) -> Iterable[Follower]:
    """Who hears of the presence of members: also who is behind, unless they were removed further on in the log."""
    followers = (place.follower for place in room.places)
    return (one for one in followers if one.wants_presence and one.user_id not in room.gone)
