"""The log of a room, as a batch makes it grow in memory, with its members; and how it is stored at the end."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

import msgspec

from hubbub import inputs
from hubbub.errors import Invalid
from hubbub.history.lines import (
    PAYLOAD_FIELDS,
    ChangeLine,
    EventLine,
    JoinLine,
    LeaveLine,
    MemberChangeLine,
    RoleLine,
)
from hubbub.history.locked_rooms import LockedRoom, MemberSnapshot, Reached
from hubbub.models import Role
from hubbub.postgres import Copy, OpenTransaction, Row, Statement


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
    room. `added`, `removed`, `new_roles`, `new_metadata` and `restored` are what becomes of memberships. `reached`
    has how far this import has come with each user, in a room that had entries before. `unlisted` entries are on
    no line.
    """

    def __init__(self, room: LockedRoom, snapshot: MemberSnapshot, reached: dict[UUID, Reached] | None) -> None:
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
        self.reached = reached
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

    def is_unchanged_by(self, line: EventLine, user_id: UUID | None) -> bool:
        """Whether the room is already as this line, which has no seq, would make it."""
        match line:
            case JoinLine():
                return user_id in self.members
            case LeaveLine():
                return user_id not in self.members
            case RoleLine(role=role):
                return user_id is None or self.members.get(user_id, role) == role
            case MemberChangeLine():
                return user_id not in self.members
            case _:
                return False

    def add_event(self, line: EventLine, user_id: UUID | None, account: UUID | None) -> None:
        """Append the entry, and do what follows from it. Raises: Invalid.

        `user_id` is the user that the entry names, `account` the same if the account exists: a deleted one is no
        member.
        """
        is_member = account in self.members
        if self.is_direct and line.seq is None and not is_member and isinstance(line, JoinLine):
            raise Invalid("room", "a direct room has exactly two members")
        if self.is_direct and isinstance(line, LeaveLine):
            raise Invalid("room", "a direct room keeps its two members")
        self.last_seq += 1
        message_id: UUID | None = getattr(line, "message_id", None)
        payload = msgspec.json.encode(_payload(line)).decode()
        self.events.append((self.id, self.last_seq, line.event.kind, message_id, user_id, payload, line.at))
        if account is not None:
            self._reach(account, self.last_seq)
        match line:
            case JoinLine(role=role) if account is not None and not is_member:
                last_read_seq = None if line.seq is None else self.last_seq
                self.added[account] = Membership(line.at, role or Role.MEMBER, self.last_seq, last_read_seq)
                self.members[account] = role or Role.MEMBER
            case LeaveLine() if account is not None and is_member:
                self._remove_member(account)
            case RoleLine(role=role) if account is not None and is_member:
                self._set_role(account, role)
            case MemberChangeLine(metadata=metadata) if account is not None and is_member:
                self._set_metadata(account, inputs.metadata(metadata))
            case ChangeLine():
                self.change = line

    def add_unlisted(self, line: JoinLine | LeaveLine, user_id: UUID) -> None:
        """Append an entry that no line is about. Raises: Invalid."""
        self.add_event(line, user_id, user_id)
        self.unlisted += 1

    def confirm(self, user_id: UUID, seq: int, at: datetime) -> None:
        """Give a user the membership of before this import, since the entry of a line of theirs is in the log.

        What the import has appended for earlier lines belongs before that entry, which has this seq and time.
        """
        self._reach(user_id, seq)
        if self.reached is None:
            return
        role = self.reached[user_id].role_before
        if (role is None) != (user_id not in self.members):
            self.add_unlisted(LeaveLine(at=at) if role is None else JoinLine(at=at, role=role), user_id)

    def _reach(self, user_id: UUID, seq: int) -> None:
        if self.reached is None:
            return
        before = self.reached.get(user_id) or Reached(0, self.members.get(user_id))
        self.reached[user_id] = before._replace(seq=max(seq, before.seq))

    def restore_member(self, user_id: UUID, membership: Membership) -> None:
        """Set a membership to what it was in another database."""
        if user_id in self.members and user_id not in self.added:
            self.restored[user_id] = membership
        else:
            self.members[user_id] = membership.role
            self.added[user_id] = membership

    def _remove_member(self, user_id: UUID) -> None:
        del self.members[user_id]
        if self.added.pop(user_id, None) is None:
            self.removed.add(user_id)
            self.new_roles.pop(user_id, None)
            self.new_metadata.pop(user_id, None)
            self.restored.pop(user_id, None)

    def _set_role(self, user_id: UUID, role: Role) -> None:
        self.members[user_id] = role
        if user_id in self.added:
            self.added[user_id] = self.added[user_id]._replace(role=role)
        else:
            self.new_roles[user_id] = role

    def _set_metadata(self, user_id: UUID, metadata: str | None) -> None:
        if user_id in self.added:
            self.added[user_id] = self.added[user_id]._replace(metadata=metadata)
        else:
            self.new_metadata[user_id] = metadata


def _payload(line: EventLine) -> dict[str, object]:
    values = ((field, getattr(line, field.name)) for field in PAYLOAD_FIELDS[type(line)])
    return {field.name: value for field, value in values if value is not field.default}


EVENTS: Final = Copy("room_events", ("room_id", "seq", "kind", "message_id", "user_id", "payload", "created_at"))

MEMBERS: Final = Copy("room_users", ("room_id", "user_id", *Membership._fields))

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
    """Store all that a batch makes of rooms, except messages, to which memberships refer: these come first."""
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
        await transaction.copy(MEMBERS, added)
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
