"""An export: one room, as the lines that an import takes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

import msgspec

from hubbub.errors import NotFound
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
from hubbub.history.identities import direct_key
from hubbub.models import MessageType, Role
from hubbub.postgres import Pool, Statement, Transaction

# Entries of the log that are read at a time, and members.
PAGE: Final = 2_000


class _Room(NamedTuple):
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
    _Room,
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


class _Said(NamedTuple):
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
    _Said,
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


class _Event(NamedTuple):
    seq: int
    kind: str
    message_id: UUID | None
    user_id: UUID | None
    payload: str
    created_at: datetime


EVENTS = Statement(
    "history.export_events",
    _Event,
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


class _Member(NamedTuple):
    user_id: UUID
    joined_at: datetime
    role: str
    joined_seq: int
    last_read_seq: int
    last_read_message_id: UUID | None


MEMBERS = Statement(
    "history.export_members",
    _Member,
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


class _User(NamedTuple):
    id: UUID
    username: str
    email: str
    avatar_url: str | None
    created_at: datetime


USERS = Statement(
    "history.export_users",
    _User,
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


class _Payload(msgspec.Struct, frozen=True):
    role: Role | None = None
    name: str = ""
    description: str | None = None
    is_private: bool = False
    keeps_receipts: bool | msgspec.UnsetType | None = msgspec.UNSET


_payload = msgspec.json.Decoder(_Payload).decode
_encode = msgspec.json.Encoder().encode


async def export(pool: Pool, room_id: UUID) -> AsyncGenerator[bytes, None]:
    """The lines of a room, each with its end, some thousand at a time. Raises `NotFound`.

    All of them show the room as it was at one moment, however long it takes: one transaction sees one state.
    """
    async with pool.transaction() as transaction:
        await transaction.see_one_state()
        room = await transaction.fetch_one(ROOM, room_id)
        if room is None:
            raise NotFound("room", room_id)
        async for lines in _Export(transaction, room).run():
            yield b"".join(_encode(line) + b"\n" for line in lines)


Line = Entry | MemberLine | RoomLine | UserLine


class _Export:
    """`_names` has everybody who was introduced, with None for an account that is gone."""

    def __init__(self, transaction: Transaction, room: _Room) -> None:
        self._transaction = transaction
        self._room = room
        self._names: dict[UUID, str | None] = {}

    async def run(self) -> AsyncIterator[list[Line]]:
        room = self._room
        direct = await self._direct()
        first = await self._introduce([room.created_by, *(direct or ())])
        yield [*first, self._opening(direct)]
        for start in range(0, room.last_seq, PAGE):
            yield await self._entries(start, min(start + PAGE, room.last_seq))
        after = UUID(int=0)
        while members := await self._transaction.fetch_all(MEMBERS, room.id, after, PAGE):
            users = await self._introduce(member.user_id for member in members)
            yield [*users, *(self._member(member) for member in members)]
            after = members[-1].user_id

    async def _direct(self) -> tuple[UUID, UUID] | None:
        """The two of a direct room, of which the room keeps only a hash."""
        if self._room.direct_key is None:
            return None
        match await self._transaction.fetch_all(PAIR, self._room.id):
            case [UUID() as first, UUID() as second] if direct_key(first, second) == self._room.direct_key:
                return first, second
        return None

    def _opening(self, direct: tuple[UUID, UUID] | None) -> RoomLine:
        room = self._room
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

    async def _introduce(self, ids: Iterable[UUID | None]) -> list[Line]:
        """Lines about the users that no line was about so far."""
        new = {id for id in ids if id is not None and id not in self._names}
        if not new:
            return []
        users = await self._transaction.fetch_all(USERS, new)
        self._names |= dict.fromkeys(new) | {user.id: user.username for user in users}
        return [
            UserLine(
                id=user.id, user=user.username, email=user.email, avatar_url=user.avatar_url, at=user.created_at
            )
            for user in users
        ]

    async def _entries(self, after: int, last: int) -> list[Line]:
        messages = await self._transaction.fetch_all(MESSAGES, self._room.id, after, last)
        events = await self._transaction.fetch_all(EVENTS, self._room.id, after, last)
        users = await self._introduce([*(one.user_id for one in messages), *(one.user_id for one in events)])
        entries = [*map(self._message, messages), *map(self._event, events)]
        entries.sort(key=lambda entry: entry.seq or 0)
        return [*users, *entries]

    def _name(self, user_id: UUID | None) -> str | None:
        return None if user_id is None else self._names[user_id]

    def _message(self, said: _Said) -> Entry:
        return MessageLine(
            at=said.created_at,
            room=self._room.name,
            user=self._name(said.user_id),
            room_id=self._room.id,
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

    def _event(self, event: _Event) -> Entry:
        name = self._name(event.user_id)
        at, room, room_id, user_id, seq = (
            event.created_at,
            self._room.name,
            self._room.id,
            event.user_id,
            event.seq,
        )
        payload = _payload(event.payload)
        match event.kind, event.message_id:
            case "edited", UUID() as about:
                return EditLine(
                    at=at, room=room, user=name, room_id=room_id, user_id=user_id, seq=seq, message_id=about
                )
            case "deleted", UUID() as about:
                return DeleteLine(
                    at=at, room=room, user=name, room_id=room_id, user_id=user_id, seq=seq, message_id=about
                )
            case "joined", _:
                return JoinLine(
                    at=at, room=room, user=name, room_id=room_id, user_id=user_id, seq=seq, role=payload.role
                )
            case "left", _:
                return LeaveLine(at=at, room=room, user=name, room_id=room_id, user_id=user_id, seq=seq)
            case "role_changed", _:
                return RoleLine(
                    at=at,
                    room=room,
                    user=name,
                    room_id=room_id,
                    user_id=user_id,
                    seq=seq,
                    role=payload.role or Role.MEMBER,
                )
            case _:
                return ChangeLine(
                    at=at,
                    room=room,
                    user=name,
                    room_id=room_id,
                    user_id=user_id,
                    seq=seq,
                    name=payload.name,
                    description=payload.description,
                    is_private=payload.is_private,
                    keeps_receipts=payload.keeps_receipts,
                )

    def _member(self, member: _Member) -> MemberLine:
        return MemberLine(
            at=member.joined_at,
            room=self._room.name,
            user=self._name(member.user_id),
            room_id=self._room.id,
            user_id=member.user_id,
            seq=self._room.last_seq,
            role=Role(member.role),
            joined_seq=member.joined_seq,
            last_read_seq=member.last_read_seq,
            last_read_message_id=member.last_read_message_id,
        )
