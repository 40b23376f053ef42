"""An export: one room, as the lines that an import takes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import Final
from uuid import UUID

import msgspec

from hubbub.errors import NotFound
from hubbub.history.forms import AnyLine
from hubbub.history.rendering import event_line, member_line, message_line, room_line, user_line
from hubbub.history.rows import EVENTS, MEMBERS, MESSAGES, PAIR, ROOM, USERS, RoomRow
from hubbub.postgres import OpenTransaction, Pool
from hubbub.repositories.rooms import direct_key

# Entries of the log that are read at a time, and members.
PAGE: Final = 2_000

_encode = msgspec.json.Encoder().encode


async def export(pool: Pool, room_id: UUID) -> AsyncGenerator[bytes, None]:
    """The lines of a room, each with its end, some thousand at a time. Raises `NotFound`.

    All of them show the room as it was at one moment, however long it takes: one transaction sees one state.
    """
    async with pool.transaction() as transaction:
        await transaction.use_one_snapshot()
        room = await transaction.fetch_one(ROOM, room_id)
        if room is None:
            raise NotFound("room", room_id)
        async for lines in _Export(transaction, room).run():
            yield b"".join(_encode(line) + b"\n" for line in lines)


class _Export:
    """`_names` has everybody who was introduced, with None for an account that is gone."""

    def __init__(self, transaction: OpenTransaction, room: RoomRow) -> None:
        self._transaction = transaction
        self._room = room
        self._names: dict[UUID, str | None] = {}

    async def run(self) -> AsyncIterator[list[AnyLine]]:
        room = self._room
        direct = await self._direct()
        first = await self._introduce([room.created_by, *(direct or ())])
        yield [*first, room_line(room, direct)]
        for start in range(0, room.last_seq, PAGE):
            yield await self._entries(start, min(start + PAGE, room.last_seq))
        after = UUID(int=0)
        while members := await self._transaction.fetch_all(MEMBERS, room.id, after, PAGE):
            users = await self._introduce(member.user_id for member in members)
            yield [*users, *(member_line(room, member, self._name(member.user_id)) for member in members)]
            after = members[-1].user_id

    async def _direct(self) -> tuple[UUID, UUID] | None:
        """The two of a direct room, of which the room keeps only a hash."""
        if self._room.direct_key is None:
            return None
        match await self._transaction.fetch_all(PAIR, self._room.id):
            case [UUID() as first, UUID() as second] if direct_key(first, second) == self._room.direct_key:
                return first, second
        return None

    async def _introduce(self, ids: Iterable[UUID | None]) -> list[AnyLine]:
        """Lines about the users that no line was about so far."""
        new = {id for id in ids if id is not None and id not in self._names}
        if not new:
            return []
        users = await self._transaction.fetch_all(USERS, new)
        self._names |= dict.fromkeys(new) | {user.id: user.username for user in users}
        return [user_line(user) for user in users]

    async def _entries(self, after: int, last: int) -> list[AnyLine]:
        messages = await self._transaction.fetch_all(MESSAGES, self._room.id, after, last)
        events = await self._transaction.fetch_all(EVENTS, self._room.id, after, last)
        users = await self._introduce([*(one.user_id for one in messages), *(one.user_id for one in events)])
        entries = [
            *(message_line(self._room, said, self._name(said.user_id)) for said in messages),
            *(event_line(self._room, event, self._name(event.user_id)) for event in events),
        ]
        entries.sort(key=lambda entry: entry.seq or 0)
        return [*users, *entries]

    def _name(self, user_id: UUID | None) -> str | None:
        return None if user_id is None else self._names[user_id]
