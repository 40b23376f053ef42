"""What a batch came to, put into the tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final
from uuid import UUID

from msgspec import UNSET

from hubbub.history.forms import ChangeLine, MemberLine
from hubbub.history.replay import Membership, Replay, Revision, RoomLog
from hubbub.models import Role
from hubbub.postgres import Copy, Statement, Transaction

MESSAGES: Final = Copy(
    "messages",
    (
        *("id", "room_id", "seq", "user_id", "content", "message_type", "is_edited"),
        *("created_at", "updated_at", "deleted_at", "reply_to", "metadata"),
    ),
)
EVENTS: Final = Copy("room_events", ("room_id", "seq", "kind", "message_id", "user_id", "payload", "created_at"))

BUMP = Statement(
    "history.bump_rooms",
    int,
    """
    UPDATE rooms
    SET last_seq = heads.last_seq
    FROM unnest($1::uuid[], $2::bigint[]) AS heads (id, last_seq)
    WHERE rooms.id = heads.id
    """,
)

CHANGE = Statement(
    "history.change_room",
    int,
    """
    UPDATE rooms
    SET name = $2,
        description = $3,
        is_private = $4,
        updated_at = $5,
        keeps_receipts = CASE WHEN $6 THEN $7 ELSE keeps_receipts END
    WHERE id = $1
    """,
)

REVISE = Statement(
    "history.revise_messages",
    int,
    """
    UPDATE messages
    SET content = revised.content,
        is_edited = revised.is_edited,
        updated_at = revised.updated_at,
        deleted_at = revised.deleted_at,
        metadata = revised.metadata
    FROM unnest($1::uuid[], $2::text[], $3::boolean[], $4::timestamptz[], $5::timestamptz[], $6::jsonb[])
        AS revised (id, content, is_edited, updated_at, deleted_at, metadata)
    WHERE messages.id = revised.id
    """,
)

REMOVE = Statement(
    "history.remove_members",
    int,
    """
    DELETE FROM room_users
    USING unnest($1::uuid[], $2::uuid[]) AS gone (room_id, user_id)
    WHERE room_users.room_id = gone.room_id
        AND room_users.user_id = gone.user_id
    """,
)

ADD = Statement(
    "history.add_members",
    int,
    """
    INSERT INTO room_users (room_id, user_id, joined_at, role, joined_seq, last_read_seq, last_read_message_id)
    SELECT room_id, user_id, joined_at, role, joined_seq, last_read_seq, last_read_message_id
    FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::text[], $5::bigint[], $6::bigint[], $7::uuid[])
        AS joined (room_id, user_id, joined_at, role, joined_seq, last_read_seq, last_read_message_id)
    """,
)

GIVE_ROLES = Statement(
    "history.give_roles",
    int,
    """
    UPDATE room_users
    SET role = given.role
    FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS given (room_id, user_id, role)
    WHERE room_users.room_id = given.room_id
        AND room_users.user_id = given.user_id
    """,
)

# Only of one who has read nothing here: what somebody has read since is not taken back.
SET_MEMBERS = Statement(
    "history.set_members",
    int,
    """
    UPDATE room_users
    SET joined_at = state.joined_at,
        role = state.role,
        joined_seq = state.joined_seq,
        last_read_seq = state.last_read_seq,
        last_read_message_id = state.last_read_message_id
    FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::text[], $5::bigint[], $6::bigint[], $7::uuid[])
        AS state (room_id, user_id, joined_at, role, joined_seq, last_read_seq, last_read_message_id)
    WHERE room_users.room_id = state.room_id
        AND room_users.user_id = state.user_id
        AND room_users.last_read_message_id IS NULL
    """,
)

# Only of one who has read nothing there: what somebody has marked as unread since stays so.
ALL_READ = Statement(
    "history.all_read",
    int,
    """
    UPDATE room_users
    SET last_read_seq = rooms.last_seq
    FROM rooms
    WHERE rooms.id = ANY($1::uuid[])
        AND room_users.room_id = rooms.id
        AND room_users.last_read_message_id IS NULL
        AND room_users.last_read_seq < rooms.last_seq
    """,
)

Member = tuple[UUID, UUID, Membership]


async def store(transaction: Transaction, replay: Replay) -> None:
    """All that the replay came to. Memberships go after the messages that they may name."""
    rooms = list(replay.rooms.values())
    if replay.messages or replay.events:
        await transaction.execute(BUMP, [room.id for room in rooms], [room.last_seq for room in rooms])
    for room in rooms:
        if room.changed is not None:
            await _change(transaction, room.id, room.changed)
    if replay.messages:
        await transaction.copy(MESSAGES, replay.messages)
    if replay.events:
        await transaction.copy(EVENTS, replay.events)
    if replay.revisions:
        await _revise(transaction, replay.revisions)
    await _store_members(transaction, rooms)


async def _revise(transaction: Transaction, revisions: Sequence[Revision]) -> None:
    await transaction.execute(
        REVISE,
        [one.id for one in revisions],
        [one.content for one in revisions],
        [one.is_edited for one in revisions],
        [one.updated_at for one in revisions],
        [one.deleted_at for one in revisions],
        [one.metadata for one in revisions],
    )


async def _change(transaction: Transaction, room_id: UUID, line: ChangeLine) -> None:
    says, keeps = (False, None) if line.keeps_receipts is UNSET else (True, line.keeps_receipts)
    await transaction.execute(CHANGE, room_id, line.name, line.description, line.is_private, line.at, says, keeps)


async def _store_members(transaction: Transaction, rooms: Sequence[RoomLog]) -> None:
    gone = [(room.id, user_id) for room in rooms for user_id in room.gone]
    if gone:
        await transaction.execute(REMOVE, [room_id for room_id, _ in gone], [user_id for _, user_id in gone])
    joined = [
        (room.id, user_id, one if one.read is not None else one._replace(read=room.last_seq))
        for room in rooms
        for user_id, one in room.made.items()
    ]
    if joined:
        await _add(transaction, joined)
    given = [(room.id, user_id, role) for room in rooms for user_id, role in room.roles.items()]
    if given:
        await _give_roles(transaction, given)
    states = [(room.id, user_id, _state(line)) for room in rooms for user_id, line in room.states.items()]
    if states:
        await _set_members(transaction, states)


def _state(line: MemberLine) -> Membership:
    return Membership(line.at, line.role, line.joined_seq, line.last_read_seq, line.last_read_message_id)


async def _add(transaction: Transaction, members: Sequence[Member]) -> None:
    await transaction.execute(
        ADD,
        [room_id for room_id, _, _ in members],
        [user_id for _, user_id, _ in members],
        [one.joined_at for _, _, one in members],
        [one.role for _, _, one in members],
        [one.joined_seq for _, _, one in members],
        [one.read for _, _, one in members],
        [one.last_read_message_id for _, _, one in members],
    )


async def _set_members(transaction: Transaction, members: Sequence[Member]) -> None:
    await transaction.execute(
        SET_MEMBERS,
        [room_id for room_id, _, _ in members],
        [user_id for _, user_id, _ in members],
        [one.joined_at for _, _, one in members],
        [one.role for _, _, one in members],
        [one.joined_seq for _, _, one in members],
        [one.read for _, _, one in members],
        [one.last_read_message_id for _, _, one in members],
    )


async def _give_roles(transaction: Transaction, given: Sequence[tuple[UUID, UUID, Role]]) -> None:
    await transaction.execute(
        GIVE_ROLES,
        [room_id for room_id, _, _ in given],
        [user_id for _, user_id, _ in given],
        [role for _, _, role in given],
    )


async def count_as_read(transaction: Transaction, rooms: Iterable[UUID], *, at_once: int = 1_000) -> None:
    """What was imported into these rooms is read by those who have read nothing there."""
    ids = sorted(rooms)
    for start in range(0, len(ids), at_once):
        await transaction.execute(ALL_READ, ids[start : start + at_once])
