"""An export: one room as the lines that an import takes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Self
from uuid import UUID

import msgspec

from hubbub.errors import NotFound
from hubbub.events import Payload
from hubbub.history.lines import (
    EVENT_LINES,
    NO_METADATA,
    PAYLOAD_FIELDS,
    AnyLine,
    EventLine,
    MemberLine,
    MessageLine,
    RoomLine,
    UserLine,
)
from hubbub.models import Message, MessageType, Room, RoomUser, User, decode_stored
from hubbub.postgres import OpenTransaction, Pool, Replicas, Statement
from hubbub.repositories.rooms import direct_key
from hubbub.sql import columns, message_bytes, not_deleted, readable, require

ROWS_PER_PIECE: Final = 500
"""Entries of the log, or members, that become lines in one step of the event loop."""
BYTES_PER_PIECE: Final = 1024 * 1024
"""After this much content the next piece begins, since 500 of the longest messages are 40 MB."""


class RoomRow(Room, frozen=True, gc=False):
    direct_key: bytes | None = None


class MessageRow(Message, frozen=True, gc=False):
    found: int = 0
    """How many messages there are without the bound in bytes."""

    @classmethod
    def of_rows(cls, rows: Sequence[Any]) -> list[Self]:
        """The values of rows, with type and metadata as they are stored, as texts."""
        return [cls(*row) for row in rows]


class EventRow(msgspec.Struct, frozen=True, gc=False):
    seq: int
    kind: str
    message_id: UUID | None
    user_id: UUID | None
    payload: str
    created_at: datetime


class MemberRow(RoomUser, frozen=True, gc=False):
    joined_seq: int = 0


ROOM = Statement(
    "history.export_room",
    RoomRow,
    f"""
    SELECT {readable(RoomRow, computed={"is_direct": "direct_key IS NOT NULL"})}
    FROM rooms
    WHERE id = $1
        AND {not_deleted("$1")}
    """,
)

# The log of a direct room begins with the joining of its two members.
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

MESSAGES = Statement(
    "history.export_messages",
    MessageRow,
    f"""
    SELECT {columns(MessageRow)}
    FROM (
        SELECT
            {readable(Message)},
            count(*) OVER () AS found,
            sum({message_bytes("messages")})
                OVER (ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS earlier_bytes
        FROM messages
        WHERE room_id = $1
            AND seq > $2
            AND seq <= $3
    ) AS counted
    WHERE earlier_bytes IS NULL
        OR earlier_bytes <= $4
    ORDER BY seq
    """,
)

EVENTS = Statement(
    "history.export_events",
    EventRow,
    f"""
    SELECT {readable(EventRow)}
    FROM room_events
    WHERE room_id = $1
        AND seq > $2
        AND seq <= $3
    ORDER BY seq
    """,
)

MEMBERS = Statement(
    "history.export_members",
    MemberRow,
    f"""
    SELECT {readable(MemberRow)}
    FROM room_users
    WHERE room_id = $1
        AND user_id > $2
        AND {not_deleted("room_users.user_id")}
    ORDER BY user_id
    LIMIT $3
    """,
)

USERS = Statement(
    "history.export_users",
    User,
    f"""
    SELECT {readable(User)}
    FROM users
    WHERE id = ANY($1::uuid[])
        AND {not_deleted("users.id")}
    ORDER BY id
    """,
)

_encode = msgspec.json.Encoder().encode


async def export(pool: Pool, room_id: UUID, replicas: Replicas | None) -> AsyncGenerator[bytes, None]:
    """As `History.lines`."""
    if replicas is not None:
        pool = await replicas.pool()
    async with pool.transaction() as transaction:
        await transaction.use_one_snapshot()
        room = require(await transaction.fetch_one(ROOM, room_id), NotFound, "room", room_id)
        async for lines in _Export(transaction, room).run():
            yield b"".join(_encode(line) + b"\n" for line in lines)


class _Export:
    """Users are introduced by a line of their own before other lines refer to them, the others by their id alone.

    `_names` has the username of each user that was looked up, with None for a deleted account.
    """

    def __init__(self, transaction: OpenTransaction, room: RoomRow) -> None:
        self._transaction = transaction
        self._room = room
        self._names: dict[UUID, str | None] = {}

    async def run(self) -> AsyncIterator[list[AnyLine]]:
        room = self._room
        direct = await self._direct()
        users = await self._introduce([room.created_by, *(direct or ())])
        yield [*users, _room_line(room, direct)]
        done = 0
        while done < room.last_seq:
            last = min(done + ROWS_PER_PIECE, room.last_seq)
            messages = await self._transaction.fetch_all(MESSAGES, room.id, done, last, BYTES_PER_PIECE)
            if messages and len(messages) < messages[0].found:
                last = messages[-1].seq
            yield await self._entries(messages, done, last)
            done = last
        after = UUID(int=0)
        while members := await self._transaction.fetch_all(MEMBERS, room.id, after, ROWS_PER_PIECE):
            users = await self._introduce(member.user_id for member in members)
            yield [*users, *(self._member_line(member) for member in members)]
            after = members[-1].user_id

    async def _direct(self) -> tuple[UUID, UUID] | None:
        """The two members of a direct room, of which the room itself has only a hash."""
        if self._room.direct_key is None:
            return None
        match await self._transaction.fetch_all(PAIR, self._room.id):
            case [UUID() as first, UUID() as second] if direct_key(first, second) == self._room.direct_key:
                return first, second
        return None

    async def _introduce(self, ids: Iterable[UUID | None]) -> list[AnyLine]:
        """Lines for the users that have none so far."""
        new = {id for id in ids if id is not None and id not in self._names}
        if not new:
            return []
        users = await self._transaction.fetch_all(USERS, new)
        self._names |= dict.fromkeys(new) | {user.id: user.username for user in users}
        return [
            UserLine(
                id=one.id,
                user=one.username,
                email=one.email,
                avatar_url=one.avatar_url,
                at=one.created_at,
                display_name=one.display_name,
                metadata=_raw(one.metadata),
                user_kind=one.kind,
                external_id=one.external_id,
            )
            for one in users
        ]

    async def _entries(self, messages: list[MessageRow], after: int, last: int) -> list[AnyLine]:
        events = await self._transaction.fetch_all(EVENTS, self._room.id, after, last)
        users = await self._introduce([*(one.user_id for one in messages), *(one.user_id for one in events)])
        entries = [*map(self._message_line, messages), *map(self._event_line, events)]
        entries.sort(key=lambda entry: entry.seq or 0)
        return [*users, *entries]

    def _common(self, user_id: UUID | None, seq: int, at: datetime) -> dict[str, Any]:
        """The fields that all lines about a room have."""
        user = None if user_id is None else self._names[user_id]
        room = self._room
        return {"at": at, "room": room.name, "user": user, "room_id": room.id, "user_id": user_id, "seq": seq}

    def _message_line(self, row: MessageRow) -> MessageLine:
        return MessageLine(
            **self._common(row.user_id, row.seq, row.created_at),
            id=row.id,
            content=row.content,
            message_type=MessageType(row.message_type),
            is_edited=row.is_edited,
            updated_at=None if row.updated_at == row.created_at else row.updated_at,
            deleted_at=row.deleted_at,
            reply_to=row.reply_to,
            metadata=NO_METADATA if row.metadata is None else msgspec.Raw(str(row.metadata).encode()),
        )

    def _event_line(self, row: EventRow) -> EventLine:
        line = EVENT_LINES[row.kind]
        values: dict[str, Any] = {"message_id": row.message_id} if "message_id" in line.__struct_fields__ else {}
        stored = decode_stored(row.payload)
        payload = stored if isinstance(stored, dict) else {}  # as another program may have written it
        for field in PAYLOAD_FIELDS[line]:
            if field.name in payload:
                values[field.name] = payload[field.name]
            elif field.required:
                values[field.name] = getattr(_NO_PAYLOAD, field.name)
        return line(**self._common(row.user_id, row.seq, row.created_at), **values)

    def _member_line(self, row: MemberRow) -> MemberLine:
        return MemberLine(
            **self._common(row.user_id, self._room.last_seq, row.joined_at),
            role=row.role,
            joined_seq=row.joined_seq,
            last_read_seq=row.last_read_seq,
            last_read_message_id=row.last_read_message_id,
            metadata=_raw(row.metadata),
        )


_NO_PAYLOAD: Final = Payload()


def _raw(metadata: Mapping[str, Any] | None) -> msgspec.Raw:
    return NO_METADATA if metadata is None else msgspec.Raw(_encode(metadata))


def _room_line(room: RoomRow, direct: tuple[UUID, UUID] | None) -> RoomLine:
    return RoomLine(
        id=room.id,
        room=room.name,
        at=room.created_at,
        description=room.description,
        is_private=room.is_private,
        created_by=room.created_by,
        updated_at=None if room.updated_at == room.created_at else room.updated_at,
        keeps_receipts=room.keeps_receipts,
        direct=direct,
        metadata=_raw(room.metadata),
    )
