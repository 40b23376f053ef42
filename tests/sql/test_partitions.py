"""A statement is about one room, so that a database with rooms on several nodes only queries one node.

In these tests the tables of rooms are partitioned by the room, and each parameter has a value of another
partition. A plan then reads only one partition if the statement equates the room of each table with one parameter.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any, Final, NamedTuple

import pytest
import pytest_asyncio

from commands import execute
from hubbub import PostgresSettings, Settings, Unavailable, migrations
from hubbub.migrations import REVISIONS, revisions
from hubbub.migrations.distribution import ROOM_OF
from hubbub.postgres import NOT_SUPPORTED, Statement, connect
from hubbub.postgres.connection import Connection
from hubbub.postgres.statement import distributed_layout
from sql.package import statements

PARTITIONS: Final = 32

# Statements that read more than one partition, with the reason.
EXCEPTIONS: Final = {
    "of a user, whose rooms are anywhere": (
        *("deletions.author", "deletions.creator", "deletions.leave", "deletions.receipts_of_account"),
        *("deletions.delete_account", "deletions.lock_account", "deletions.room_of_account", "messages.by_author"),
        *("memberships.digests", "memberships.pairs", "memberships.rooms_of", "room_users.rooms_of"),
        *("read_receipts.unread_counts", "rooms.list_for"),
    ),
    "of all rooms": ("rooms.public", "rooms.search", "rooms.find_direct", "history.rooms_by_name"),
    "of rooms that a caller lists": (
        *("log.heads", "memberships.joined_after", "memberships.left_at", "replicas.heads"),
        *("room_users.member_counts", "rooms.get_many", "users.rooms_among"),
    ),
    "of callers that share it, each with a room": (
        *("messages.delete_many", "messages.earlier_sends", "messages.edit_many", "messages.permissions"),
        "messages.send_many",
        *("read_receipts.mark_many", "room_users.add_many", "room_users.get_many", "room_users.remove_many"),
        *("room_users.set_roles", "room_users.states", "rooms.not_locked"),
    ),
    "by the id of a message whose room the caller does not know": (
        *("messages.change_permissions", "messages.delete", "messages.edit", "messages.get", "messages.get_many"),
        *("read_receipts.room_of", "read_receipts.readers"),
    ),
    "of the feed of changes, whose parts are rooms anywhere": (
        *("changes.first_since", "changes.read", "changes.take", "migrations.transaction_id_offset"),
    ),
    "of a step on one server, which looks its rows up by keys": (
        *("deletions.events", "deletions.members", "deletions.messages"),
    ),
    "of an import, whose lines are of many rooms": (
        *("history.count_as_read", "history.events", "history.events_at", "history.heads"),
        *("history.blocks", "history.latest_entries", "history.latest_entries_of_users", "history.lock_rooms"),
        *("history.members", "history.messages", "history.newest_messages"),
        *("history.remove_members", "history.restore_members", "history.revise_messages"),
        *("history.set_last_seq", "history.set_metadata", "history.set_roles"),
    ),
    "of a command that counts rows": ("demo.facts", "top.busiest"),
}

# Citus runs the INSERT of such a statement on the coordinator, row by row.
INSERTS_BESIDE_OTHER_CHANGES: Final = {
    *("deletions.leave", "deletions.leave_room", "messages.delete", "messages.delete_in_room"),
    *("messages.delete_many", "messages.edit", "messages.edit_in_room", "messages.edit_many"),
    *("messages.send", "messages.send_many"),
    *("read_receipts.mark_many", "read_receipts.mark_read", "room_users.add", "room_users.add_many"),
    *("room_users.demote", "room_users.remove", "room_users.remove_admin", "room_users.remove_by"),
    *("room_users.remove_last_member", "room_users.remove_many", "room_users.set_role"),
    *("room_users.set_role_by", "room_users.set_roles"),
    *("room_users.step_down", "room_users.update", "rooms.create", "rooms.create_direct", "rooms.update"),
}

ID_OF_EACH_PARTITION: Final = """
    SELECT DISTINCT ON (remainder) id::text
    FROM generate_series(1, 1000) AS number
    CROSS JOIN LATERAL (SELECT lpad(number::text, 32, '0')::uuid AS id) AS made
    JOIN generate_series(0, $1 - 1) AS remainder
        ON satisfies_hash_partition('rooms'::regclass, $1, remainder, made.id)
    ORDER BY remainder
"""

# Keys of a partitioned table need the column by which it is partitioned.
KEYS: Final = """
    ALTER TABLE rooms DROP CONSTRAINT rooms_direct_key_key;
    CREATE INDEX ON rooms (direct_key);
    ALTER TABLE messages DROP CONSTRAINT messages_pkey, ADD PRIMARY KEY (room_id, id);
    ALTER TABLE message_read_receipts
        DROP CONSTRAINT message_read_receipts_pkey,
        ADD PRIMARY KEY (room_id, message_id, user_id);
"""


class Plan(NamedTuple):
    """The partitions that a statement reads, and the kinds and tables of its changes."""

    partitions: set[str]
    changes: list[tuple[str, str]]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def plans(servers: Settings, administrator: PostgresSettings) -> AsyncIterator[dict[str, Plan]]:
    await execute(servers.postgres, "CREATE DATABASE hubbub_partitions")
    settings = replace(servers.postgres, database="hubbub_partitions")
    await migrations.up(settings)
    connection = await connect(settings)
    try:
        await _partition(connection)
        ids = [id for (id,) in await connection.fetch(ID_OF_EACH_PARTITION, PARTITIONS)]
        assert len(ids) == PARTITIONS
        await connection.execute("SET plan_cache_mode = force_custom_plan")
        found = {name: await _plan(connection, one.name, one.sql, ids) for name, one in statements().items()}
        for name, one in statements().items():
            if _has_form_without_function(one):
                found[f"{name}, distributed"] = await _plan(connection, name, one.distributed, ids)
        yield found
    finally:
        await connection.close()
        await execute(administrator, "DROP DATABASE hubbub_partitions WITH (FORCE)")


async def _partition(connection: Connection) -> None:
    foreign_keys = "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE contype = 'f'"
    for table, name in await connection.fetch(foreign_keys):
        await connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
    await connection.execute(KEYS)
    for table, column in ROOM_OF.items():
        await connection.execute(f"ALTER TABLE {table} RENAME TO {table}_whole")
        await connection.execute(
            f"CREATE TABLE {table} (LIKE {table}_whole INCLUDING ALL) PARTITION BY HASH ({column})"
        )
        for remainder in range(PARTITIONS):
            await connection.execute(
                f"CREATE TABLE {table}_{remainder} PARTITION OF {table} "
                f"FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {remainder})"
            )


def _has_form_without_function(statement: Statement[Any]) -> bool:
    """Whether it has a form for distributed rooms that needs no function in the database."""
    form = statement.distributed
    return form not in (statement.sql, NOT_SUPPORTED) and not re.search(r"FROM hubbub_\w+\(", form)


async def _plan(connection: Connection, of: str, sql: str, ids: list[str]) -> Plan:
    rest, arguments = iter(ids), []
    prepared = await connection.prepare(sql)
    for number, parameter in enumerate(prepared.get_parameters()):
        match parameter.name:
            case "uuid":
                value = f"'{next(rest)}'"
            case "uuid[]":
                value = f"'{{{next(rest)}, {next(rest)}}}'"
            case "int4" | "int8" | "float4" | "float8":
                value = f"{number + 3}"  # the bounds of a range have this order
            case "bool":
                value = "true"
            case "timestamptz":
                value = "now()"
            case name if name.endswith("[]"):
                value = "NULL"
            case _:
                value = "'infinity'" if of == "deletions.author" else "'{}'"
        arguments.append(value)
    await connection.execute(f"PREPARE planned AS {sql}")
    values = f"({', '.join(arguments)})" if arguments else ""
    explained = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE planned {values}")
    await connection.execute("DEALLOCATE planned")
    partitions, changes = set(), []
    for node in _nodes(json.loads(explained)[0]["Plan"]):
        table, _, partition = node.get("Relation Name", "").rpartition("_")
        if table in ROOM_OF and partition.isdecimal():
            partitions.add(partition)
        if "Operation" in node:
            changes.append((node["Operation"], node["Relation Name"]))
    return Plan(partitions, changes)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


def test_statement_reads_the_partition_of_one_room(plans: dict[str, Plan]) -> None:
    many = {name for name, plan in plans.items() if len(plan.partitions) > 1 and name in statements()}
    assert many == {name for names in EXCEPTIONS.values() for name in names}
    assert sum(len(plan.partitions) == 1 for plan in plans.values()) > 40


def test_statement_by_the_id_of_a_message_has_a_form_of_one_partition_for_callers_that_know_the_room(
    plans: dict[str, Plan],
) -> None:
    for name in EXCEPTIONS["by the id of a message whose room the caller does not know"]:
        assert len(plans[f"{name}_in_room"].partitions) == 1


def test_form_of_an_edit_or_deletion_without_the_room_is_refused_where_rooms_are_distributed() -> None:
    for name in ("messages.edit", "messages.delete"):
        with pytest.raises(Unavailable, match=name):
            statements()[name].in_layout[distributed_layout("public")]


@pytest.mark.parametrize(
    "reason",
    ["of callers that share it, each with a room", "of a step on one server, which looks its rows up by keys"],
)
def test_form_where_rooms_are_distributed_reads_one_partition(plans: dict[str, Plan], reason: str) -> None:
    for name in EXCEPTIONS[reason]:
        if _has_form_without_function(statements()[name]):
            assert len(plans[f"{name}, distributed"].partitions) == 1


def test_no_statement_locks_rows_of_several_rooms_where_they_are_distributed() -> None:
    of_many = {name for names in EXCEPTIONS.values() for name in names}
    locks = re.compile(r"\bFOR (NO KEY )?(UPDATE|SHARE)\b|\bFOR KEY SHARE\b")
    locking = {name for name in of_many if locks.search(statements()[name].distributed)}
    assert locking == {
        "deletions.lock_account",  # a row of `users`, of which each node has a copy
        *("history.count_as_read", "history.lock_rooms"),  # an import is refused there
    }


def test_statement_that_inserts_makes_no_other_change(plans: dict[str, Plan]) -> None:
    beside = {
        name
        for name, plan in plans.items()
        if len(plan.changes) > 1
        and any(kind == "Insert" and table in ROOM_OF for kind, table in plan.changes)
        and name in statements()
    }
    assert beside == INSERTS_BESIDE_OTHER_CHANGES
    # A step of a deletion. It has no other caller.
    assert {name for name in beside if statements()[name].distributed == statements()[name].sql} == {
        "deletions.leave_room"
    }


def _adds_constraint_beside(sql: str) -> bool:
    """Whether an ALTER TABLE does more than add its constraint. Citus refuses that."""
    return "ADD CONSTRAINT" in sql and len(re.findall(r"\b(?:ADD|DROP|ALTER|VALIDATE) (?!TABLE)", sql)) > 1


def test_revision_adds_a_constraint_by_a_statement_of_its_own() -> None:
    found = {
        revision
        for revision in REVISIONS
        for step in revisions.steps("up", revision)
        if step.sql.startswith("ALTER TABLE") and _adds_constraint_beside(step.sql)
    }
    before_the_rule = {revision for revision in found if revision <= "0020"}
    assert "0019" in before_the_rule
    assert found == before_the_rule
