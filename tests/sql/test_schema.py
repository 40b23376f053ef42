"""The schema is checked against the original stack, its own history, and the table of errors."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hubbub import PostgresSettings, inputs, migrations
from hubbub.migrations import HEAD, REVISIONS, revisions
from hubbub.postgres import connect
from hubbub.postgres.connection import Connection
from hubbub.postgres.errors import CHECK_CONSTRAINTS, FOREIGN_KEYS, UNIQUE_CONSTRAINTS
from migrations.catalog import schema
from migrations.filled import HUBBUB_ROWS, ORIGINAL_ROWS, fill


@pytest.fixture
async def connection(postgres_settings: PostgresSettings) -> AsyncIterator[Connection]:
    connection = await connect(postgres_settings)
    yield connection
    await connection.close()


# The original schema, word for word. The benchmarks of the original stack use it as well.
ORIGINAL = (Path(__file__).parents[2] / "benchmarks" / "original.sql").read_text()


def _folded(column: str) -> str:
    """`hubbub.sql.folded` as PostgreSQL prints it, on one line."""
    return (
        f" CASE WHEN (octet_length(({column})::text) = length(({column})::text))"
        f' THEN lower((({column})::text COLLATE "C"))'
        f" ELSE (translate(({column})::text, '{inputs.CAPITALS}'::text, '{inputs.CAPITALS.lower()}'::text)"
        ' COLLATE "C") END'
    )


# Differences between the migrated schema and the original one. docs/schema.md has the reasons.
IMPROVED_INDEXES = {
    "idx_users_email": f"CREATE UNIQUE INDEX idx_users_email ON public.users USING btree (({_folded('email')}))",
    "idx_users_username": (
        "CREATE UNIQUE INDEX idx_users_username ON public.users USING btree (( CASE"
        " WHEN ((username_key_of)::text = (username)::text) THEN username_key"
        f" ELSE{_folded('username')} END))"
    ),
    "idx_rooms_name": (
        f"CREATE INDEX idx_rooms_name ON public.rooms USING btree (({_folded('name')}), id) WHERE (NOT is_private)"
    ),
    "idx_messages_room_id": (
        "CREATE UNIQUE INDEX idx_messages_room_id ON public.messages USING btree (room_id, seq) "
        "INCLUDE (user_id, created_at, deleted_at)"
    ),
    "idx_messages_user_id": (
        "CREATE INDEX idx_messages_user_id ON public.messages USING btree (user_id, created_at DESC, id DESC)"
    ),
    "idx_messages_created_at": ("CREATE INDEX idx_messages_created_at ON public.messages USING brin (created_at)"),
    "idx_room_users_user_id": (
        "CREATE INDEX idx_room_users_user_id ON public.room_users USING btree (user_id, room_id)"
    ),
}
ADDED_INDEXES = {
    "idx_room_users_last_read_message_id",
    "idx_message_read_receipts_user_id",
    "rooms_direct_key_key",
    "idx_users_external_id",
    "idx_users_display_name",
    "idx_messages_transaction_id",
}
ADDED_CONSTRAINTS = {"idx_messages_room_id", "rooms_direct_key_key"}
# One index per column is enough: the indexes of the original schema replace these constraints.
REPLACED_CONSTRAINTS = {"users_email_key", "users_username_key"}
IMPROVED_CONSTRAINTS = {
    "room_users_last_read_message_id_fkey": (
        "FOREIGN KEY (last_read_message_id) REFERENCES messages(id) ON DELETE SET NULL"
    ),
}
ADDED_COLUMNS = {
    ("users", "external_id"): "text",
    ("users", "kind"): "character varying(20)",
    ("users", "display_name"): "character varying(100)",
    ("users", "display_name_key"): "text",
    ("users", "metadata"): "jsonb",
    ("rooms", "metadata"): "jsonb",
    ("room_users", "metadata"): "jsonb",
    ("users", "username_key"): "text",
    ("users", "username_key_of"): "character varying(50)",
    ("rooms", "last_seq"): "bigint",
    ("rooms", "direct_key"): "bytea",
    ("rooms", "keeps_receipts"): "boolean",
    ("messages", "seq"): "bigint",
    ("messages", "deleted_at"): "timestamp with time zone",
    ("messages", "reply_to"): "uuid",
    ("messages", "metadata"): "jsonb",
    ("messages", "transaction_id"): "bigint",
    ("room_users", "last_read_seq"): "bigint",
    ("room_users", "joined_seq"): "bigint",
    ("message_read_receipts", "room_id"): "uuid",
}

# An account of another system has neither of them.
NULLABLE = {("users", "email"), ("users", "password_hash")}

COLUMNS = """
    SELECT table_name, column_name, format_type(atttypid, atttypmod), column_default, is_nullable = 'YES'
    FROM information_schema.columns
    JOIN pg_attribute ON attrelid = table_name::regclass AND attname = column_name
    WHERE table_schema = 'public'
        AND table_name = ANY ($1)
"""
INDEXES = """
    SELECT indexname, indexdef
    FROM pg_indexes
    WHERE schemaname = 'public'
        AND tablename = ANY ($1)
"""
CONSTRAINTS = """
    SELECT conname, pg_get_constraintdef(oid)
    FROM pg_constraint
    WHERE conrelid = ANY ($1::regclass[])
        AND contype IN ('p', 'u', 'f')
"""

ORIGINAL_TABLES = re.findall(r"CREATE TABLE (\w+)", ORIGINAL)

Column = tuple[str, str | None, bool]


def _original_columns() -> dict[tuple[str, str], Column]:
    """The original schema, parsed from its text: (table, column) to type, default and whether NULL is allowed."""
    return {
        (table, column): (_type(words), _default(words), "NOT NULL" not in words and "PRIMARY" not in words)
        for table, body in re.findall(r"CREATE TABLE (\w+) \((.*?)\n\);", ORIGINAL, re.DOTALL)
        for column, words in re.findall(r"^ +([a-z_]+) (.+?),?$", body, re.MULTILINE)
    }


def _type(words: str) -> str:
    kind = re.match(r"UUID|VARCHAR\(\d+\)|TEXT|BOOLEAN|TIMESTAMP WITH TIME ZONE", words)
    assert kind, words
    return kind[0].lower().replace("varchar", "character varying")


def _default(words: str) -> str | None:
    default = re.search(r"DEFAULT (\S+)$", words)
    if default is None:
        return None
    return re.sub(r"^('.*')$", r"\1::character varying", default[1])


async def test_tables_and_columns_of_the_original_schema_have_their_types_and_defaults(
    connection: Connection,
) -> None:
    found = {
        (table, column): (kind, default, nullable)
        for table, column, kind, default, nullable in await connection.fetch(COLUMNS, ORIGINAL_TABLES)
    }
    original = _original_columns()
    assert len(original) == 9 + 7 + 8 + 5 + 3
    assert {key: column[:2] for key, column in found.items() if key in original} == {
        key: column[:2] for key, column in original.items()
    }
    assert {key: found[key][0] for key in found.keys() - original.keys()} == ADDED_COLUMNS
    # NOT NULL was only added to keys and to columns with a default.
    stricter = {key for key, column in original.items() if column[2] and not found[key][2]}
    keys = {("room_users", "room_id"), ("room_users", "user_id")}
    keys |= {("message_read_receipts", "message_id"), ("message_read_receipts", "user_id")}
    defaulted = {key for key, column in original.items() if column[1] and column[2]}
    assert stricter == defaulted | keys | {("messages", "room_id")}
    assert {key for key, column in original.items() if found[key][2] and not column[2]} == NULLABLE


async def test_first_five_revisions_build_the_original_schema_exactly(
    empty_database: PostgresSettings, postgres_settings: PostgresSettings
) -> None:
    await migrations.up(empty_database, "0005")
    await migrations.down(postgres_settings, "base")
    await fill(postgres_settings, ORIGINAL)
    assert await schema(empty_database) == await schema(postgres_settings)


async def _definitions(settings: PostgresSettings, query: str) -> dict[str, str]:
    connection = await connect(settings)
    rows = await connection.fetch(query, ORIGINAL_TABLES)
    found = {str(name): re.sub(r"\s+", " ", definition) for name, definition in rows}
    await connection.close()
    return found


async def test_indexes_of_the_original_schema_keep_their_names_and_change_only_as_stated(
    empty_database: PostgresSettings, postgres_settings: PostgresSettings
) -> None:
    await fill(empty_database, ORIGINAL)
    expected = await _definitions(empty_database, INDEXES)
    for name in REPLACED_CONSTRAINTS:
        del expected[name]
    expected |= IMPROVED_INDEXES
    found = await _definitions(postgres_settings, INDEXES)
    assert found.keys() - expected.keys() == ADDED_INDEXES
    assert {name: found[name] for name in expected} == expected


async def test_keys_of_the_original_schema_change_only_as_stated(
    empty_database: PostgresSettings, postgres_settings: PostgresSettings
) -> None:
    await fill(empty_database, ORIGINAL)
    expected = await _definitions(empty_database, CONSTRAINTS)
    for name in REPLACED_CONSTRAINTS:
        del expected[name]
    expected |= IMPROVED_CONSTRAINTS
    found = await _definitions(postgres_settings, CONSTRAINTS)
    assert found.keys() - expected.keys() == ADDED_CONSTRAINTS
    assert {name: found[name] for name in expected} == expected


async def test_each_step_down_and_up_leaves_the_same_schema(
    empty_database: PostgresSettings, postgres_settings: PostgresSettings
) -> None:
    as_built = {"base": await schema(empty_database)}
    for revision in REVISIONS:
        await migrations.up(empty_database, revision)
        as_built[revision] = await schema(empty_database)
    await migrations.down(postgres_settings, "0005")
    await fill(postgres_settings, ORIGINAL_ROWS)
    await migrations.up(postgres_settings)
    await fill(postgres_settings, HUBBUB_ROWS)
    assert await schema(postgres_settings) == as_built[HEAD]
    for revision in reversed(REVISIONS):
        before = revisions.previous(revision)
        assert await migrations.down(postgres_settings, "-1") == [revision]
        assert await schema(postgres_settings) == as_built[before]
        assert await migrations.up(postgres_settings, revision) == [revision]
        assert await schema(postgres_settings) == as_built[revision]
        await migrations.down(postgres_settings, before)
    assert as_built["base"] == []
    await migrations.up(postgres_settings)
    assert await schema(postgres_settings) == as_built[HEAD]
    await migrations.down(postgres_settings, "base")
    assert await schema(postgres_settings) == []


COLLATIONS = """
    SELECT DISTINCT attcollation::regcollation::text
    FROM pg_attribute
    WHERE attrelid = ANY ($1::regclass[])
"""


async def test_schema_needs_no_extension_or_collation_that_a_server_may_lack(
    postgres_settings: PostgresSettings, connection: Connection
) -> None:
    lines = await schema(postgres_settings)
    others = [line for line in lines if line.startswith(("trigger", "function", "type"))]
    assert others == ["function hubbub_check_room", "trigger rooms hubbub_check_room"]
    assert await connection.fetchval("SELECT array_agg(extname::text) FROM pg_extension") == ["plpgsql"]
    assert {name for (name,) in await connection.fetch(COLLATIONS, ORIGINAL_TABLES)} <= {"-", '"default"'}


async def test_update_of_last_seq_in_every_room_touches_no_index(connection: Connection) -> None:
    await connection.execute("INSERT INTO rooms (name) SELECT 'room ' || n FROM generate_series(1, 2000) AS n")
    # Only once: before a second update PostgreSQL has to remove the old row versions, which any other transaction
    # of the server can delay.
    async with connection.transaction():
        await connection.execute("UPDATE rooms SET last_seq = last_seq + 1")
        counted = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = 'rooms'"
        assert tuple(await connection.fetchrow(counted) or ()) == (2000, 2000)


FOREIGN_KEYS_OF_SCHEMA = """
    SELECT
        conname,
        confdeltype <> 'a' AS has_on_delete,
        EXISTS (
            SELECT
            FROM pg_index
            WHERE indrelid = conrelid
                AND indisvalid
                AND indkey[0] = conkey[1]
                AND (
                    indpred IS NULL
                    OR pg_get_expr(indpred, indrelid) = format('(%I IS NOT NULL)', attname)
                )
        ) AS has_an_index
    FROM pg_constraint
    JOIN pg_attribute ON attrelid = conrelid AND attnum = conkey[1]
    WHERE contype = 'f'
        AND connamespace = 'public'::regnamespace
"""


async def test_foreign_keys_have_an_index_and_an_on_delete(connection: Connection) -> None:
    found = await connection.fetch(FOREIGN_KEYS_OF_SCHEMA)
    assert {tuple(row) for row in found} == {(name, True, True) for name in FOREIGN_KEYS}


NAMES = r"""
    SELECT conname AS name, contype::text AS kind
    FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace
        AND contype <> 'n'
        AND conrelid <> 'hubbub_schema_version'::regclass
    UNION
    SELECT relname, 'u'
    FROM pg_index
    JOIN pg_class ON pg_class.oid = indexrelid
    WHERE indisunique
        AND NOT indisprimary
        AND relnamespace = 'public'::regnamespace
    UNION
    SELECT (regexp_matches(prosrc, 'rooms_\w+_check', 'g'))[1], 'c'
    FROM pg_proc
    WHERE pronamespace = 'public'::regnamespace
        AND proname = 'hubbub_check_room'
"""


async def test_constraints_of_the_schema_are_those_with_an_error(connection: Connection) -> None:
    found = await connection.fetch(NAMES)
    assert {name for name, kind in found if kind in "pu"} == UNIQUE_CONSTRAINTS.keys()
    assert {name for name, kind in found if kind == "f"} == FOREIGN_KEYS.keys()
    assert {name for name, kind in found if kind == "c"} == CHECK_CONSTRAINTS.keys()
    assert {kind for _, kind in found} == set("pufc")
