"""The rooms that lines refer to: found or created, locked for the transaction of a batch, and their members.

    lock_rooms -> Members.look_up -> RoomLog, which the lines make grow in memory -> store_rooms

The last step comes after the COPY of the messages, to which memberships refer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

import msgspec

from hubbub import inputs
from hubbub.errors import Invalid
from hubbub.history.lines import (
    PAYLOAD_FIELDS,
    AnyLine,
    ChangeLine,
    EventLine,
    JoinLine,
    LeaveLine,
    Line,
    MemberChangeLine,
    RoleLine,
    RoomLine,
    UserLine,
    metadata_of,
    room_id_of,
)
from hubbub.history.users import LineUsers
from hubbub.models import Role
from hubbub.postgres import Copy, Executor, OpenTransaction, Row, Statement
from hubbub.repositories.rooms import direct_key
from hubbub.sql import not_deleted

REMEMBERED_MEMBERSHIPS: Final = 200_000
"""How many memberships a long import keeps in memory, beside those of the batch. Beyond it all are forgotten, and
looked up again. What cannot be looked up is kept: `Members.roles_before` and `OtherEntries.passed`."""


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
    locked_or_rejected = rejected_rooms | {room.id for room in locked}
    missing = [room for id, room in wanted.items() if room is not None and id not in locked_or_rejected]
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
    """Remembers the members of a room while its log does not grow: each join and leave is an entry of it.

    `roles_before` has the memberships that this import has changed, among those that entries of others are about:
    by room and user the role before, None of a non-member. Each takes 150 bytes, however many lines there are.
    """

    def __init__(self) -> None:
        self.roles_before: dict[UUID, dict[UUID, Role | None]] = {}
        self._snapshots: dict[UUID, MemberSnapshot] = {}
        self._ends: dict[UUID, int] = {}  # the heads of the rooms, as this import has left them
        self._others: dict[UUID, list[Span]] = {}  # up to there, the entries that are not of this import

    def others(self, room_id: UUID, last_seq: int) -> list[Span]:
        """The entries of a locked room that are not of this import: those that lines may be known from."""
        spans, end = list(self._others.get(room_id, ())), self._ends.get(room_id, 0)
        if last_seq > end:
            first = spans.pop().first if spans and spans[-1].last == end else end + 1
            spans.append(Span(first, last_seq))
        return spans

    def stored(self, room_id: UUID, start_seq: int, last_seq: int, roles_before: dict[UUID, Role | None]) -> None:
        """Remember a room as the batch has left it, which has made it grow from `start_seq`."""
        if (snapshot := self._snapshots.get(room_id)) is not None:  # none if all were forgotten since
            snapshot.last_seq = last_seq
        if others := self.others(room_id, start_seq):
            self._others[room_id] = others
        self._ends[room_id] = last_seq
        if roles_before:
            self.roles_before[room_id] = roles_before

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


class Membership(NamedTuple):
    """A membership that a batch creates. `last_read_seq` of None: all that is imported counts as read."""

    joined_at: datetime
    role: Role
    joined_seq: int
    last_read_seq: int | None
    last_read_message_id: UUID | None = None
    metadata: str | None = None


class RoomLog:
    """The log of one locked room, and its members as far as the batch refers to them.

    `events` are the rows of the entries that are not messages, and `change` the last of them that changed the
    room. `added`, `removed`, `new_roles`, `new_metadata` and `restored` are what becomes of memberships.
    `roles_before` is that of `Members`, as this batch continues it. `unlisted` entries are on no line.
    """

    def __init__(
        self, room: LockedRoom, snapshot: MemberSnapshot, roles_before: Mapping[UUID, Role | None]
    ) -> None:
        self.id = room.id
        self.is_direct = room.is_direct
        self.start_seq = self.last_seq = room.last_seq
        self.members = snapshot.roles
        self.events: list[Row] = []
        self.added: dict[UUID, Membership] = {}
        self.removed: set[UUID] = set()
        self.new_roles: dict[UUID, Role] = {}
        self.new_metadata: dict[UUID, str | None] = {}
        self.restored: dict[UUID, Membership] = {}
        self.change: ChangeLine | None = None
        self.roles_before = dict(roles_before)
        self.unlisted = 0

    @property
    def has_grown(self) -> bool:
        return self.last_seq > self.start_seq

    def check_next(self, seq: int) -> None:
        """Raises: Invalid (this cannot be the seq of the next entry)."""
        if seq <= self.last_seq:
            raise Invalid("seq", f"something else is entry {seq:,} of the room")
        if seq > self.last_seq + 1:
            raise Invalid("seq", f"{seq:,} cannot follow {self.last_seq:,}, the last entry of the room")

    def is_unchanged_by(self, line: EventLine, user_id: UUID) -> bool:
        """Whether the room is already as this line, which has no seq, would make it."""
        match line:
            case JoinLine():
                return user_id in self.members
            case LeaveLine() | MemberChangeLine():
                return user_id not in self.members
            case RoleLine(role=role):
                return self.members.get(user_id, role) == role
            case _:
                return False

    def add_event(self, line: EventLine, account: UUID | None) -> None:
        """Append the entry, and do what follows from it. Raises: Invalid.

        `account` is the user of the line. It is None if the account was deleted: only the entry names it.
        """
        if self.is_direct and line.seq is None and account not in self.members and isinstance(line, JoinLine):
            raise Invalid("room", "a direct room has exactly two members")
        if (
            self.is_direct and line.seq is None and isinstance(line, LeaveLine)
        ):  # with a seq its account was deleted
            raise Invalid("room", "a direct room keeps its two members")
        if self.is_direct and isinstance(line, ChangeLine) and not line.is_private:
            raise Invalid("is_private", "must be true in a direct room")
        self.last_seq += 1
        message_id: UUID | None = getattr(line, "message_id", None)
        user_id = account or line.user_id
        payload = msgspec.json.encode(_payload(line)).decode()
        self.events.append((self.id, self.last_seq, line.event.kind, message_id, user_id, payload, line.at))
        if isinstance(line, ChangeLine):
            self.change = line
        if account is not None:
            self._change_membership(line, account)

    def _change_membership(self, line: EventLine, user_id: UUID) -> None:
        is_member, is_added = user_id in self.members, user_id in self.added
        match line:
            case JoinLine() if not is_member:
                role = self.members[user_id] = line.role or Role.MEMBER
                last_read_seq = None if line.seq is None else self.last_seq
                self.added[user_id] = Membership(line.at, role, self.last_seq, last_read_seq)
            case LeaveLine() if is_member:
                del self.members[user_id]
                if self.added.pop(user_id, None) is None:
                    self.removed.add(user_id)
                    self.new_roles.pop(user_id, None)
                    self.new_metadata.pop(user_id, None)
                    self.restored.pop(user_id, None)
            case RoleLine(role=role) if is_member:
                self.members[user_id] = role
                if is_added:
                    self.added[user_id] = self.added[user_id]._replace(role=role)
                else:
                    self.new_roles[user_id] = role
            case MemberChangeLine() if is_member:
                metadata = inputs.metadata(line.metadata)
                if is_added:
                    self.added[user_id] = self.added[user_id]._replace(metadata=metadata)
                else:
                    self.new_metadata[user_id] = metadata

    def add_unlisted(self, line: JoinLine | LeaveLine, user_id: UUID) -> None:
        """Append an entry that no line is about. Raises: Invalid."""
        self.add_event(line, user_id)
        self.unlisted += 1

    def confirm(self, user_id: UUID, at: datetime) -> None:
        """Give a user the membership of before this import, since the entry of a line of theirs is in the log.

        What the import has appended for earlier lines belongs before that entry, which has this time.
        """
        role = self.roles_before.get(user_id, self.members.get(user_id))
        if (role is None) != (user_id not in self.members):
            self.add_unlisted(LeaveLine(at=at) if role is None else JoinLine(at=at, role=role), user_id)

    def restore_member(self, user_id: UUID, membership: Membership) -> None:
        """Set a membership to what it was in another database."""
        if user_id in self.members and user_id not in self.added:
            self.restored[user_id] = membership
        else:
            self.members[user_id] = membership.role
            self.added[user_id] = membership


def _payload(line: EventLine) -> dict[str, object]:
    values = ((field, getattr(line, field.name)) for field in PAYLOAD_FIELDS[type(line)])
    return {field.name: value for field, value in values if value is not field.default}


EVENTS: Final = Copy("room_events", ("room_id", "seq", "kind", "message_id", "user_id", "payload", "created_at"))

NEW_MEMBERS: Final = Copy("room_users", ("room_id", "user_id", *Membership._fields))

SET_LAST_SEQ = Statement(
    "history.set_last_seq",
    int,
    """
    UPDATE rooms
    SET last_seq = heads.last_seq
    FROM unnest($1::uuid[], $2::bigint[]) AS heads (id, last_seq)
    WHERE rooms.id = heads.id
    """,
)

CHANGE_ROOM = Statement(
    "history.change_room",
    int,
    """
    UPDATE rooms
    SET name = $2,
        description = $3,
        is_private = $4,
        updated_at = $5,
        keeps_receipts = CASE WHEN $6 THEN $7 ELSE keeps_receipts END,
        metadata = CASE WHEN $8 THEN $9::jsonb ELSE metadata END
    WHERE id = $1
    """,
)

REMOVE_MEMBERS = Statement(
    "history.remove_members",
    int,
    """
    DELETE FROM room_users
    USING unnest($1::uuid[], $2::uuid[]) AS removed (room_id, user_id)
    WHERE room_users.room_id = removed.room_id
        AND room_users.user_id = removed.user_id
    """,
)

SET_ROLES = Statement(
    "history.set_roles",
    int,
    """
    UPDATE room_users
    SET role = new.role
    FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS new (room_id, user_id, role)
    WHERE room_users.room_id = new.room_id
        AND room_users.user_id = new.user_id
    """,
)

SET_METADATA = Statement(
    "history.set_metadata",
    int,
    """
    UPDATE room_users
    SET metadata = new.metadata::jsonb
    FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS new (room_id, user_id, metadata)
    WHERE room_users.room_id = new.room_id
        AND room_users.user_id = new.user_id
    """,
)

# Only of members who have read nothing in this database: what they have read since is not taken back.
RESTORE_MEMBERS = Statement(
    "history.restore_members",
    int,
    """
    UPDATE room_users
    SET joined_at = restored.joined_at,
        role = restored.role,
        joined_seq = restored.joined_seq,
        last_read_seq = restored.last_read_seq,
        last_read_message_id = restored.last_read_message_id,
        metadata = restored.metadata::jsonb
    FROM unnest(
        $1::uuid[], $2::uuid[], $3::timestamptz[], $4::text[], $5::bigint[], $6::bigint[], $7::uuid[], $8::text[]
    ) AS restored (room_id, user_id, joined_at, role, joined_seq, last_read_seq, last_read_message_id, metadata)
    WHERE room_users.room_id = restored.room_id
        AND room_users.user_id = restored.user_id
        AND room_users.last_read_message_id IS NULL
    """,
)


async def store_rooms(transaction: OpenTransaction, rooms: Sequence[RoomLog]) -> None:
    """Store all that a batch makes of rooms, except messages."""
    events = [event for room in rooms for event in room.events]
    if events:
        await transaction.copy(EVENTS, events)
    grown = [room for room in rooms if room.has_grown]
    if grown:
        await transaction.execute(SET_LAST_SEQ, [room.id for room in grown], [room.last_seq for room in grown])
    for room in rooms:
        if (line := room.change) is not None:
            keeps = None if line.keeps_receipts is msgspec.UNSET else line.keeps_receipts
            given = line.keeps_receipts is not msgspec.UNSET
            metadata = None if line.metadata is msgspec.UNSET else inputs.metadata(line.metadata)
            await transaction.execute(
                CHANGE_ROOM,
                room.id,
                line.name,
                line.description,
                line.is_private,
                line.at,
                given,
                keeps,
                line.metadata is not msgspec.UNSET,
                metadata,
            )
    await _store_memberships(transaction, rooms)


async def _store_memberships(transaction: OpenTransaction, rooms: Sequence[RoomLog]) -> None:
    removed = [(room.id, user_id) for room in rooms for user_id in room.removed]
    if removed:
        room_ids, user_ids = zip(*removed, strict=True)
        await transaction.execute(REMOVE_MEMBERS, room_ids, user_ids)
    added = [
        (room.id, user_id, *(one if one.last_read_seq is not None else one._replace(last_read_seq=room.last_seq)))
        for room in rooms
        for user_id, one in room.added.items()
    ]
    if added:
        await transaction.copy(NEW_MEMBERS, added)
    new_roles = [(room.id, user_id, role) for room in rooms for user_id, role in room.new_roles.items()]
    if new_roles:
        room_ids, user_ids, roles = zip(*new_roles, strict=True)
        await transaction.execute(SET_ROLES, room_ids, user_ids, roles)
    new_metadata = [(room.id, user_id, one) for room in rooms for user_id, one in room.new_metadata.items()]
    if new_metadata:
        room_ids, user_ids, objects = zip(*new_metadata, strict=True)
        await transaction.execute(SET_METADATA, room_ids, user_ids, objects)
    restored = [(room.id, user_id, *one) for room in rooms for user_id, one in room.restored.items()]
    if restored:
        room_ids, user_ids, times, roles, joined, read, messages, metadata = zip(*restored, strict=True)
        await transaction.execute(
            RESTORE_MEMBERS, room_ids, user_ids, times, roles, joined, read, messages, metadata
        )
