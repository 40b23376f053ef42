"""Committed changes, and the parts of a hub that act on them: a cache deletes entries, followers are notified.

A repository reports each change after its COMMIT. A part registers for the kinds of change that concern it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

import msgspec

from hubbub.models import Message

C = TypeVar("C", bound="Change")


class UserChanged(msgspec.Struct, frozen=True):
    """The profile or the online status of a user changed, or an import has created the user."""

    user_id: UUID


class UserDeleted(msgspec.Struct, frozen=True):
    """The account of a user was deleted. Reported in addition to the `UserChanged`."""

    user_id: UUID


class RoomTouched(msgspec.Struct, frozen=True):
    """The row of a room, its members or one of its messages changed. Its log has grown, or the room is deleted."""

    room_id: UUID


class RoomRewound(msgspec.Struct, frozen=True):
    """A follower had read entries that are no longer in the log of a room, because of a restore or a failover.

    Nothing was committed, but earlier reads of the room are out of date.
    """

    room_id: UUID


class MembersJoined(msgspec.Struct, frozen=True):
    """Memberships began. Reported in addition to the `RoomTouched` of the room."""

    room_id: UUID
    user_ids: tuple[UUID, ...]


class MembershipEnded(msgspec.Struct, frozen=True):
    """A membership ended. Reported in addition to the `RoomTouched` of the room."""

    room_id: UUID
    user_id: UUID


class MessagesSent(msgspec.Struct, frozen=True):
    """New messages, each an `events.MessageSent` for followers.

    A retry reports them again, because the attempt that committed may not have reported them.
    """

    messages: Sequence[Message]


class ReadMarkMoved(msgspec.Struct, frozen=True, omit_defaults=True):
    """A member has read more of a room, or less. `is_shown` is whether the room shows the others who has read.

    `is_back` is whether it is less. A former release announces it without this.
    """

    room_id: UUID
    user_id: UUID
    last_read_seq: int
    is_shown: bool
    is_back: bool = False


class ProfileUpdated(msgspec.Struct, frozen=True):
    """A user was given a name, picture or metadata. Reported in addition to the `UserChanged`.

    A former release announces it without the last two.
    """

    user_id: UUID
    username: str
    avatar_url: str | None
    display_name: str | None = None
    metadata: Mapping[str, Any] | None = None


Change = (
    UserChanged
    | UserDeleted
    | RoomTouched
    | RoomRewound
    | MembersJoined
    | MembershipEnded
    | MessagesSent
    | ReadMarkMoved
    | ProfileUpdated
)

# Called after the COMMIT, from the event loop. Changes that were made over several connections may come in another
# order than that of their commits. It must neither wait nor raise.
OnCommit = Callable[[Change], None]


def ignore(change: Change) -> None:
    """Do nothing, for a repository without a hub, whose changes concern no other part."""


class Commits:
    """Calls the parts of a hub for each change that they registered for, in the order of registration.

    All repositories call it, as their `OnCommit`.
    """

    def __init__(self) -> None:
        self._listeners: dict[type[Any], list[Callable[[Any], None]]] = {}

    def on(self, kind: type[C], listener: Callable[[C], None]) -> None:
        """Call `listener` with each change of this kind, after its COMMIT. It must neither wait nor raise."""
        self._listeners.setdefault(kind, []).append(listener)

    def __call__(self, change: Change) -> None:
        for listener in self._listeners.get(type(change), ()):
            listener(change)
