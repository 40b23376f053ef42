"""What the repositories tell the hub once a change is durable: caches forget it, and followers hear of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

import msgspec

from hubbub.models import Message


class UserChanged(msgspec.Struct, frozen=True):
    """The profile or the online status of a user, or that there is one."""

    user_id: UUID


class RoomChanged(msgspec.Struct, frozen=True):
    """The row of a room, its members or a message in it: its log has grown, or it is gone."""

    room_id: UUID


class RoomRewound(msgspec.Struct, frozen=True):
    """Somebody has seen entries of a room's log that are not there any more: a restore or a failover took them
    back. Nothing was committed; what was read before that is old."""

    room_id: UUID


class MembersJoined(msgspec.Struct, frozen=True):
    """Memberships began. Comes beside the `RoomChanged` of the room."""

    room_id: UUID
    user_ids: tuple[UUID, ...]


class MemberLeft(msgspec.Struct, frozen=True):
    """A membership ended. Comes beside the `RoomChanged` of the room."""

    room_id: UUID
    user_id: UUID


class MessagesSent(msgspec.Struct, frozen=True):
    """New messages. Told again on a retry: the try that was committed may have died before it could tell."""

    messages: Sequence[Message]


Change = UserChanged | RoomChanged | RoomRewound | MembersJoined | MemberLeft | MessagesSent

# Called after the COMMIT, in its order, from the event loop. It must neither wait nor raise.
Announce = Callable[[Change], None]


def to_nobody(change: Change) -> None:
    """For repositories that nobody listens to."""
