"""What an export reads: the rows of a room, and the statements that find them."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from hubbub.postgres import Statement


class RoomRow(NamedTuple):
    id: UUID
    name: str
    description: str | None
    is_private: bool
    created_by: UUID | None
    created_at: datetime
    updated_at: datetime
    keeps_receipts: bool | None
    direct_key: bytes | None
    last_seq: int


ROOM = Statement(
    "history.export_room",
    RoomRow,
    """
    SELECT
        id,
        name,
        description,
        is_private,
        created_by,
        created_at,
        updated_at,
        keeps_receipts,
        direct_key,
        last_seq
    FROM rooms
    WHERE id = $1
    """,
)

# A direct room begins with its two members joining.
PAIR = Statement(
    "history.export_pair",
    lambda user_id: user_id,
    """
    SELECT user_id
    FROM room_events
    WHERE room_id = $1
        AND seq <= 2
        AND kind = 'joined'
    ORDER BY seq
    """,
)


class MessageRow(NamedTuple):
    id: UUID
    seq: int
    user_id: UUID | None
    content: str
    message_type: str
    is_edited: bool
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None
    reply_to: UUID | None
    metadata: str | None


MESSAGES = Statement(
    "history.export_messages",
    MessageRow,
    """
    SELECT
        id,
        seq,
        user_id,
        content,
        message_type,
        is_edited,
        created_at,
        updated_at,
        deleted_at,
        reply_to,
        metadata
    FROM messages
    WHERE room_id = $1
        AND seq > $2
        AND seq <= $3
    ORDER BY seq
    """,
)


class EventRow(NamedTuple):
    seq: int
    kind: str
    message_id: UUID | None
    user_id: UUID | None
    payload: str
    created_at: datetime


EVENTS = Statement(
    "history.export_events",
    EventRow,
    """
    SELECT
        seq,
        kind,
        message_id,
        user_id,
        payload,
        created_at
    FROM room_events
    WHERE room_id = $1
        AND seq > $2
        AND seq <= $3
    ORDER BY seq
    """,
)


class MemberRow(NamedTuple):
    user_id: UUID
    joined_at: datetime
    role: str
    joined_seq: int
    last_read_seq: int
    last_read_message_id: UUID | None


MEMBERS = Statement(
    "history.export_members",
    MemberRow,
    """
    SELECT
        user_id,
        joined_at,
        role,
        joined_seq,
        last_read_seq,
        last_read_message_id
    FROM room_users
    WHERE room_id = $1
        AND user_id > $2
    ORDER BY user_id
    LIMIT $3
    """,
)


class UserRow(NamedTuple):
    id: UUID
    username: str
    email: str
    avatar_url: str | None
    created_at: datetime


USERS = Statement(
    "history.export_users",
    UserRow,
    """
    SELECT
        id,
        username,
        email,
        avatar_url,
        created_at
    FROM users
    WHERE id = ANY($1::uuid[])
    ORDER BY id
    """,
)
