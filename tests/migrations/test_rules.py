"""The values that each named constraint refuses, their errors, and the rows that a deletion removes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from hubbub import Conflict, HubbubError, Invalid, NotFound, PostgresSettings
from hubbub.postgres import Pool, Statement
from hubbub.postgres.errors import CHECK_CONSTRAINTS, FOREIGN_KEYS, UNIQUE_CONSTRAINTS
from migrations.filled import fill

TABLES = (
    "users",
    "rooms",
    "messages",
    "room_users",
    "room_events",
    "hubbub_imports",
    "hubbub_consumers",
    "hubbub_sessions",
    "hubbub_presence",
)

ROWS = """
    INSERT INTO users (id, email, username, password_hash)
    VALUES ('00000000-0000-0000-0000-00000000000a', 'ada@example.org', 'ada', '!');

    INSERT INTO rooms (id, name, is_private, direct_key)
    VALUES ('00000000-0000-0000-0000-00000000000b', 'engine-room', true, sha256('a'));

    INSERT INTO messages (id, room_id, seq, user_id, content)
    VALUES (
        '00000000-0000-0000-0000-00000000000c',
        '00000000-0000-0000-0000-00000000000b',
        1,
        '00000000-0000-0000-0000-00000000000a',
        'hello'
    );

    INSERT INTO room_users (room_id, user_id)
    VALUES ('00000000-0000-0000-0000-00000000000b', '00000000-0000-0000-0000-00000000000a');

    INSERT INTO message_read_receipts (message_id, user_id, room_id)
    VALUES (
        '00000000-0000-0000-0000-00000000000c',
        '00000000-0000-0000-0000-00000000000a',
        '00000000-0000-0000-0000-00000000000b'
    );

    INSERT INTO room_events (room_id, seq, kind)
    VALUES ('00000000-0000-0000-0000-00000000000b', 2, 'joined');

    INSERT INTO hubbub_imports (digest, lines)
    VALUES (sha256('history'), 1);

    INSERT INTO hubbub_deletions (id, is_room)
    VALUES ('00000000-0000-0000-0000-00000000000a', false);

    INSERT INTO hubbub_consumers (name, part, transaction_id, room_id, seq, server, read_at)
    VALUES ('push', 0, 1, '00000000-0000-0000-0000-00000000000b', 1, '', now());

    INSERT INTO hubbub_sessions (id, user_id, ends_at, expires_at, data)
    VALUES (sha256('token'), '00000000-0000-0000-0000-00000000000a', now(), now(), '{}');

    INSERT INTO hubbub_presence (user_id, is_online, last_seen)
    VALUES ('00000000-0000-0000-0000-00000000000a', true, now())
"""

A_USER = "INSERT INTO users (email, username, password_hash) VALUES "
TWICE = "INSERT INTO {0} SELECT * FROM {0}"

TAKING = {
    "users_pkey": "INSERT INTO users (id, email, username, password_hash) SELECT id, 'b@c', 'b', '!' FROM users",
    "idx_users_email": f"{A_USER} ('ADA@Example.org', 'other', '!')",
    "idx_users_username": f"{A_USER} ('other@example.org', 'ADA', '!')",
    "idx_users_external_id": (
        "INSERT INTO users (username, external_id) VALUES ('b', 'google|1'), ('c', 'google|1')"
    ),
    "rooms_pkey": "INSERT INTO rooms (id, name) SELECT id, 'x' FROM rooms",
    "rooms_direct_key_key": "INSERT INTO rooms (name, is_private, direct_key) VALUES ('x', true, sha256('a'))",
    "messages_pkey": "INSERT INTO messages (id, room_id, seq, content) SELECT id, room_id, 9, 'x' FROM messages",
    "idx_messages_room_id": "INSERT INTO messages (room_id, seq, content) SELECT room_id, 1, 'x' FROM messages",
    "room_users_pkey": TWICE.format("room_users"),
    "message_read_receipts_pkey": TWICE.format("message_read_receipts"),
    "room_events_pkey": TWICE.format("room_events"),
    "hubbub_imports_pkey": TWICE.format("hubbub_imports"),
    "hubbub_deletions_pkey": TWICE.format("hubbub_deletions"),
    "hubbub_consumers_pkey": TWICE.format("hubbub_consumers"),
    "hubbub_sessions_pkey": TWICE.format("hubbub_sessions"),
    "hubbub_presence_pkey": TWICE.format("hubbub_presence"),
}

MISSED = {
    "rooms_created_by_fkey": "UPDATE rooms SET created_by = gen_random_uuid()",
    "messages_room_id_fkey": "UPDATE messages SET room_id = gen_random_uuid()",
    "messages_user_id_fkey": "UPDATE messages SET user_id = gen_random_uuid()",
    "room_users_room_id_fkey": "UPDATE room_users SET room_id = gen_random_uuid()",
    "room_users_user_id_fkey": "UPDATE room_users SET user_id = gen_random_uuid()",
    "room_users_last_read_message_id_fkey": "UPDATE room_users SET last_read_message_id = gen_random_uuid()",
    "message_read_receipts_message_id_fkey": "UPDATE message_read_receipts SET message_id = gen_random_uuid()",
    "message_read_receipts_user_id_fkey": "UPDATE message_read_receipts SET user_id = gen_random_uuid()",
    "hubbub_sessions_user_id_fkey": "UPDATE hubbub_sessions SET user_id = gen_random_uuid()",
    "room_events_room_id_fkey": "UPDATE room_events SET room_id = gen_random_uuid()",
}

METADATA = [
    "metadata = '[]'",
    "metadata = 'null'",
    "metadata = '\"text\"'",
    "metadata = jsonb_build_object('text', repeat('x', 65536))",
    "metadata = jsonb_build_object('text', repeat('\u00e4', 32768))",
    "metadata = '{\"number\": 1e65536}'",
]

BREAKING = {
    "hubbub_consumers_part_check": ["part = -1", "part = 16"],
    "hubbub_sessions_id_check": ["id = ''", "id = 'short'"],
    "users_email_check": ["email = 'ada'", "email = '@example.org'", "email = 'ada@'", "email = ''"],
    "users_username_check": [
        "username = ''",
        "username = 'a@b'",
        "username = ' ada'",
        "username = 'ada '",
        "username = E'ada\\n'",
        "username = E'\\tada'",
    ],
    "users_password_hash_check": ["password_hash = ''"],
    "users_external_id_check": ["external_id = ''", "external_id = repeat('x', 256)"],
    "users_kind_check": ["kind = 'Bot'", "kind = ''"],
    "users_display_name_check": ["display_name = ''", "display_name_key = repeat('x', 101)"],
    "users_metadata_check": METADATA,
    "rooms_name_check": ["name = ''", "name = E' \\t\\n '"],
    "rooms_description_check": ["description = repeat('x', 4001)"],
    "rooms_last_seq_check": ["last_seq = -1"],
    "rooms_metadata_check": METADATA,
    "room_users_metadata_check": METADATA,
    "rooms_direct_key_check": ["direct_key = 'short'", "is_private = false"],
    "messages_content_check": [
        "content = ''",
        "content = repeat('x', 65537)",
        "content = repeat('x', 65537), metadata = '{}'",
        "deleted_at = now()",
        "deleted_at = now(), metadata = '{}'",
    ],
    "messages_message_type_check": ["message_type = 'video'", "message_type = 'TEXT'"],
    "messages_seq_check": ["seq = 0"],
    "messages_metadata_check": METADATA,
    "messages_reply_to_check": ["reply_to = id"],
    "room_users_role_check": ["role = 'owner'", "role = ''"],
    "room_users_last_read_seq_check": ["last_read_seq = -1"],
    "room_users_joined_seq_check": ["joined_seq = -1"],
    "room_events_seq_check": ["seq = 0"],
    "room_events_kind_check": ["kind = 'created'"],
    "hubbub_imports_digest_check": ["digest = ''", "digest = 'short'"],
    "hubbub_imports_lines_check": ["lines = 0"],
}

KEEPING = {
    "users": [
        "email = NULL, password_hash = NULL",
        "external_id = repeat('\u00e4', 255), kind = 'bot', display_name = ' '",
        "email = 'a@b'",
        "username = 'Ada Lovelace'",
        "username = '\u00e4da'",
    ],
    "rooms": [
        "description = repeat('\u00e4', 4000)",
        "name = '\u2603'",
        "direct_key = NULL, is_private = false",
        "metadata = '{}'",
        "metadata = NULL, description = NULL",
    ],
    "messages": [
        "content = ' '",
        "content = repeat('\u00e4', 65536)",
        "content = '', metadata = '{}'",
        "content = '', message_type = 'image'",
        "content = '', deleted_at = now()",
        "metadata = '{}'",
        "metadata = jsonb_build_object('text', repeat('x', 65000))",
        "reply_to = gen_random_uuid()",
    ],
}


@pytest.fixture
async def filled(postgres_settings: PostgresSettings) -> AsyncIterator[Pool]:
    """A pool of the owner, because an application may not run most of these statements."""
    await fill(postgres_settings, ROWS)
    pool = Pool(postgres_settings)
    await pool.open()
    yield pool
    await pool.close()


async def _execute(pool: Pool, sql: str) -> int:
    return await pool.execute(Statement("test", int, sql))


async def _refusal(pool: Pool, sql: str) -> HubbubError:
    with pytest.raises(HubbubError) as refused:
        await _execute(pool, sql)
    return refused.value


@pytest.mark.parametrize("name", UNIQUE_CONSTRAINTS)
async def test_duplicate_of_unique_value_is_a_conflict(filled: Pool, name: str) -> None:
    error = await _refusal(filled, TAKING[name])
    assert isinstance(error, Conflict)
    assert error.what == UNIQUE_CONSTRAINTS[name]


@pytest.mark.parametrize("name", FOREIGN_KEYS)
async def test_reference_to_missing_row_is_not_found(filled: Pool, name: str) -> None:
    error = await _refusal(filled, MISSED[name])
    assert isinstance(error, NotFound)
    assert error.kind == FOREIGN_KEYS[name]


@pytest.mark.parametrize("name", CHECK_CONSTRAINTS)
async def test_value_that_breaks_a_rule_is_invalid(filled: Pool, name: str) -> None:
    table = next(table for table in TABLES if name.startswith(f"{table}_"))
    for change in BREAKING[name]:
        error = await _refusal(filled, f"UPDATE {table} SET {change}")
        assert isinstance(error, Invalid), change
        assert (error.field, error.reason) == CHECK_CONSTRAINTS[name], change


async def test_rules_of_rooms_hold_for_new_ones_and_are_not_looked_at_by_a_send(filled: Pool) -> None:
    error = await _refusal(filled, "INSERT INTO rooms (name) VALUES (' ')")
    assert isinstance(error, Invalid)
    assert error.field == "name"
    await _execute(filled, "ALTER TABLE rooms DISABLE TRIGGER hubbub_check_room")
    await _execute(filled, "UPDATE rooms SET name = ' '")
    await _execute(filled, "ALTER TABLE rooms ENABLE TRIGGER hubbub_check_room")
    assert await _execute(filled, "UPDATE rooms SET last_seq = last_seq + 1") == 1


@pytest.mark.parametrize("table", KEEPING)
async def test_value_within_the_rules_is_stored(filled: Pool, table: str) -> None:
    for change in KEEPING[table]:
        assert await _execute(filled, f"UPDATE {table} SET {change}") == 1


async def test_deleting_account_keeps_messages_and_deletes_memberships(filled: Pool) -> None:
    await _execute(filled, "UPDATE rooms SET created_by = (SELECT id FROM users)")
    await _execute(filled, "DELETE FROM users")
    assert await _count(filled, "rooms WHERE created_by IS NULL") == 1
    assert await _count(filled, "messages WHERE user_id IS NULL") == 1
    assert await _count(filled, "room_users") == 0
    assert await _count(filled, "message_read_receipts") == 0


async def test_deleting_room_deletes_log_and_memberships(filled: Pool) -> None:
    await filled.execute(
        Statement("test", int, "UPDATE room_users SET last_read_message_id = (SELECT id FROM messages)")
    )
    await _execute(filled, "DELETE FROM rooms")
    for table in ("messages", "room_events", "room_users", "message_read_receipts"):
        assert await _count(filled, table) == 0
    assert await _count(filled, "users") == 1


async def test_last_read_message_can_be_deleted(filled: Pool) -> None:
    await filled.execute(
        Statement("test", int, "UPDATE room_users SET last_read_message_id = (SELECT id FROM messages)")
    )
    await _execute(filled, "DELETE FROM messages")
    assert await _count(filled, "room_users WHERE last_read_message_id IS NULL") == 1


async def _count(pool: Pool, rows: str) -> int | None:
    return await pool.fetch_one(Statement("test", int, f"SELECT count(*) FROM {rows}"))
