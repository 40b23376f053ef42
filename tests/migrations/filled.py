"""Rows that a migration has to keep."""

from __future__ import annotations

from hubbub.postgres import connect
from hubbub.settings import PostgresSettings

# Rows as an application on the original tables leaves them: without seq, and with NULL in columns with a default.
ORIGINAL_ROWS = """
    INSERT INTO users (email, username, password_hash, is_online, created_at)
    SELECT 'user-' || n || '@Example.org', 'User-' || n, '!', nullif(n % 5 = 0, true), nullif(now(), now())
    FROM generate_series(1, 50) AS n;

    INSERT INTO rooms (name, description, is_private, created_by)
    SELECT 'room ' || number, 'about ' || number, nullif(number % 3 = 0, false), id
    FROM (SELECT id, row_number() OVER (ORDER BY username) AS number FROM users) AS users
    WHERE number <= 10;

    INSERT INTO room_users (room_id, user_id, role)
    SELECT rooms.id, users.id, CASE WHEN rooms.created_by = users.id THEN 'admin' END
    FROM rooms
    CROSS JOIN users;

    INSERT INTO messages (room_id, user_id, content, message_type, created_at)
    SELECT
        rooms.id,
        rooms.created_by,
        rooms.name || ' says ' || n,
        nullif(CASE WHEN n % 10 = 0 THEN 'image' ELSE 'text' END, 'text'),
        timestamptz '2024-01-01 00:00 UTC' + n / 2 * interval '1 minute'
    FROM rooms
    CROSS JOIN generate_series(1, 40) AS n
    WHERE rooms.name <> 'room 10';

    UPDATE room_users
    SET last_read_message_id = (
        SELECT id FROM messages WHERE room_id = room_users.room_id ORDER BY created_at DESC, id DESC LIMIT 1
    )
    WHERE role = 'admin';

    INSERT INTO message_read_receipts (message_id, user_id)
    SELECT messages.id, room_users.user_id
    FROM messages
    JOIN room_users ON room_users.room_id = messages.room_id
    WHERE messages.content LIKE '%says 40';
"""

# Rows that are written only by hubbub: tombstones, events, read marks, direct rooms.
HUBBUB_ROWS = """
    UPDATE messages
    SET content = '', deleted_at = now()
    WHERE seq IN (20, 40);

    INSERT INTO room_events (room_id, seq, kind, message_id, payload)
    SELECT room_id, 41, 'deleted', id, '{}'
    FROM messages
    WHERE seq = 40;

    UPDATE rooms
    SET last_seq = 41
    WHERE last_seq = 40;

    UPDATE room_users
    SET last_read_seq = 41
    WHERE role = 'admin' AND last_read_seq = 40;

    INSERT INTO rooms (name, is_private, direct_key)
    VALUES ('direct', true, sha256('ada bob'));
"""


async def fill(settings: PostgresSettings, rows: str) -> None:
    connection = await connect(settings)
    try:
        await connection.execute(rows)
    finally:
        await connection.close()
