"""What a line of history says, one type a kind. docs/history.md has the table of their keys.

The plain form needs `kind` (message, join or leave), `room`, `user`, `at` and `content`. The richer form adds ids,
emails, roles, edits and tombstones, and the `seq` that makes a line an entry of a log as it was elsewhere.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final
from uuid import UUID

import msgspec

from hubbub.models import MessageType, Role

Instant = Annotated[datetime, msgspec.Meta(tz=True)]
Seq = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
Watermark = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]

# Left out of a line that is written, and what a line that leaves it out has.
NO_METADATA: Final = msgspec.Raw()


class Line(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True, tag_field="kind"):
    """Something that somebody did in a room. With `seq` it is the entry of that number in the log of the room."""

    at: Instant
    room: str | None = None
    user: str | None = None
    room_id: UUID | None = None
    user_id: UUID | None = None
    seq: Seq | None = None


class MessageLine(Line, frozen=True, kw_only=True, gc=False, tag="message"):
    """A message as it is now: edited where it was edited, without content where it was deleted."""

    id: UUID | None = None
    content: str = ""
    message_type: MessageType = MessageType.TEXT
    is_edited: bool = False
    updated_at: Instant | None = None
    deleted_at: Instant | None = None
    reply_to: UUID | None = None
    metadata: msgspec.Raw = NO_METADATA


class JoinLine(Line, frozen=True, kw_only=True, gc=False, tag="join"):
    role: Role | None = None


class LeaveLine(Line, frozen=True, kw_only=True, gc=False, tag="leave"):
    pass


class EditLine(Line, frozen=True, kw_only=True, gc=False, tag="edit"):
    """That a message was edited. What it says since stands in its own line."""

    message_id: UUID


class DeleteLine(Line, frozen=True, kw_only=True, gc=False, tag="delete"):
    """That a message was deleted. Its own line is the tombstone."""

    message_id: UUID


class RoleLine(Line, frozen=True, kw_only=True, gc=False, tag="role"):
    role: Role


class ChangeLine(Line, frozen=True, kw_only=True, gc=False, omit_defaults=False, tag="change"):
    """That the room was changed, and what it was from then on."""

    name: str
    description: str | None
    is_private: bool
    keeps_receipts: bool | msgspec.UnsetType | None = msgspec.UNSET  # older entries do not say


class MemberLine(Line, frozen=True, kw_only=True, gc=False, tag="member"):
    """A membership as it is once the log has come to `seq`. No entry of the log."""

    role: Role = Role.MEMBER
    joined_seq: Watermark = 0
    last_read_seq: Watermark = 0
    last_read_message_id: UUID | None = None


class UserLine(
    msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True, tag_field="kind", tag="user"
):
    """An account, of which the lines after it speak by its id."""

    at: Instant
    id: UUID
    user: str
    email: str
    avatar_url: str | None = None


class RoomLine(
    msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True, tag_field="kind", tag="room"
):
    """A room, of which the lines after it speak by its id. `direct` are the two people of a direct room."""

    at: Instant
    id: UUID
    room: str
    description: str | None = None
    is_private: bool = False
    created_by: UUID | None = None
    updated_at: Instant | None = None
    keeps_receipts: bool | None = None
    direct: tuple[UUID, UUID] | None = None


Entry = MessageLine | JoinLine | LeaveLine | EditLine | DeleteLine | RoleLine | ChangeLine
AnyLine = Entry | MemberLine | UserLine | RoomLine
