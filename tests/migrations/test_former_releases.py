"""The SQL files continue the migration of databases that former releases of hubbub migrated by Alembic.

The dumps were written by that code with pg_dump 18: a database that a hub had filled, at 0012; the same after
`down 0008`, with NULL where an application on the original tables could leave it; and that one after a run of
0009 was killed between two statements. Their CHECK ... IN (...) is as the revisions wrote it, because PostgreSQL
reads pg_dump's form of it back with other casts.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hubbub import Hub, PostgresSettings, Settings, migrations
from hubbub.migrations import HEAD, REVISIONS
from hubbub.postgres import connect
from migrations.catalog import schema
from migrations.filled import fill

DUMPS = Path(__file__).parent / "dumps"

ADDED_AFTER_0010 = {"reply_to", "metadata", "keeps_receipts", "joined_seq"}
ROWS_AT_0012 = {
    "users": 3,
    "rooms": 4,
    "messages": 12,
    "room_users": 8,
    "message_read_receipts": 14,
    "room_events": 15,
    "hubbub_imports": 1,
}

VERSION_TABLE_DEFINITION = """
    SELECT attname, format_type(atttypid, atttypmod), attnotnull, conname, pg_get_constraintdef(pg_constraint.oid)
    FROM pg_attribute
    LEFT JOIN pg_constraint ON conrelid = attrelid AND contype = 'p'
    WHERE attrelid = 'hubbub_schema_version'::regclass
        AND attnum > 0
"""

Rows = dict[str, dict[str, dict[str, object]]]
"""The rows by table and primary key, each with its columns."""


async def _load(settings: PostgresSettings, dump: str) -> None:
    await fill(settings, (DUMPS / dump).read_text(encoding="utf-8"))


async def _rows(settings: PostgresSettings) -> Rows:
    connection = await connect(settings)
    found: Rows = {}
    keys = "SELECT conrelid::regclass::text, array_agg(attname::text) FROM pg_constraint "
    keys += "JOIN pg_attribute ON attrelid = conrelid AND attnum = ANY (conkey) "
    keys += "WHERE contype = 'p' AND connamespace = 'public'::regnamespace GROUP BY 1"
    for table, key in await connection.fetch(keys):
        if table == "hubbub_schema_version":
            continue
        rows = [json.loads(row) for (row,) in await connection.fetch(f"SELECT to_jsonb({table}) FROM {table}")]
        found[table] = {" ".join(str(row[column]) for column in sorted(key)): row for row in rows}
    await connection.close()
    return found


async def _version_table(settings: PostgresSettings) -> list[tuple[object, ...]]:
    connection = await connect(settings)
    found = await connection.fetch(VERSION_TABLE_DEFINITION)
    await connection.close()
    return [tuple(row) for row in found]


def _assert_kept(before: Rows, after: Rows) -> None:
    """Assert that every row is there, and that every column that had a value still has it."""
    for table, rows in before.items():
        assert after[table].keys() == rows.keys(), table
        for key, row in rows.items():
            known = {column: value for column, value in row.items() if value is not None}
            assert {column: after[table][key][column] for column in known} == known, table


async def test_database_of_former_release_at_head_is_accepted_as_it_is(
    empty_database: PostgresSettings, postgres_settings: PostgresSettings, settings: Settings
) -> None:
    await _load(empty_database, "at_0012.sql")
    assert await migrations.up(empty_database) == list(REVISIONS[REVISIONS.index("0012") + 1 :])
    status = await migrations.status(empty_database)
    assert (status.current, status.applied, status.pending) == (HEAD, REVISIONS, ())
    assert await schema(empty_database) == await schema(postgres_settings)
    rows = {table: len(rows) for table, rows in (await _rows(empty_database)).items()}
    assert rows == ROWS_AT_0012 | {
        "hubbub_deletions": 0,
        "hubbub_consumers": 0,
        "hubbub_sessions": 0,
        "hubbub_presence": 0,
    }
    async with Hub(replace(settings, postgres=empty_database)) as hub:
        ada = await hub.users.find_by_username("ada")
        assert ada is not None
        [room] = [room for room in (await hub.rooms.public()).items if room.name == "engine-room"]
        page = await hub.messages.page(room.id)
        assert [message.seq for message in page.items if message.deleted_at] == [9, 16]
        [answer] = [message for message in page.items if message.content == "An edited answer"]
        [asked] = [message for message in page.items if message.content == "Hello;\nworld"]
        assert (answer.reply_to, answer.is_edited, asked.user_id) == (asked.id, True, ada.id)
        sent = await hub.messages.send(room.id, ada.id, "after the upgrade")
        assert sent.seq == 19


async def test_database_of_former_release_at_head_goes_down_and_up_again(
    empty_database: PostgresSettings, postgres_settings: PostgresSettings
) -> None:
    await _load(empty_database, "at_0012.sql")
    await migrations.up(empty_database)
    before = await _rows(empty_database)
    assert await migrations.down(empty_database, "0005") == list(reversed(REVISIONS[5:]))
    assert await migrations.up(empty_database) == list(REVISIONS[5:])
    assert await schema(empty_database) == await schema(postgres_settings)
    after = await _rows(empty_database)
    stored = {key for key, row in before["messages"].items() if row["deleted_at"] is None}
    assert after["messages"].keys() == stored
    assert await migrations.down(empty_database, "base") == list(reversed(REVISIONS))
    assert await schema(empty_database) == []


async def test_database_of_former_release_at_head_keeps_every_row_two_revisions_down(
    empty_database: PostgresSettings,
) -> None:
    await _load(empty_database, "at_0012.sql")
    before = await _rows(empty_database)
    await migrations.down(empty_database, "0010")
    await migrations.up(empty_database)
    del before["hubbub_imports"]
    for rows in before.values():
        for row in rows.values():
            row.update(dict.fromkeys(ADDED_AFTER_0010 & row.keys()))
    _assert_kept(before, await _rows(empty_database))


@pytest.mark.parametrize("dump", ["at_0008.sql", "halfway_to_0009.sql"])
async def test_database_of_former_release_at_older_revision_is_migrated_with_all_its_rows(
    empty_database: PostgresSettings, postgres_settings: PostgresSettings, dump: str
) -> None:
    await _load(empty_database, dump)
    before = await _rows(empty_database)
    status = await migrations.status(empty_database)
    assert (status.current, status.applied, status.pending) == ("0008", REVISIONS[:8], REVISIONS[8:])
    assert await migrations.up(empty_database) == list(REVISIONS[8:])
    assert await schema(empty_database) == await schema(postgres_settings)
    _assert_kept(before, await _rows(empty_database))
    assert await migrations.down(empty_database, "0008") == list(reversed(REVISIONS[8:]))
    _assert_kept(before, await _rows(empty_database))
    assert await migrations.up(empty_database) == list(REVISIONS[8:])
    assert await schema(empty_database) == await schema(postgres_settings)


async def test_version_table_is_the_one_that_former_releases_read(
    empty_database: PostgresSettings, postgres_settings: PostgresSettings
) -> None:
    """It may have additional columns."""
    await _load(empty_database, "at_0008.sql")
    former = await _version_table(empty_database)
    assert (await _version_table(postgres_settings))[: len(former)] == former
