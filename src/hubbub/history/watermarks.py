"""Imported entries count as read, for the members who have read nothing in the room."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final
from uuid import UUID

from hubbub.history.lines import Line, room_id_of
from hubbub.history.room_log import RoomLog
from hubbub.history.source import CHECKPOINTS, SAVE_CHECKPOINT, Batch, Checkpoint
from hubbub.postgres import Pool, Statement

ROOMS_PER_STEP: Final = 100
MEMBERS_PER_STEP: Final = 1_000
"""Of each room. A step is a transaction, and keeps them locked: with 300,000 members in a room for 14 ms."""

HEADS = Statement(
    "history.heads",
    lambda id, last_seq: (id, last_seq),
    "SELECT id, last_seq FROM rooms WHERE id = ANY($1::uuid[])",
)

# A table that was just filled has no statistics, and in a room that seems small each step would sort all members:
# with 300,000 of them that takes 137 ms per step instead of 14, and more with more.
DISABLE_SORT = Statement("history.disable_sort", str, "SELECT set_config('enable_sort', 'off', true)")

# Members who have read something in the room are left alone, so messages that they marked as unread since stay
# unread. They are locked in one order, since two imports may end at the same time.
COUNT_AS_READ = Statement(
    "history.count_as_read",
    lambda room_id, user_id: (room_id, user_id),
    """
    WITH page AS MATERIALIZED (
        SELECT head.room_id, head.seq, member.user_id
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
    ), counted AS (
        UPDATE room_users
        SET last_read_seq = page.seq
        FROM page
        WHERE room_users.room_id = page.room_id
            AND room_users.user_id = page.user_id
            AND room_users.last_read_message_id IS NULL
            AND room_users.last_read_seq < page.seq
    )
    SELECT DISTINCT ON (room_id) room_id, user_id
    FROM page
    ORDER BY room_id, user_id DESC
    """,
)


async def count_as_read(pool: Pool, heads: Mapping[UUID, int]) -> None:
    """All entries up to these seqs count as read, by room.

    Each step is a transaction, which locks few members. All of it may be repeated if it was interrupted.
    """
    ordered = sorted(heads.items())
    for start in range(0, len(ordered), ROOMS_PER_STEP):
        seqs = dict(ordered[start : start + ROOMS_PER_STEP])
        after = dict.fromkeys(seqs, UUID(int=0))
        while after:
            wanted = [seqs[room_id] for room_id in after]
            async with pool.transaction() as step:
                await step.fetch_one(DISABLE_SORT)
                last = await step.fetch_all(
                    COUNT_AS_READ, list(after), wanted, list(after.values()), MEMBERS_PER_STEP
                )
            after = dict(last)


class Watermarks:
    """How far a file went in each room that it names: up to there the room counts as read once all is stored.

    Rooms given by id are left out, as their members have read what their own lines say.
    """

    def __init__(self) -> None:
        self._named: set[UUID] = set()
        self._heads: dict[UUID, int] = {}
        self._before: Checkpoint | None = None

    def advance(self, batch: Batch, before: Checkpoint | None, rooms: Iterable[RoomLog]) -> None:
        """Note how far a stored batch brought its rooms. An earlier run had stored the file up to `before`."""
        self._named |= {
            room_id_of(line) for _, line, _ in batch.taken if isinstance(line, Line) and line.room_id is None
        }
        if before is not None:
            self._before = before
        self._heads |= {room.id: room.last_seq for room in rooms if room.has_grown and room.id in self._named}

    async def store(self, pool: Pool, end: Checkpoint) -> None:
        """Have everything in the file count as read, once for each end that the file had."""
        if self._before is not None and not await self._is_done(pool, self._before):
            unknown = self._named - self._heads.keys()  # a stopped run did not record how far it brought these
            self._heads |= dict(await pool.fetch_all(HEADS, unknown))
        if not await self._is_done(pool, end):
            await count_as_read(pool, self._heads)
            done = end.counted_as_read()
            await pool.execute(SAVE_CHECKPOINT, done.digest, done.lines)

    @staticmethod
    async def _is_done(pool: Pool, checkpoint: Checkpoint) -> bool:
        known = await pool.fetch_all(CHECKPOINTS, checkpoint.lines - 1, checkpoint.lines)
        return checkpoint.counted_as_read() in known
