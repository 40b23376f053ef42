"""The rows of a filled database after up and after down."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from hubbub import Invalid, PostgresSettings, migrations
from hubbub.migrations import REVISIONS, revisions
from hubbub.postgres import connect
from migrations.catalog import schema
from migrations.documents import blocks
from migrations.filled import HUBBUB_ROWS, ORIGINAL_ROWS, fill

if TYPE_CHECKING:
    from hubbub.postgres.connection import Connection

A_USER = "INSERT INTO users (email, username, password_hash) VALUES"


@pytest.fixture
async def original_schema(empty_database: PostgresSettings) -> PostgresSettings:
    await migrations.up(empty_database, "0005")
    return empty_database


@pytest.fixture
async def filled(original_schema: PostgresSettings) -> PostgresSettings:
    await fill(original_schema, ORIGINAL_ROWS)
    return original_schema


@pytest.fixture
async def connection(empty_database: PostgresSettings) -> AsyncIterator[Connection]:
    connection = await connect(empty_database)
    yield connection
    await connection.close()


async def test_messages_get_seq_by_time_in_each_room(filled: PostgresSettings, connection: Connection) -> None:
    by_time = "SELECT room_id, id FROM messages ORDER BY room_id, created_at, id"
    before = await connection.fetch(by_time)
    await migrations.up(filled)
    assert await connection.fetch("SELECT room_id, id FROM messages ORDER BY room_id, seq") == before
    heads = await connection.fetch("""
        SELECT rooms.last_seq, count(seq), min(seq), max(seq)
        FROM rooms
        LEFT JOIN messages ON messages.room_id = rooms.id
        GROUP BY rooms.id
        ORDER BY rooms.last_seq
    """)
    assert [tuple(head) for head in heads] == [(0, 0, None, None)] + [(40, 40, 1, 40)] * 9


async def test_last_read_message_becomes_a_read_mark(filled: PostgresSettings, connection: Connection) -> None:
    await migrations.up(filled)
    marks = await connection.fetch("""
        SELECT last_read_seq, last_read_message_id IS NULL AS nothing, count(*)
        FROM room_users
        GROUP BY 1, 2
        ORDER BY 1
    """)
    assert [tuple(mark) for mark in marks] == [(0, True, 491), (40, False, 9)]


async def test_last_read_message_of_another_room_is_removed(
    filled: PostgresSettings, connection: Connection
) -> None:
    await fill(filled, "UPDATE room_users SET last_read_message_id = (SELECT id FROM messages LIMIT 1)")
    await migrations.up(filled)
    found = await connection.fetch("""
        SELECT messages.room_id = room_users.room_id, messages.seq = room_users.last_read_seq, count(*)
        FROM room_users
        LEFT JOIN messages ON messages.id = room_users.last_read_message_id
        GROUP BY 1, 2
        ORDER BY 3
    """)
    assert [tuple(one) for one in found] == [(True, True, 50), (None, None, 450)]


async def test_receipt_gets_room_of_its_message(filled: PostgresSettings, connection: Connection) -> None:
    await migrations.up(filled)
    strays = """
        SELECT count(*)
        FROM message_read_receipts
        JOIN messages ON messages.id = message_read_receipts.message_id
        WHERE messages.room_id = message_read_receipts.room_id
    """
    assert await connection.fetchval(strays) == 450


async def test_null_becomes_the_default_of_its_column(filled: PostgresSettings, connection: Connection) -> None:
    await migrations.up(filled)
    assert (
        await connection.fetchval("SELECT count(*) FROM users WHERE NOT is_online AND created_at <= now()") == 50
    )
    assert await connection.fetchval("SELECT count(*) FROM rooms WHERE NOT is_private") == 7
    assert await connection.fetchval("SELECT count(*) FROM room_users WHERE role = 'member'") == 490
    types = "SELECT message_type, count(*) FROM messages GROUP BY 1 ORDER BY 1"
    assert [tuple(row) for row in await connection.fetch(types)] == [("image", 36), ("text", 324)]


@pytest.mark.parametrize(
    ("revision", "row", "field", "reason"),
    [
        ("0006", "INSERT INTO messages (content) VALUES ('lost')", "room_id", "messages without a room (1)"),
        ("0009", f"{A_USER} ('a@b', 'a', '!'), ('A@b', 'b', '!')", "email", "emails that differ only in case (1)"),
        (
            "0009",
            f"{A_USER} ('a@b', 'a', '!'), ('c@d', 'A', '!')",
            "username",
            "usernames that differ only in case (1)",
        ),
        (
            "0009",
            f"{A_USER} ('nonsense', 'a', '!')",
            "users_email_check",
            "rows of users that break this rule (1)",
        ),
        (
            "0009",
            "INSERT INTO rooms (name) VALUES (' '), ('')",
            "rooms_name_check",
            "rows of rooms that break this rule (2)",
        ),
    ],
)
async def test_rows_that_break_a_rule_stop_the_revision_before_it_changes_anything(
    original_schema: PostgresSettings, connection: Connection, revision: str, row: str, field: str, reason: str
) -> None:
    await fill(original_schema, row)
    before = revisions.previous(revision)
    await migrations.up(original_schema, before)
    schema_before = await schema(original_schema)
    with pytest.raises(Invalid) as refused:
        await migrations.up(original_schema)
    assert refused.value.field == field
    assert refused.value.reason.startswith(f"the database holds {reason};")
    assert await schema(original_schema) == schema_before
    assert (await migrations.status(original_schema)).current == before
    # The query in the error finds the rows.
    query = refused.value.reason.partition("find them with: ")[2]
    assert len(await connection.fetch(query)) == int(reason[-2])


async def test_down_keeps_rows_that_the_original_schema_can_hold(
    filled: PostgresSettings, connection: Connection
) -> None:
    await migrations.up(filled)
    await fill(filled, HUBBUB_ROWS)
    await migrations.down(filled, "0005")
    # Two of forty messages were deleted in each of nine rooms. One of them was the last that the creator of the
    # room had read. Now that is the message before it.
    assert await connection.fetchval("SELECT count(*) FROM messages") == 9 * 38
    assert await connection.fetchval("SELECT count(*) FROM messages WHERE content = ''") == 0
    await migrations.up(filled)
    assert await connection.fetchval("SELECT count(*) FROM room_users WHERE last_read_seq = 38") == 9


async def test_down_gives_messages_a_form_that_the_former_rule_allows(
    filled: PostgresSettings, connection: Connection
) -> None:
    await migrations.up(filled)
    await fill(
        filled,
        """
        UPDATE messages SET content = '', metadata = '{}' WHERE seq = 1;
        UPDATE messages SET content = repeat('ä', 30000) WHERE seq = 2;
        UPDATE messages SET content = '', deleted_at = now() WHERE seq = 3;
        """,
    )
    await migrations.down(filled, "0013")
    contents = "SELECT DISTINCT length(content) FROM messages WHERE seq = $1"
    for _ in range(2):
        assert [await connection.fetchval(contents, seq) for seq in (1, 2, 3)] == [1, 20_000, 0]
        assert await connection.fetchval("SELECT count(*) FROM messages") == 360
        await migrations.up(filled)


async def test_down_turns_changes_of_memberships_into_changes_of_roles(
    filled: PostgresSettings, connection: Connection
) -> None:
    await migrations.up(filled)
    await fill(filled, HUBBUB_ROWS)
    await fill(
        filled,
        """
        UPDATE room_events
        SET kind = 'member_changed', payload = '{"metadata": {}}', user_id = (
            SELECT created_by FROM rooms WHERE rooms.id = room_events.room_id
        )
        """,
    )
    await migrations.down(filled, "0017")
    payloads = "SELECT DISTINCT kind, payload FROM room_events"
    for _ in range(2):
        [row] = await connection.fetch(payloads)
        assert tuple(row) == ("role_changed", '{"role": "admin"}')
        await migrations.up(filled)


async def test_down_gives_accounts_of_other_systems_an_address_and_no_password(
    filled: PostgresSettings, connection: Connection
) -> None:
    await migrations.up(filled)
    await fill(
        filled,
        """
        INSERT INTO users (id, username, external_id)
        VALUES ('01926e5c-0000-7000-8000-00000000000a', 'ada', 'google-oauth2|1')
        """,
    )
    await migrations.down(filled, "0016")
    login = "SELECT email, password_hash FROM users WHERE username = 'ada'"
    for _ in range(2):
        [account] = await connection.fetch(login)
        assert tuple(account) == ("01926e5c00007000800000000000000a@import.invalid", "!")
        assert await connection.fetchval("SELECT count(*) FROM users") == 51
        await migrations.up(filled)


async def test_tables_of_the_original_schema_are_taken_over(
    empty_database: PostgresSettings, postgres_settings: PostgresSettings, connection: Connection
) -> None:
    await migrations.up(empty_database, "0005")
    await fill(empty_database, f"{ORIGINAL_ROWS}; DROP TABLE hubbub_schema_version")
    with pytest.raises(Invalid, match="users already, and no revision of hubbub"):
        await migrations.up(empty_database)
    await fill(empty_database, "DROP TABLE IF EXISTS hubbub_schema_version")
    await fill(empty_database, "".join(blocks("migrations.md", "sql")))
    assert await migrations.up(empty_database) == list(REVISIONS[5:])
    assert await schema(empty_database) == await schema(postgres_settings)
    assert await connection.fetchval("SELECT count(*) FROM messages") == 360
