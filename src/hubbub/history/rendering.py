"""From the rows of a room to the lines that say the same."""

from __future__ import annotations

from datetime import datetime
from typing import TypedDict
from uuid import UUID

import msgspec

from hubbub.history.forms import (
    NO_METADATA,
    ChangeLine,
    DeleteLine,
    EditLine,
    Entry,
    JoinLine,
    LeaveLine,
    MemberLine,
    MessageLine,
    RoleLine,
    RoomLine,
    UserLine,
)
from hubbub.history.rows import EventRow, MemberRow, MessageRow, RoomRow, UserRow
from hubbub.models import MessageType, Role


class _Payload(msgspec.Struct, frozen=True):
    role: Role | None = None
    name: str = ""
    description: str | None = None
    is_private: bool = False
    keeps_receipts: bool | msgspec.UnsetType | None = msgspec.UNSET


_payload = msgspec.json.Decoder(_Payload).decode


class _Place(TypedDict):
    """Where and by whom: what every entry of a log says."""

    at: datetime
    room: str
    user: str | None
    room_id: UUID
    user_id: UUID | None
    seq: int


def user_line(user: UserRow) -> UserLine:
    return UserLine(
        id=user.id, user=user.username, email=user.email, avatar_url=user.avatar_url, at=user.created_at
    )


def room_line(room: RoomRow, direct: tuple[UUID, UUID] | None) -> RoomLine:
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
    )


def message_line(room: RoomRow, said: MessageRow, author: str | None) -> MessageLine:
    return MessageLine(
        at=said.created_at,
        room=room.name,
        user=author,
        room_id=room.id,
        user_id=said.user_id,
        seq=said.seq,
        id=said.id,
        content=said.content,
        message_type=MessageType(said.message_type),
        is_edited=said.is_edited,
        updated_at=None if said.updated_at == said.created_at else said.updated_at,
        deleted_at=said.deleted_at,
        reply_to=said.reply_to,
        metadata=NO_METADATA if said.metadata is None else msgspec.Raw(said.metadata.encode()),
    )


def event_line(room: RoomRow, event: EventRow, name: str | None) -> Entry:
    place = _Place(
        at=event.created_at, room=room.name, user=name, room_id=room.id, user_id=event.user_id, seq=event.seq
    )
    payload = _payload(event.payload)
    match event.kind, event.message_id:
        case "edited", UUID() as about:
            return EditLine(**place, message_id=about)
        case "deleted", UUID() as about:
            return DeleteLine(**place, message_id=about)
        case "joined", _:
            return JoinLine(**place, role=payload.role)
        case "left", _:
            return LeaveLine(**place)
        case "role_changed", _:
            return RoleLine(**place, role=payload.role or Role.MEMBER)
        case _:
            return ChangeLine(
                **place,
                name=payload.name,
                description=payload.description,
                is_private=payload.is_private,
                keeps_receipts=payload.keeps_receipts,
            )


def member_line(room: RoomRow, member: MemberRow, name: str | None) -> MemberLine:
    return MemberLine(
        at=member.joined_at,
        room=room.name,
        user=name,
        room_id=room.id,
        user_id=member.user_id,
        seq=room.last_seq,
        role=Role(member.role),
        joined_seq=member.joined_seq,
        last_read_seq=member.last_read_seq,
        last_read_message_id=member.last_read_message_id,
    )
