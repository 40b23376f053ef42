"""What happens in a chat, one type an event.

Those with a `seq` are entries of the log of a room, and can be resumed from their `cursor`. The others are said
once and kept nowhere.

The channels and the JSON keys of what travels through Redis are those of the seed, so that a program in another
language can take part: `{"userId": ..., "isOnline": ...}` on `presence`, and `{"userId": ..., "isTyping": ...}` on
`typing:` with the id of the room. Keys that are not known are skipped.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from hubbub.models import Message, ResyncReason, Role

PRESENCE_CHANNEL: Final = "presence"

# What a payload can do to the decoder: bad JSON or other types, bytes that are no UTF-8, lists in lists in lists.
NOT_AN_EVENT: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def typing_channel(room_id: UUID) -> str:
    """Where starts and stops of typing in this room are published."""
    return f"typing:{room_id}"


class PresenceChanged(msgspec.Struct, frozen=True, tag_field="type", tag="presence_changed"):
    """A user came online, with the first of their devices, or went offline, with the last."""

    user_id: UUID
    is_online: bool

    def to_json(self) -> str:
        """The payload on the channel."""
        return msgspec.json.encode(_Presence(self.user_id, self.is_online)).decode()

    @classmethod
    def from_json(cls, payload: bytes) -> PresenceChanged | None:
        """The event in a payload, None for one that is something else."""
        try:
            presence = msgspec.json.decode(payload, type=_Presence)
        except NOT_AN_EVENT:
            return None
        return cls(presence.user_id, presence.is_online)


class _Presence(msgspec.Struct, frozen=True, rename="camel"):
    user_id: UUID
    is_online: bool


class TypingChanged(msgspec.Struct, frozen=True, tag_field="type", tag="typing_changed"):
    """A member of the room started typing, or stopped."""

    room_id: UUID
    user_id: UUID
    is_typing: bool

    def to_json(self) -> str:
        """The payload on the channel, whose name says the room."""
        return msgspec.json.encode(_Typing(self.user_id, self.is_typing)).decode()

    @classmethod
    def from_json(cls, room_id: UUID, payload: bytes) -> TypingChanged | None:
        """The event in a payload from the channel of this room, None for one that is something else."""
        try:
            typing = msgspec.json.decode(payload, type=_Typing)
        except NOT_AN_EVENT:
            return None
        return cls(room_id, typing.user_id, typing.is_typing)


class _Typing(msgspec.Struct, frozen=True, rename="camel"):
    user_id: UUID
    is_typing: bool


class Logged(msgspec.Struct, frozen=True, tag_field="type"):
    """An entry of a room's log. `seq` is its place; a client keeps `cursor` to go on from after it."""

    room_id: UUID
    seq: int
    cursor: str
    at: datetime


class MessageSent(Logged, frozen=True, tag="message_sent"):
    """A new message, as it is now: when it is read later it may have been edited, or be a tombstone."""

    message: Message


class MessageEdited(Logged, frozen=True, tag="message_edited"):
    """A message has other content. `message` is as it is now; `by` is who edited it."""

    by: UUID | None
    message: Message


class MessageDeleted(Logged, frozen=True, tag="message_deleted"):
    """A message is gone; `message` is the tombstone, `by` who deleted it."""

    by: UUID | None
    message: Message


class MemberJoined(Logged, frozen=True, tag="member_joined"):
    """A user is in the room now."""

    user_id: UUID
    role: Role


class MemberLeft(Logged, frozen=True, tag="member_left"):
    """A user left or was removed. For that user it is the last entry, until the user joins again."""

    user_id: UUID


class RoleChanged(Logged, frozen=True, tag="role_changed"):
    """A member has another role."""

    user_id: UUID
    role: Role


class RoomChanged(Logged, frozen=True, tag="room_changed"):
    """The room has another name, description, privacy or receipts setting; `by` is who changed it."""

    by: UUID | None
    name: str
    description: str | None
    is_private: bool
    keeps_receipts: bool | None = None


LogEvent = MessageSent | MessageEdited | MessageDeleted | MemberJoined | MemberLeft | RoleChanged | RoomChanged


class RoomGone(msgspec.Struct, frozen=True, tag_field="type", tag="room_gone"):
    """There is nothing more to read here: the room was deleted, and its log with it, or the user is no member any
    more and was not there to hear of the leaving."""

    room_id: UUID


class Resync(msgspec.Struct, frozen=True, tag_field="type", tag="resync"):
    """What a client has of this room cannot be continued: load it anew, then go on from `cursor`.

    `rewound`: the log does not hold what the client has seen, after a restore or a failover that lost commits.
    `too_far_behind`: more than `Options.follow_at_most_behind` entries came since, a page is quicker.
    """

    room_id: UUID
    cursor: str
    reason: ResyncReason


FeedEvent = LogEvent | RoomGone | Resync | TypingChanged | PresenceChanged


class LogPage(msgspec.Struct, frozen=True):
    """A part of the log of a room, in its order. `cursor` is where to go on from; None in a log without entries.

    A `Resync` alone on the page says that the log is not the one that the cursor was from.
    """

    room_id: UUID
    items: list[LogEvent | Resync]
    cursor: str | None
    has_more: bool
