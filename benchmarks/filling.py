"""Fills the table of messages with millions of rows in about a minute."""

from __future__ import annotations

import time
from typing import Final

from benchmarks.context import connect, id_of
from hubbub import PostgresSettings

# Every second message is in one of ten hot rooms. The others are in 400 rooms in turn. One room has only the first
# 60 messages.
HOT_ROOM: Final = id_of(1)
USUAL_ROOM: Final = id_of(300)
QUIET_ROOM: Final = id_of(1_000)
READER: Final = id_of(900)
"""A member of the first 100 rooms, with nothing read in even rooms and all but 30 messages read in odd rooms."""

# The room and the seq of message n, computed so that nothing has to be counted.
ROWS = """
    SELECT
        uuidv7(make_interval(secs => n - 10000000)) AS id,
        ('00000000-0000-7000-8000-' || lpad(to_hex(room), 12, '0'))::uuid AS room_id,
        seq,
        ('00000000-0000-7000-8000-' || lpad(to_hex(n % 1000 * 7919 % 1000 + 1), 12, '0'))::uuid AS user_id,
        'message ' || n || repeat(' and so on', n % 12) AS content,
        now() + make_interval(secs => n - 10000000) AS at
    FROM (
        SELECT
            n,
            CASE
                WHEN n < 60 THEN 1000
                WHEN n % 2 = 0 THEN (n - 60) / 2 % 10 + 1
                ELSE (n - 61) / 2 % 400 + 11
            END AS room,
            CASE
                WHEN n < 60 THEN n + 1
                WHEN n % 2 = 0 THEN (n - 60) / 2 / 10 + 1
                ELSE (n - 61) / 2 / 400 + 1
            END AS seq
        FROM generate_series({first}, {last}) AS n
    ) AS numbered
"""
LOAD = f"""
INSERT INTO messages (id, room_id, seq, user_id, content, created_at, updated_at)
SELECT id, room_id, seq, user_id, content, at, at
FROM ({ROWS}) AS rows
"""
PEOPLE = """
INSERT INTO users (id, email, username, password_hash)
SELECT
    ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid,
    'user-' || n || '@example.org',
    'user-' || n,
    'not a hash'
FROM generate_series(1, 1000) AS n
ON CONFLICT DO NOTHING
"""
ROOMS = """
INSERT INTO rooms (id, name)
SELECT ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'room-' || n
FROM generate_series(1, 1000) AS n
ON CONFLICT DO NOTHING
"""
HEADS = """
UPDATE rooms
SET last_seq = heads.seq
FROM (SELECT room_id, max(seq) AS seq FROM messages GROUP BY room_id) AS heads
WHERE heads.room_id = rooms.id
"""
MEMBERSHIPS = """
INSERT INTO room_users (room_id, user_id, last_read_seq)
SELECT rooms.id, '{reader}', CASE WHEN n % 2 = 0 THEN 0 ELSE GREATEST(last_seq - 30, 0) END
FROM generate_series(1, 100) AS n
JOIN rooms ON rooms.id = ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid
ON CONFLICT (room_id, user_id) DO UPDATE SET last_read_seq = excluded.last_read_seq
"""

# All keys of messages, and foreign keys to them. Foreign keys are dropped first and restored last.
CONSTRAINTS = """
SELECT conrelid::regclass::text AS relation, conname AS name, pg_get_constraintdef(oid) AS definition
FROM pg_constraint
WHERE (conrelid = 'messages'::regclass OR confrelid = 'messages'::regclass)
    AND contype IN ('p', 'u', 'f')
ORDER BY contype = 'f' DESC
"""
INDEXES = """
SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS definition
FROM pg_index
WHERE indrelid = 'messages'::regclass
    AND NOT EXISTS (SELECT 1 FROM pg_constraint WHERE conindid = indexrelid)
"""


async def fill(superuser: PostgresSettings, have: int, want: int) -> float:
    """Insert messages number `have` to `want`. Returns the seconds that it took.

    Indexes and foreign keys are dropped, and restored by their definitions. Restoring them checks the rows.
    """
    began = time.perf_counter()
    connection = await connect(superuser)
    try:
        await connection.execute("SET maintenance_work_mem = '512MB'")
        # Only on this connection. The measurements run on others, after a checkpoint.
        await connection.execute("SET synchronous_commit = off")
        for statement in (PEOPLE, ROOMS):
            await connection.execute(statement)
        constraints, indexes = await connection.fetch(CONSTRAINTS), await connection.fetch(INDEXES)
        for relation, name, _ in constraints:
            await connection.execute(f"ALTER TABLE {relation} DROP CONSTRAINT {name}")
        for name, _ in indexes:
            await connection.execute(f"DROP INDEX {name}")
        await connection.execute(LOAD.format(first=have, last=want - 1))
        for _, definition in indexes:
            await connection.execute(definition)
        for relation, name, definition in reversed(constraints):
            await connection.execute(f"ALTER TABLE {relation} ADD CONSTRAINT {name} {definition}")
        for statement in (HEADS, MEMBERSHIPS.format(reader=READER), "VACUUM ANALYZE", "CHECKPOINT"):
            await connection.execute(statement)
    finally:
        await connection.close()
    return time.perf_counter() - began
