"""The rooms that lines refer to: found or created, locked for the transaction of a batch, and their members."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from uuid import UUID

from hubbub.history.lines import AnyLine, Line, RoomLine, UserLine, metadata_of, room_id_of
from hubbub.history.users import LineUsers
from hubbub.models import Role
from hubbub.postgres import Executor, Statement
from hubbub.repositories.rooms import direct_key
from hubbub.sql import not_deleted

REMEMBERED_MEMBERSHIPS: Final = 200_000
"""How many memberships a long import keeps in memory, beside those of the batch. Beyond it all are forgotten."""


class LockedRoom(NamedTuple):
    """A room to which no other transaction can write until this one ends."""

    id: UUID
    last_seq: int
    is_direct: bool


LOCK = Statement(
    "history.lock_rooms",
    LockedRoom,
    f"""
    SELECT id, last_seq, direct_key IS NOT NULL AS is_direct
    FROM rooms
    WHERE id = ANY($1::uuid[])
        AND {not_deleted("rooms.id")}
    ORDER BY id
    FOR NO KEY UPDATE
    """,
)

CREATE = Statement(
    "history.create_rooms",
    lambda id: id,
    """
    INSERT INTO rooms (
        id, name, description, is_private, created_by, created_at, updated_at, keeps_receipts, direct_key, metadata
    )
    SELECT
        id, name, description, is_private, created_by, created_at, updated_at, keeps_receipts, direct_key,
        metadata::jsonb
    FROM unnest(
        $1::uuid[], $2::text[], $3::text[], $4::boolean[], $5::uuid[], $6::timestamptz[], $7::timestamptz[],
        $8::boolean[], $9::bytea[], $10::text[]
    ) AS room (
        id, name, description, is_private, created_by, created_at, updated_at, keeps_receipts, direct_key, metadata
    )
    ORDER BY id
    ON CONFLICT DO NOTHING
    RETURNING id
    """,
)


async def lock_rooms(
    executor: Executor, lines: Sequence[AnyLine], users: LineUsers, rejected_rooms: set[UUID]
) -> list[LockedRoom]:
    """Lock the rooms of these lines, after creating the missing ones, except the rejected rooms.

    A second direct room of two users cannot be created, nor can a room whose deletion is not finished. It is
    rejected from then on: a later line that has only its name would create it as another kind of room.
    """
    wanted: dict[UUID, RoomLine | None] = {}
    for line in lines:
        if isinstance(line, RoomLine):
            wanted[line.id] = line
        elif not isinstance(line, UserLine):
            room_id = room_id_of(line)
            if wanted.get(room_id) is None:
                wanted[room_id] = None if line.room is None else RoomLine(id=room_id, room=line.room, at=line.at)
    locked = await executor.fetch_all(LOCK, [id for id in wanted if id not in rejected_rooms])
    found = {room.id for room in locked}
    missing = [room for id, room in wanted.items() if room is not None and id not in found | rejected_rooms]
    if not missing:
        return locked
    await _create(executor, missing, users)
    locked += await executor.fetch_all(LOCK, [room.id for room in missing])
    rejected_rooms |= {room.id for room in missing} - {room.id for room in locked}
    return locked


async def _create(executor: Executor, rooms: Sequence[RoomLine], users: LineUsers) -> None:
    await executor.fetch_all(
        CREATE,
        [room.id for room in rooms],
        [room.room for room in rooms],
        [room.description for room in rooms],
        [room.is_private for room in rooms],
        [None if room.created_by is None else users.find(room.created_by) for room in rooms],
        [room.at for room in rooms],
        [room.updated_at or room.at for room in rooms],
        [room.keeps_receipts for room in rooms],
        [_direct_key(room, users) for room in rooms],
        [metadata_of(room) for room in rooms],
    )


def _direct_key(room: RoomLine, users: LineUsers) -> bytes | None:
    """By the ids that the two users have in this database. A deleted account keeps the id that it had."""
    if room.direct is None:
        return None
    first, second = room.direct
    return direct_key(users.find(first) or first, users.find(second) or second)


MEMBERS = Statement(
    "history.members",
    lambda room_id, user_id, role: (room_id, user_id, role),
    """
    SELECT room_id, user_id, role
    FROM room_users
    JOIN unnest($1::uuid[], $2::uuid[]) AS wanted (room_id, user_id) USING (room_id, user_id)
    """,
)


class Reached(NamedTuple):
    """How far an import has come with a member of a room: to the entry `seq`, known or appended.

    `role_before` is the role before the import, None of a non-member.
    """

    seq: int
    role_before: Role | None


class Span(NamedTuple):
    """Entries of a log, from the `first` seq to the `last`."""

    first: int
    last: int


@dataclass(slots=True)
class MemberSnapshot:
    """The members of a room at `last_seq`, with their roles, among the users that were `looked_up`."""

    last_seq: int
    roles: dict[UUID, Role] = field(default_factory=dict)
    looked_up: set[UUID] = field(default_factory=set)


class Members:
    """Remembers the members of a room while its log does not grow: each join and leave is an entry of it."""

    def __init__(self) -> None:
        self._snapshots: dict[UUID, MemberSnapshot] = {}
        self._ends: dict[UUID, int] = {}  # the heads of the rooms, as this import has left them
        self._others: dict[UUID, list[Span]] = {}  # up to there, the entries that are not of this import
        self._reached: dict[UUID, dict[UUID, Reached]] = {}  # in all other rooms

    def is_new(self, room: LockedRoom) -> bool:
        """Whether all entries of a locked room are of this import, so that none can be known from another one."""
        return not self.others(room.id, room.last_seq)

    def others(self, room_id: UUID, last_seq: int) -> list[Span]:
        """The entries of a locked room that are not of this import: those that lines may be known from."""
        spans, end = list(self._others.get(room_id, ())), self._ends.get(room_id, 0)
        if last_seq > end:
            first = spans.pop().first if spans and spans[-1].last == end else end + 1
            spans.append(Span(first, last_seq))
        return spans

    def reached(self, room: LockedRoom) -> dict[UUID, Reached] | None:
        """By user, how far this import has come in a room. None in a new room, where it has written all."""
        return None if self.is_new(room) else dict(self._reached.get(room.id, {}))

    def stored(self, room_id: UUID, start_seq: int, last_seq: int, reached: dict[UUID, Reached] | None) -> None:
        """Remember a room as the batch has left it, which has made it grow from `start_seq`."""
        self._snapshots[room_id].last_seq = last_seq
        if others := self.others(room_id, start_seq):
            self._others[room_id] = others
        self._ends[room_id] = last_seq
        if reached:
            self._reached[room_id] = reached
            if sum(map(len, self._reached.values())) > REMEMBERED_MEMBERSHIPS:
                self._reached.clear()

    def forget(self) -> None:
        """Have all memberships looked up again."""
        self._snapshots.clear()

    async def look_up(
        self, executor: Executor, rooms: Sequence[LockedRoom], lines: Iterable[AnyLine], users: LineUsers
    ) -> dict[UUID, MemberSnapshot]:
        """The members of locked rooms, as far as the lines refer to them."""
        if sum(len(one.looked_up) for one in self._snapshots.values()) > REMEMBERED_MEMBERSHIPS:
            self.forget()
        snapshots = {room.id: self._snapshot(room) for room in rooms}
        pairs = _unknown_pairs(snapshots, lines, users)
        rows = await executor.fetch_all(MEMBERS, [room for room, _ in pairs], [user for _, user in pairs])
        for room_id, user_id in pairs:
            snapshots[room_id].looked_up.add(user_id)
        for room_id, user_id, role in rows:
            snapshots[room_id].roles[user_id] = Role(role)
        return snapshots

    def _snapshot(self, room: LockedRoom) -> MemberSnapshot:
        snapshot = self._snapshots.get(room.id)
        if snapshot is None or snapshot.last_seq != room.last_seq:
            snapshot = self._snapshots[room.id] = MemberSnapshot(room.last_seq)
        return snapshot


def _unknown_pairs(
    snapshots: dict[UUID, MemberSnapshot], lines: Iterable[AnyLine], users: LineUsers
) -> list[tuple[UUID, UUID]]:
    """The pairs of room and user that were not looked up. Equal ones are left out first: most lines are."""
    distinct = {
        (line.room_id or line.room, line.user_id or line.user): line for line in lines if isinstance(line, Line)
    }
    pairs: dict[tuple[UUID, UUID], None] = {}
    for line in distinct.values():
        room_id, user_id = room_id_of(line), users[line]
        snapshot = snapshots.get(room_id)
        if snapshot is not None and user_id is not None and user_id not in snapshot.looked_up:
            pairs[room_id, user_id] = None
    return list(pairs)
