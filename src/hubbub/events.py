"""Events of a chat, one type per event.

Events with a `seq` are entries of the log of a room, and can be resumed from their `cursor`. The others are
published once and are not stored.

Events that pass through Redis have the channels and JSON keys of the original schema, so that a program in another
language can take part: `{"userId": ..., "isOnline": ...}` on `presence`, and `{"userId": ..., "isTyping": ...}` on
`typing:` with the id of the room. Unknown keys are skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar, Final, get_args
from uuid import UUID

import msgspec

from hubbub.models import Message, ResyncReason, Role, Value

PRESENCE_CHANNEL: Final = "presence"
MEMBERSHIPS_CHANNEL: Final = "memberships"
CHANGES_CHANNEL: Final = "room:changes"
"""One of the channels that the Redis users of running installations may use."""
_TYPING: Final = "typing:"
_ROOM: Final = "room:"
_OWN_PREFIXES: Final = (_TYPING, _ROOM)
_OWN_CHANNELS: Final = frozenset({PRESENCE_CHANNEL, MEMBERSHIPS_CHANNEL})

# The errors of decoding a payload: bad JSON or other types, bytes that are not UTF-8, too deep nesting.
DECODING_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def typing_channel(room_id: UUID) -> str:
    """The channel on which starts and stops of typing in this room are published."""
    return f"{_TYPING}{room_id}"


def room_channel(room_id: UUID) -> str:
    """The channel for announcements of this room's log."""
    return f"{_ROOM}{room_id}"


def is_own_channel(channel: str) -> bool:
    """Whether this channel is one of hubbub's, on which an application may neither publish nor listen."""
    return channel.startswith(_OWN_PREFIXES) or channel in _OWN_CHANNELS


class Event(Value, frozen=True, tag_field="type"):
    """The base of all events. In JSON an event has its `type` as a first field."""

    @property
    def type(self) -> str:
        """The name of the type in JSON, by which Pydantic finds the class: `Field(discriminator="type")`."""
        return str(self.__struct_config__.tag)


class PresenceChanged(Event, frozen=True, tag="presence_changed"):
    """A user came online, with the first of their devices, or went offline, with the last."""

    user_id: UUID
    is_online: bool

    def to_json(self) -> str:
        """The payload on the channel."""
        return msgspec.json.encode(_Presence(self.user_id, self.is_online)).decode()

    @classmethod
    def from_json(cls, payload: bytes) -> PresenceChanged | None:
        """The event in a payload, None for any other payload."""
        try:
            presence = msgspec.json.decode(payload, type=_Presence)
        except DECODING_ERRORS:
            return None
        return cls(presence.user_id, presence.is_online)


class _Presence(msgspec.Struct, frozen=True, rename="camel"):
    user_id: UUID
    is_online: bool


class TypingChanged(Event, frozen=True, tag="typing_changed"):
    """A member of the room started typing, or stopped."""

    room_id: UUID
    user_id: UUID
    is_typing: bool

    def to_json(self) -> str:
        """The payload on the channel, whose name has the room."""
        return msgspec.json.encode(_Typing(self.user_id, self.is_typing)).decode()

    @classmethod
    def from_json(cls, room_id: UUID, payload: bytes) -> TypingChanged | None:
        """The event in a payload from the channel of this room, None for any other payload."""
        try:
            typing = msgspec.json.decode(payload, type=_Typing)
        except DECODING_ERRORS:
            return None
        return cls(room_id, typing.user_id, typing.is_typing)


class _Typing(msgspec.Struct, frozen=True, rename="camel"):
    user_id: UUID
    is_typing: bool


class ReadMarkChanged(Event, frozen=True, tag="read_mark_changed"):
    """A member has read the room up to and including `last_read_seq`, or marked what follows as unread."""

    room_id: UUID
    user_id: UUID
    last_read_seq: int


class ProfileChanged(Event, frozen=True, tag="profile_changed"):
    """A user has another username, display name, picture or metadata. The fields have the current values."""

    user_id: UUID
    username: str
    avatar_url: str | None
    display_name: str | None = None
    metadata: Mapping[str, Any] | None = None

    def __hash__(self) -> int:
        return hash((self.user_id, self.username))


class Missed(Event, frozen=True, tag="missed"):
    """Read marks or profiles may have changed without an event: read them again."""


class LoggedEvent(Event, frozen=True):
    """An entry of a room's log, at the position `seq`. A client that keeps `cursor` can go on from after it.

    The fields that a type adds are stored in columns of the log: `user_id` and `by` in `user_id`, `message` by its
    id, and all others in the JSON `payload`.
    """

    kind: ClassVar[str]
    """The kind of the entry in PostgreSQL: a row of `messages` is `sent`, the others have it in `room_events`."""

    room_id: UUID
    seq: int
    cursor: str
    at: datetime

    def __hash__(self) -> int:
        return hash((self.room_id, self.seq))


class MessageSent(LoggedEvent, frozen=True, tag="message_sent"):
    """A new message in its current state. It may have been edited or deleted since it was sent."""

    kind = "sent"
    message: Message


class MessageEdited(LoggedEvent, frozen=True, tag="message_edited"):
    """A message has other content. `message` is its present state, `by` is the user who edited it."""

    kind = "edited"
    by: UUID | None
    message: Message


class MessageDeleted(LoggedEvent, frozen=True, tag="message_deleted"):
    """A message was deleted: `message` is the tombstone, `by` is the user who deleted it."""

    kind = "deleted"
    by: UUID | None
    message: Message


class MemberJoined(LoggedEvent, frozen=True, tag="member_joined"):
    """A user joined the room."""

    kind = "joined"
    user_id: UUID
    role: Role


class MemberLeft(LoggedEvent, frozen=True, tag="member_left"):
    """A user left or was removed. For that user it is the last entry, until the user joins again."""

    kind = "left"
    user_id: UUID


class RoleChanged(LoggedEvent, frozen=True, tag="role_changed"):
    """A member has another role."""

    kind = "role_changed"
    user_id: UUID
    role: Role


class MemberChanged(LoggedEvent, frozen=True, tag="member_changed"):
    """The membership of a user has other metadata."""

    kind = "member_changed"
    user_id: UUID
    metadata: Mapping[str, Any] | None


class RoomChanged(LoggedEvent, frozen=True, tag="room_changed"):
    """The room has another name, description, privacy, receipts setting or metadata, or several of these.

    They are as the change by `by` has left them.
    """

    kind = "room_changed"
    by: UUID | None
    name: str
    description: str | None
    is_private: bool
    keeps_receipts: bool | None = None
    metadata: Mapping[str, Any] | None = None


LogEvent = (
    MessageSent
    | MessageEdited
    | MessageDeleted
    | MemberJoined
    | MemberLeft
    | RoleChanged
    | MemberChanged
    | RoomChanged
)

KINDS: Final[Mapping[str, type[LogEvent]]] = {event.kind: event for event in get_args(LogEvent)}
"""The event of each kind of entry. All other lists of kinds are derived from this one or compared with it."""

MEMBER_KINDS: Final = tuple(kind for kind, event in KINDS.items() if "user_id" in event.__struct_fields__)
"""The kinds of entries about a member. In the others, the `user_id` of the row is that of the user who
made the change."""


class Payload(msgspec.Struct, frozen=True):
    """The fields of events in the JSON `payload`. A default stands for a field that an older entry lacks."""

    role: Role = Role.MEMBER
    name: str = ""
    description: str | None = None
    is_private: bool = False
    keeps_receipts: bool | None = None
    metadata: Mapping[str, Any] | None = None


class RoomGone(Event, frozen=True, tag="room_gone"):
    """The end of a room's log for this user: the room was deleted, or the user had left it while not following."""

    room_id: UUID


class Resync(Event, frozen=True, tag="resync"):
    """The client cannot continue this room from its cursor: reload the room, then continue from `cursor`.

    `rewound`: the log no longer holds entries that the client has seen, after a restore or a failover that lost
    commits. `too_far_behind`: more than `Options.follow_at_most_behind` entries came since, a page is quicker.
    """

    room_id: UUID
    cursor: str
    reason: ResyncReason


Signal = TypingChanged | PresenceChanged | ReadMarkChanged | ProfileChanged
"""Events that are published once, in no order with the entries of a log."""

FeedEvent = LogEvent | RoomGone | Resync | Signal | Missed


class LogPage(Value, frozen=True):
    """A part of the log of a room, in its order. The next page starts after `cursor`: None in an empty log.

    A `Resync` alone on the page means that the log was rewound since the cursor was made.
    """

    room_id: UUID
    items: list[LogEvent | Resync]
    cursor: str | None
    has_more: bool
