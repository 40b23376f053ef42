"""What a batch made of memberships, put into their table."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from hubbub.history.room_log import Membership, RoomLog
from hubbub.models import Role
from hubbub.postgres import OpenTransaction, Statement

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

Member = tuple[UUID, UUID, Membership]


async def store_memberships(transaction: OpenTransaction, rooms: Sequence[RoomLog]) -> None:
    """To be done once the messages are stored that they may name."""
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
    states = [(room.id, user_id, one) for room in rooms for user_id, one in room.states.items()]
    if states:
        await _set_members(transaction, states)


async def _give_roles(transaction: OpenTransaction, given: Sequence[tuple[UUID, UUID, Role]]) -> None:
    await transaction.execute(
        GIVE_ROLES,
        [room_id for room_id, _, _ in given],
        [user_id for _, user_id, _ in given],
        [role for _, _, role in given],
    )


async def _add(transaction: OpenTransaction, members: Sequence[Member]) -> None:
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


async def _set_members(transaction: OpenTransaction, members: Sequence[Member]) -> None:
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
