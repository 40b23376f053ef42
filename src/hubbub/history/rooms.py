"""The rooms that lines speak of: found or made, and held for as long as a batch takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

from hubbub.history.forms import AnyLine, Line, RoomLine, UserLine
from hubbub.history.identities import derive_room_id
from hubbub.history.people import People
from hubbub.postgres import Executor, Statement
from hubbub.repositories.rooms import direct_key

_room_of = lru_cache(maxsize=10_000)(derive_room_id)


def room_id_of(line: Line) -> UUID:
    """The room that a line speaks of: by its id, or else by its name."""
    return line.room_id or _room_of(line.room or "")


class Held(NamedTuple):
    """A room that nobody else can write to until the transaction ends."""

    id: UUID
    last_seq: int
    is_direct: bool


HOLD = Statement(
    "history.hold_rooms",
    Held,
    """
    SELECT
        id,
        last_seq,
        direct_key IS NOT NULL AS is_direct
    FROM rooms
    WHERE id = ANY($1::uuid[])
    ORDER BY id
    FOR NO KEY UPDATE
    """,
)

MAKE = Statement(
    "history.make_rooms",
    lambda id: id,
    """
    INSERT INTO rooms (
        id, name, description, is_private, created_by, created_at, updated_at, keeps_receipts, direct_key
    )
    SELECT id, name, description, is_private, created_by, created_at, updated_at, keeps_receipts, direct_key
    FROM unnest(
        $1::uuid[], $2::text[], $3::text[], $4::boolean[], $5::uuid[], $6::timestamptz[], $7::timestamptz[],
        $8::boolean[], $9::bytea[]
    ) AS room (id, name, description, is_private, created_by, created_at, updated_at, keeps_receipts, direct_key)
    ORDER BY id
    ON CONFLICT DO NOTHING
    RETURNING id
    """,
)


def people_of(lines: Iterable[AnyLine]) -> list[UUID]:
    """Ids of users that lines about rooms, and lines without a name, speak of."""
    ids: dict[UUID, None] = {}
    for line in lines:
        if isinstance(line, RoomLine):
            ids |= dict.fromkeys(id for id in (line.created_by, *(line.direct or ())) if id is not None)
        elif isinstance(line, Line) and line.user is None and line.user_id is not None:
            ids[line.user_id] = None
    return list(ids)


async def hold(executor: Executor, lines: Sequence[AnyLine], people: People, barred: set[UUID]) -> list[Held]:
    """The rooms of these lines, those that are missing made, without the `barred`.

    One that is told of at length and cannot be made, a second direct room of two people, is barred from then on:
    a later line that has only its name would make it as another kind of room.
    """
    wanted: dict[UUID, RoomLine | None] = {}
    for line in lines:
        if isinstance(line, RoomLine):
            wanted[line.id] = line
        elif not isinstance(line, UserLine):
            room_id = room_id_of(line)
            if wanted.get(room_id) is None:
                wanted[room_id] = _as_named(room_id, line.room, line.at)
    held = await executor.fetch_all(HOLD, [id for id in wanted if id not in barred])
    found = {room.id for room in held}
    missing = [room for id, room in wanted.items() if room is not None and id not in found | barred]
    if not missing:
        return held
    await _make(executor, missing, people)
    held += await executor.fetch_all(HOLD, [room.id for room in missing])
    barred |= {room.id for room in missing} - {room.id for room in held}
    return held


def _as_named(room_id: UUID, name: str | None, at: datetime) -> RoomLine | None:
    """A room of which no more is said than its name."""
    return None if name is None else RoomLine(id=room_id, room=name, at=at)


async def _make(executor: Executor, rooms: Sequence[RoomLine], people: People) -> None:
    await executor.fetch_all(
        MAKE,
        [room.id for room in rooms],
        [room.room for room in rooms],
        [room.description for room in rooms],
        [room.is_private for room in rooms],
        [None if room.created_by is None else people.find(room.created_by) for room in rooms],
        [room.at for room in rooms],
        [room.updated_at or room.at for room in rooms],
        [room.keeps_receipts for room in rooms],
        [_direct_key(room, people) for room in rooms],
    )


def _direct_key(room: RoomLine, people: People) -> bytes | None:
    """By the ids that the two have here. An account that is gone keeps the id that it had."""
    if room.direct is None:
        return None
    first, second = room.direct
    return direct_key(people.find(first) or first, people.find(second) or second)
