"""Every statement of the package is checked against the migrated schema."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, cast

import pytest
import pytest_asyncio

from commands import execute
from hubbub import Message, PostgresSettings, PublicUser, Room, RoomUser, Settings, migrations
from hubbub.models import Stored
from hubbub.postgres import Lookup, Statement, connect
from hubbub.postgres.connection import Connection
from hubbub.sql import stored_columns
from sql.package import calls, statements

NAMES = sorted(statements())
SCHEMA = "chat"

# Prefixes of statements that may read a whole table. The checks of `hubbub demo` read everything on purpose.
COLD_PREFIXES = ("demo.", "changes.first_since")  # the second once per reader, after a failover

HEAD = [
    *("id", "last_seq", "seq", "sent_id", "sent_at"),
    *("kind", "message_id", "user_id", "happened_at"),
]
ENTRY = [
    *("found", "head", "of_room", "at_seq", "kind", "about", "by", "payload", "at"),
    *Message.__struct_fields__,
]

SUMMARY = [
    *Room.__struct_fields__,
    *("role", "last_read_seq", "unread", "partner_id", "active_at"),
    *Message.__struct_fields__,
]

# The columns of statements whose model is not a class.
COLUMNS = {
    "log.heads": HEAD,
    "log.head": HEAD,
    "log.read": ENTRY,
    "log.read_on_replica": ENTRY,
    "messages.change_permissions": [*Message.__struct_fields__, "is_member", "may_change"],
    "messages.change_permissions_in_room": [*Message.__struct_fields__, "is_member", "may_change"],
    "room_users.states": ["of_room", "of_user", "is_direct", *RoomUser.__struct_fields__],
    "changes.read": [
        *("server", "read_at", "horizon", "transaction_id", "room_id", "seq", "is_ready", "is_foreign"),
        *("kind", "about", "by", "payload", "at"),
        *Message.__struct_fields__,
    ],
    "users.search": ["key", *PublicUser.__struct_fields__],
    "rooms.list_for": SUMMARY,
    "rooms.summary": SUMMARY,
}

# Enough rows for the planner to prefer any useful index: 20,000 people, 5,000 rooms, 100,000 messages.
FILL = """
    INSERT INTO users (email, username, password_hash, external_id, display_name, display_name_key)
    SELECT 'user-' || n || '@example.org', 'user-' || n, '!', n, 'User ' || n, 'user ' || n
    FROM generate_series(1, 20000) AS n;

    CREATE TEMPORARY TABLE people AS
    SELECT id, row_number() OVER () - 1 AS number
    FROM users;

    INSERT INTO rooms (name, is_private, created_by, direct_key, last_seq)
    SELECT 'room-' || n, n % 2 = 0, people.id, CASE WHEN n % 4 = 0 THEN sha256(n::text::bytea) END, 25
    FROM generate_series(1, 5000) AS n
    JOIN people ON people.number = n % 20000;

    CREATE TEMPORARY TABLE places AS
    SELECT id, row_number() OVER () - 1 AS number
    FROM rooms;

    INSERT INTO room_users (room_id, user_id)
    SELECT places.id, people.id
    FROM places
    CROSS JOIN generate_series(0, 9) AS n
    JOIN people ON people.number = (places.number * 7 + n * 11) % 20000;

    INSERT INTO messages (room_id, seq, user_id, content, created_at)
    SELECT places.id, n, people.id, 'message ' || n, CURRENT_TIMESTAMP - n * interval '1 minute'
    FROM places
    CROSS JOIN generate_series(1, 20) AS n
    JOIN people ON people.number = (places.number * 7 + n * 11) % 20000;

    INSERT INTO room_events (room_id, seq, kind)
    SELECT id, 20 + n, 'joined'
    FROM rooms
    CROSS JOIN generate_series(1, 5) AS n;

    INSERT INTO message_read_receipts (message_id, user_id, room_id)
    SELECT messages.id, room_users.user_id, messages.room_id
    FROM messages
    JOIN room_users ON room_users.room_id = messages.room_id
    WHERE messages.seq > 18;
"""


class Checked(NamedTuple):
    """The server's report of a statement: its parameters, its columns, and its generic plan."""

    parameters: int
    columns: list[str]
    plan: dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def checked(servers: Settings, administrator: PostgresSettings) -> AsyncIterator[dict[str, Checked]]:
    await execute(servers.postgres, "CREATE DATABASE hubbub_statements")
    filled = replace(servers.postgres, database="hubbub_statements", schema=SCHEMA)
    await migrations.up(filled)
    connection = await connect(filled)
    try:
        await connection.execute(f"SET search_path = {SCHEMA}")
        await connection.execute(FILL)
        await connection.execute("SET search_path = ''")  # statements do not depend on it
        await connection.execute("ANALYZE")
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        yield {name: await _check(connection, statement) for name, statement in statements().items()}
    finally:
        await connection.close()
        await execute(administrator, "DROP DATABASE hubbub_statements WITH (FORCE)")


async def _check(connection: Connection, statement: Statement[Any]) -> Checked:
    sql = statement.in_layout[SCHEMA]
    prepared = await connection.prepare(sql)
    parameters = len(prepared.get_parameters())
    columns = [attribute.name for attribute in prepared.get_attributes()]
    await connection.execute(f"PREPARE checked AS {sql}")
    nulls = f"({', '.join(['NULL'] * parameters)})" if parameters else ""
    explained = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE checked {nulls}")
    await connection.execute("DEALLOCATE checked")
    return Checked(parameters, columns, json.loads(explained)[0]["Plan"])


@pytest.mark.parametrize("name", NAMES)
def test_calls_pass_as_many_arguments_as_the_statement_has_placeholders(
    checked: dict[str, Checked], name: str
) -> None:
    statement, parameters = statements()[name], checked[name].parameters
    found = [call for call in calls() if call.statement is statement]
    # A lookup runs the statement for many keys, with an array per column of the key.
    lookups = [one for one in statements().values() if isinstance(one, Lookup) and one.many is statement]
    assert found or lookups, "no call runs it"
    for call in found:
        assert call.arguments == parameters, call.where
    for lookup in lookups:
        assert checked[lookup.name].parameters == parameters, lookup.name


@pytest.mark.parametrize("name", NAMES)
def test_columns_of_a_row_are_the_fields_of_its_model(checked: dict[str, Checked], name: str) -> None:
    columns = checked[name].columns
    if not columns:
        assert statements()[name].writes, "it neither reads nor writes"
        return
    assert columns == _fields(statements()[name], columns)


def _fields(statement: Statement[Any], columns: list[str]) -> list[str]:
    if statement.name in COLUMNS:
        return COLUMNS[statement.name]
    if statement.model in (bool, bytes, int, str):
        assert len(columns) == 1, f"{statement.model} takes one column"
        return columns
    fields = list(inspect.signature(statement.model).parameters)
    return fields if len(columns) == len(fields) else stored_columns(cast("type[Stored]", statement.model))


@pytest.mark.parametrize("name", NAMES)
def test_statement_names_every_column_that_it_reads(name: str) -> None:
    assert not re.search(r"(SELECT|RETURNING)\s+(\w+\.)?\*", statements()[name].sql)


@pytest.mark.parametrize("name", NAMES)
def test_statement_has_no_placeholder_inside_quotes(name: str) -> None:
    quoted = re.findall(r"'[^']*'", statements()[name].sql)
    assert not [text for text in quoted if re.search(r"\$\d", text)]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(COLD_PREFIXES)])
def test_hot_statement_reads_no_whole_table_under_a_generic_plan(checked: dict[str, Checked], name: str) -> None:
    whole = [
        f"{node['Node Type']} on {node['Relation Name']}"
        for node in _nodes(checked[name].plan)
        if node.get("Relation Name") in TABLES and _reads_it_all(node)
    ]
    assert whole == []


TABLES = ("users", "rooms", "messages", "room_users", "message_read_receipts", "room_events")


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


def _reads_it_all(node: dict[str, Any]) -> bool:
    """Whether it is a sequential scan, or a scan of a whole index without a condition."""
    return node["Node Type"] == "Seq Scan" or (
        node["Node Type"] in ("Index Scan", "Index Only Scan") and "Index Cond" not in node
    )
