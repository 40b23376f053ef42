"""What was imported counts as read, for those who have read nothing there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple
from uuid import UUID

from hubbub.postgres import Pool, Statement

# Rooms a statement, and members of each of them.
ROOMS: Final = 100
MEMBERS: Final = 1_000

NOBODY: Final = UUID(int=0)


class Head(NamedTuple):
    """The last entry of a room."""

    room_id: UUID
    seq: int


class _Marked(NamedTuple):
    room_id: UUID
    user_id: UUID


HEADS = Statement(
    "history.heads",
    Head,
    """
    SELECT
        id AS room_id,
        last_seq AS seq
    FROM rooms
    WHERE id = ANY($1::uuid[])
    """,
)

# A table that was just filled has no statistics, and of a room that seems small each step would sort all members:
# with 300,000 of them that is 137 ms a step instead of 14, and more with more.
IN_ORDER = Statement(
    "history.members_in_order",
    str,
    """
    SELECT set_config('enable_sort', 'off', true)
    """,
)

# Of those who have read something there nothing is touched: so what was marked as unread since stays so. Locked in
# one order, since two imports may end at once.
MARK = Statement(
    "history.count_as_read",
    _Marked,
    """
    WITH page AS MATERIALIZED (
        SELECT
            head.room_id,
            head.seq,
            member.user_id
        FROM unnest($1::uuid[], $2::bigint[], $3::uuid[]) AS head (room_id, seq, after)
        CROSS JOIN LATERAL (
            SELECT user_id
            FROM room_users
            WHERE room_users.room_id = head.room_id
                AND room_users.user_id > head.after
            ORDER BY user_id
            LIMIT $4
            FOR NO KEY UPDATE
        ) AS member
    ), marked AS (
        UPDATE room_users
        SET last_read_seq = page.seq
        FROM page
        WHERE room_users.room_id = page.room_id
            AND room_users.user_id = page.user_id
            AND room_users.last_read_message_id IS NULL
            AND room_users.last_read_seq < page.seq
    )
    SELECT DISTINCT ON (room_id)
        room_id,
        user_id
    FROM page
    ORDER BY
        room_id,
        user_id DESC
    """,
)


async def count_as_read(pool: Pool, heads: Iterable[Head]) -> None:
    """Up to these entries all is read. However many members a room has, nobody waits for more than some of them.

    Each step is a transaction, and all of it may be done again when it was not done to its end.
    """
    ordered = sorted(heads)
    for start in range(0, len(ordered), ROOMS):
        rooms = {head.room_id: head for head in ordered[start : start + ROOMS]}
        after = dict.fromkeys(rooms, NOBODY)
        while after:
            seqs = [rooms[room_id].seq for room_id in after]
            async with pool.transaction() as step:
                await step.fetch_one(IN_ORDER)
                marked = await step.fetch_all(MARK, list(after), seqs, list(after.values()), MEMBERS)
            after = dict(marked)
