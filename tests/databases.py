"""Migrated databases that tests use one after the other.

PostgreSQL writes 300 files for a copy of the template, deletes them when it is dropped, and builds a cache of the
catalog for the first connection. That took more processor time than the test itself in most tests.

Rows are deleted. TRUNCATE makes new files for all tables and indexes, and changes the catalog: it took 30 ms of
processor time per test, and DELETE takes 4 ms. The dead rows stay in their pages. As long as they are few, they
change no plan: PostgreSQL takes a table of less than ten pages that was never vacuumed for one of ten pages.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple
from uuid import uuid4

from commands import execute
from hubbub import PostgresSettings
from hubbub.migrations import TABLES
from hubbub.postgres import connect
from rights import in_a_copy

OF_ROWS_OF_TESTS = sorted({*TABLES} - {"hubbub_schema_version"})
EMPTY = f"TRUNCATE {', '.join(OF_ROWS_OF_TESTS)} RESTART IDENTITY"

# Without triggers and foreign keys no order matters. Without counts the deletion makes no autovacuum due.
PREPARE = "SET session_replication_role = replica; SET track_counts = off"
DELETE = "; ".join(f"DELETE FROM {table}" for table in OF_ROWS_OF_TESTS)

MAX_DEAD_BYTES = 8 * 8192
"""The size of a table from which on all are emptied by TRUNCATE: below the ten pages of the docstring above."""

# On Citus a TRUNCATE takes a second, and this 0.05 s. Rows that refer to others come first.
EMPTY_ON_CITUS = tuple(
    f"DELETE FROM {table}"
    for table in (
        *("message_read_receipts", "room_events", "messages", "room_users", "rooms"),
        *("hubbub_sessions", "hubbub_presence", "hubbub_imports", "hubbub_consumers", "hubbub_deletions", "users"),
    )
)

# A change of a catalog adds a row of a newer transaction, or removes a row. VACUUM changes sizes in place. The
# catalogs include the statistics of ANALYZE, which would change the plans of the next test.
ROWS = (
    *(
        f"{catalog} WHERE {oid} >= 16384"  # smaller ids belong to PostgreSQL itself
        for catalog, oid in (
            *(("pg_class", "oid"), ("pg_attribute", "attrelid"), ("pg_statistic", "starelid")),
            *(("pg_constraint", "oid"), ("pg_index", "indexrelid"), ("pg_trigger", "oid")),
            *(("pg_proc", "oid"), ("pg_type", "oid")),
        )
    ),
    *("pg_namespace WHERE nspname !~ '^pg_(toast_)?temp'", "pg_default_acl", "pg_extension"),
    "public.hubbub_schema_version",
    "pg_db_role_setting WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())",
)
OF_ROWS = ", ".join(f"(SELECT (count(*), max(xmin::text::bigint)) FROM {rows})" for rows in ROWS)
STATE = f"""
    SELECT concat_ws(' ', {OF_ROWS})
        || (SELECT (datconnlimit, datacl) FROM pg_database WHERE datname = current_database())
        || (SELECT (sum(relpages), sum(reltuples)) FROM pg_class WHERE oid >= 16384)
"""

# A connection that was not closed or whose process outlives its test, or tables that a test has moved.
IS_IN_USE_OR_MOVED = """
    SELECT to_regclass('public.hubbub_schema_version') IS NULL OR EXISTS (
        SELECT FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
    )
"""
LARGEST = f"SELECT greatest({', '.join(f'pg_relation_size({table!r})' for table in OF_ROWS_OF_TESTS)})"


class Clean(NamedTuple):
    """A database that no test uses."""

    name: str
    state: str
    has_dead_rows: bool


class Databases:
    """The databases of one process of the run. A test has one for itself, with empty tables."""

    def __init__(self, owner: PostgresSettings, administrator: PostgresSettings, template: str) -> None:
        self._owner = owner
        self._administrator = administrator
        self._template = template
        self._clean: list[Clean] = []

    async def take(self, *, without_dead_rows: bool = False) -> tuple[PostgresSettings, str]:
        """A database and its state, both of which are passed to `give_back`."""
        usable = [one for one in self._clean if not (without_dead_rows and one.has_dead_rows)]
        found = usable[-1] if usable else await self._make()
        self._clean = [one for one in self._clean if one != found]
        return replace(self._owner, database=found.name), found.state

    async def _make(self) -> Clean:
        name = f"test_{uuid4().hex}"
        create = f"CREATE DATABASE {name} OWNER {self._owner.user} TEMPLATE {self._template}"
        await execute(self._administrator, create, *in_a_copy(name))
        connection = await connect(replace(self._administrator, database=name))
        try:
            return Clean(name, await connection.fetchval(STATE), has_dead_rows=False)
        finally:
            await connection.close()

    async def give_back(self, database: PostgresSettings, state: str) -> None:
        """Empty the tables for the next test, or drop the database if anything else was changed."""
        name = database.database
        connection = await connect(replace(self._administrator, database=name))
        try:
            is_whole = (
                not await connection.fetchval(IS_IN_USE_OR_MOVED) and await connection.fetchval(STATE) == state
            )
            if is_whole:
                has_dead_rows = await connection.fetchval(LARGEST) <= MAX_DEAD_BYTES
                await connection.execute(PREPARE)
                if has_dead_rows:
                    await connection.execute(DELETE)
                else:
                    await connection.execute(EMPTY)
                    state = await connection.fetchval(STATE)
                # Otherwise an autovacuum for the changes of this test would change plans of the next test.
                await connection.execute("SELECT pg_stat_reset()")
                self._clean.append(Clean(name, state, has_dead_rows))
        finally:
            await connection.close()
        if not is_whole:
            await execute(self._administrator, f"DROP DATABASE {name} WITH (FORCE)")
