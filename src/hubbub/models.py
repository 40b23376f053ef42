"""What hubbub gives back: immutable values, one class a noun.

They are msgspec structs rather than dataclasses: a page builds 50 of them, and a frozen dataclass with slots
takes 1,090 ns each where a frozen struct takes 90 (docs/decisions.md). Fields stand in the order of the columns
that the SQL names, so a row is built as `Message(*row)`. Times are aware and in UTC.

Those that are built by the thousand are kept from the garbage collector, which was a quarter of the processor
time of pages and lookups: they hold values and JSON, nothing that could lead back to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Generic, Literal, TypeAlias, TypeVar
from uuid import UUID

import msgspec

from hubbub import positions

T = TypeVar("T")


# Why what a client has of a room cannot be continued: see `events.Resync`.
ResyncReason: TypeAlias = Literal["rewound", "too_far_behind"]


class Role(StrEnum):
    """What a member may do in a room. The first member of a room, its creator, is its admin."""

    ADMIN = "admin"
    MODERATOR = "moderator"
    MEMBER = "member"


class MessageType(StrEnum):
    """How the content of a message is to be read. hubbub stores it and gives it no other meaning."""

    TEXT = "text"
    IMAGE = "image"
    FILE = "file"


# Asking these costs a twentieth of asking the enum itself.
_ROLES = {role.value: role for role in Role}
_TYPES = {message_type.value: message_type for message_type in MessageType}


class User(msgspec.Struct, frozen=True, gc=False):
    """A person. The hash of the password is not part of it and never travels: see `Credentials`."""

    id: UUID
    email: str
    username: str
    avatar_url: str | None
    is_online: bool
    last_seen: datetime | None
    created_at: datetime
    updated_at: datetime


class Credentials(msgspec.Struct, frozen=True, gc=False):
    """What a login is checked against. Kept apart from `User` so that it cannot be sent by mistake."""

    user_id: UUID
    password_hash: str

    def __repr__(self) -> str:
        return f"Credentials(user_id={self.user_id!r}, password_hash=...)"


class Room(msgspec.Struct, frozen=True, gc=False):
    """A room. `last_seq` is the head of its log: the seq of its newest message or event, 0 in an empty room.

    `keeps_receipts` says whether there is a receipt for each message and reader: None, the default, means in
    direct rooms and as long as the room is small (`ReadReceipts`).
    """

    id: UUID
    name: str
    description: str | None
    is_private: bool
    is_direct: bool
    created_by: UUID | None
    last_seq: int
    created_at: datetime
    updated_at: datetime
    keeps_receipts: bool | None = None


class Message(msgspec.Struct, frozen=True, gc=False):
    """A message. `seq` is its place in the log of the room and the only order that holds.

    `user_id` is None once its author's account is deleted. A deleted message stays as a tombstone: `deleted_at`
    is set, `content` is empty and `metadata` None. `reply_to` is a message of the same room. `metadata` is what
    the application keeps with it, a JSON object; it is not to be changed in place, as callers who open one page at
    the same time share its messages.
    """

    id: UUID
    room_id: UUID
    seq: int
    user_id: UUID | None
    content: str
    message_type: MessageType
    is_edited: bool
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None
    reply_to: UUID | None = None
    metadata: Mapping[str, object] | None = None

    def __post_init__(self) -> None:
        if self.message_type.__class__ is not MessageType:  # as it comes from PostgreSQL
            message_type = _TYPES.get(self.message_type) or MessageType(self.message_type)
            msgspec.structs.force_setattr(self, "message_type", message_type)
        metadata: object = self.metadata
        if isinstance(metadata, str):  # as it comes from PostgreSQL; most messages have none
            msgspec.structs.force_setattr(self, "metadata", msgspec.json.decode(metadata))

    def __hash__(self) -> int:
        return hash(self.id)  # a mapping, as metadata is, has no hash

    @property
    def cursor(self) -> str:
        """Its place in the log, to follow the room from: for `hub.follow` and `hub.messages.since`."""
        return positions.Position(self.seq, positions.mark(self.id, self.created_at)).encode(self.room_id)


class NewMessage(msgspec.Struct, frozen=True):
    """A message that `send_many` is to send, its fields as in `send`."""

    content: str
    message_type: MessageType | str = MessageType.TEXT
    id: UUID | None = None
    reply_to: UUID | None = None
    metadata: Mapping[str, object] | None = None

    def __hash__(self) -> int:
        return hash((self.content, self.message_type, self.id, self.reply_to))


class RoomUser(msgspec.Struct, frozen=True, gc=False):
    """A membership. Everything up to and including `last_read_seq` has been read by this member.

    `last_read_message_id` is the newest message at or before it; None until the member has marked something as
    read: who joins has nothing unread, but has read nothing either.
    """

    room_id: UUID
    user_id: UUID
    joined_at: datetime
    role: Role
    last_read_message_id: UUID | None
    last_read_seq: int

    def __post_init__(self) -> None:
        if self.role.__class__ is not Role:  # as it comes from PostgreSQL
            msgspec.structs.force_setattr(self, "role", _ROLES.get(self.role) or Role(self.role))


class RoomSummary(msgspec.Struct, frozen=True, gc=False):
    """A room as one of its members sees it in a list.

    `unread` counts messages of others after the watermark, up to the cap that was asked for. `partner_id` is the
    other one in a direct room. `active_at` orders the list: when the newest message came, or the member joined.
    """

    room: Room
    role: Role
    last_read_seq: int
    unread: int
    partner_id: UUID | None
    last_message: Message | None
    active_at: datetime


class ReadReceipt(msgspec.Struct, frozen=True, gc=False):
    """That a member has read a message. `read_at` is None where the room keeps watermarks only (large rooms)."""

    message_id: UUID
    user_id: UUID
    read_at: datetime | None


class Page(msgspec.Struct, Generic[T], frozen=True):
    """One page of a list. `next` is the cursor of the page that follows, None on the last one."""

    items: list[T]
    next: str | None

    @property
    def has_more(self) -> bool:
        return self.next is not None


class MessagePage(msgspec.Struct, frozen=True):
    """Messages of one room, always in the order of the log: the oldest first.

    `has_older` and `has_newer` say whether the room has messages before the first and after the last one. An
    empty page of a room that has messages tells the same about the place that was asked for.
    """

    room_id: UUID
    items: list[Message]
    has_older: bool
    has_newer: bool


class Session(msgspec.Struct, frozen=True, gc=False):
    """Somebody logged in, on one device. `id` is safe to show and to revoke by; it is not the token.

    `data` is what the application keeps with it. `seen_at` is when it was last looked up, to the minute. However
    busy, it ends at `expires_at`.
    """

    id: str
    user_id: UUID
    data: Mapping[str, object]
    created_at: datetime
    seen_at: datetime
    expires_at: datetime

    def __hash__(self) -> int:
        return hash(self.id)


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """What a rate limit says: whether this one may pass, and how many more could right after it.

    `retry_after_seconds` is how long until as much may be asked again, 0 where it was allowed. `degraded` is True
    when nobody could be asked and the limit lets all pass meanwhile.
    """

    allowed: bool
    remaining: int
    retry_after_seconds: float
    degraded: bool = False
