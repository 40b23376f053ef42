"""The rules of the schema, looked at row by row: what the database is trusted with, checked once without trust."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from hubbub.cli._demo.figures import Check, Claim
from hubbub.migrations import TABLES
from hubbub.postgres import Pool, Statement


class RoomLog(NamedTuple):
    room_id: UUID
    last_seq: int
    entries: int
    places: int
    lowest: int
    highest: int


_LOG = Statement(
    "demo.log",
    RoomLog,
    """
    SELECT
        rooms.id AS room_id,
        rooms.last_seq,
        count(log.seq) AS entries,
        count(DISTINCT log.seq) AS places,
        COALESCE(min(log.seq), 1) AS lowest,
        COALESCE(max(log.seq), 0) AS highest
    FROM rooms
    LEFT JOIN (
        SELECT room_id, seq
        FROM messages
        UNION ALL
        SELECT room_id, seq
        FROM room_events
    ) AS log ON log.room_id = rooms.id
    GROUP BY rooms.id
    """,
)


async def numbering(pool: Pool) -> Check:
    """Messages and events of a room have the places 1 to last_seq, each place once."""
    claim = Claim("logs are numbered without a hole")
    for room in await pool.fetch_all(_LOG):
        whole = (room.lowest, room.highest) == (1, room.last_seq) and room.entries == room.places == room.last_seq
        claim.holds(whole, f"room {room.room_id}: {room.entries:,} entries, head at {room.last_seq:,}")
    return claim.check()


class Marks(NamedTuple):
    members: int
    astray: int


_MARKS = Statement(
    "demo.marks",
    Marks,
    """
    SELECT
        count(*) AS members,
        count(*) FILTER (WHERE last_read_message_id <> (
            SELECT messages.id
            FROM messages
            WHERE messages.room_id = room_users.room_id
                AND messages.seq <= room_users.last_read_seq
            ORDER BY messages.seq DESC
            LIMIT 1
        )) AS astray
    FROM room_users
    """,
)


async def read_marks(pool: Pool) -> Check:
    [found] = await pool.fetch_all(_MARKS)
    wrong = (f"{found.astray:,} members have read up to one message, and their mark names another",)
    return Check(
        what="read marks name the right message",
        count=found.members,
        wrong=wrong if found.astray else (),
    )


class Reference(NamedTuple):
    name: str
    filled: int
    orphans: int


_ORPHANS = Statement(
    "demo.orphans",
    Reference,
    """
    SELECT
        'rooms.created_by' AS name,
        count(rooms.created_by) AS filled,
        count(rooms.created_by) FILTER (WHERE users.id IS NULL) AS orphans
    FROM rooms
    LEFT JOIN users ON users.id = rooms.created_by
    UNION ALL
    SELECT
        'messages.room_id',
        count(messages.room_id),
        count(messages.room_id) FILTER (WHERE rooms.id IS NULL)
    FROM messages
    LEFT JOIN rooms ON rooms.id = messages.room_id
    UNION ALL
    SELECT
        'messages.user_id',
        count(messages.user_id),
        count(messages.user_id) FILTER (WHERE users.id IS NULL)
    FROM messages
    LEFT JOIN users ON users.id = messages.user_id
    UNION ALL
    SELECT
        'room_users.room_id',
        count(room_users.room_id),
        count(room_users.room_id) FILTER (WHERE rooms.id IS NULL)
    FROM room_users
    LEFT JOIN rooms ON rooms.id = room_users.room_id
    UNION ALL
    SELECT
        'room_users.user_id',
        count(room_users.user_id),
        count(room_users.user_id) FILTER (WHERE users.id IS NULL)
    FROM room_users
    LEFT JOIN users ON users.id = room_users.user_id
    UNION ALL
    SELECT
        'room_users.last_read_message_id',
        count(room_users.last_read_message_id),
        count(room_users.last_read_message_id) FILTER (WHERE messages.id IS NULL)
    FROM room_users
    LEFT JOIN messages ON messages.id = room_users.last_read_message_id
    UNION ALL
    SELECT
        'message_read_receipts.message_id',
        count(message_read_receipts.message_id),
        count(message_read_receipts.message_id) FILTER (WHERE messages.id IS NULL)
    FROM message_read_receipts
    LEFT JOIN messages ON messages.id = message_read_receipts.message_id
    UNION ALL
    SELECT
        'message_read_receipts.user_id',
        count(message_read_receipts.user_id),
        count(message_read_receipts.user_id) FILTER (WHERE users.id IS NULL)
    FROM message_read_receipts
    LEFT JOIN users ON users.id = message_read_receipts.user_id
    UNION ALL
    SELECT
        'message_read_receipts.room_id',
        count(message_read_receipts.room_id),
        count(message_read_receipts.room_id) FILTER (WHERE rooms.id IS NULL)
    FROM message_read_receipts
    LEFT JOIN rooms ON rooms.id = message_read_receipts.room_id
    UNION ALL
    SELECT
        'room_events.room_id',
        count(room_events.room_id),
        count(room_events.room_id) FILTER (WHERE rooms.id IS NULL)
    FROM room_events
    LEFT JOIN rooms ON rooms.id = room_events.room_id
    UNION ALL
    SELECT
        'room_events.message_id',
        count(room_events.message_id),
        count(room_events.message_id) FILTER (WHERE messages.id IS NULL)
    FROM room_events
    LEFT JOIN messages ON messages.id = room_events.message_id
    UNION ALL
    SELECT
        'room_events.user_id',
        count(room_events.user_id),
        count(room_events.user_id) FILTER (WHERE users.id IS NULL)
    FROM room_events
    LEFT JOIN users ON users.id = room_events.user_id
    """,
)


async def references(pool: Pool) -> Check:
    """The last two columns have no foreign key in the schema, and nobody was deleted here."""
    found = await pool.fetch_all(_ORPHANS)
    wrong = tuple(f"{one.orphans:,} rows of {one.name} lead nowhere" for one in found if one.orphans)
    return Check(what="every reference leads somewhere", count=sum(one.filled for one in found), wrong=wrong)


class Constraint(NamedTuple):
    name: str
    is_valid: bool


_CONSTRAINTS = Statement(
    "demo.constraints",
    Constraint,
    """
    SELECT pg_constraint.conname::text AS name, pg_constraint.convalidated AS is_valid
    FROM pg_constraint
    JOIN pg_class ON pg_class.oid = pg_constraint.conrelid
    WHERE pg_class.relnamespace = current_schema()::regnamespace
        AND pg_class.relname = ANY($1::text[])
    """,
)


async def constraints(pool: Pool) -> Check:
    found = await pool.fetch_all(_CONSTRAINTS, list(TABLES))
    wrong = tuple(f"{one.name} is not valid" for one in found if not one.is_valid)
    return Check(what="every rule of the schema is in force", count=len(found), wrong=wrong)
