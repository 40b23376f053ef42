"""The revisions of the schema, in order, and which of them a database is at. The library asks when it opens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from hubbub.errors import Invalid, SchemaMismatch
from hubbub.postgres import TABLES, Executor, Statement

NEWEST = 22
"""The number of the newest revision in `versions/`. Numbers have no gaps."""

KEYS = "0015"
"""From this revision on, names have keys."""

REVISIONS: tuple[str, ...] = tuple(f"{number:04}" for number in range(1, NEWEST + 1))
HEAD = REVISIONS[-1]

RIGHTS: Final[Mapping[str, str]] = {
    "users": "SELECT, INSERT, UPDATE, DELETE",
    "rooms": "SELECT, INSERT, UPDATE, DELETE",
    "messages": "SELECT, INSERT, UPDATE, DELETE",
    "room_users": "SELECT, INSERT, UPDATE, DELETE",
    "message_read_receipts": "SELECT, INSERT, DELETE",
    "room_events": "SELECT, INSERT, DELETE",
    "hubbub_imports": "SELECT, INSERT",
    "hubbub_deletions": "SELECT, INSERT, UPDATE, DELETE",
    "hubbub_consumers": "SELECT, INSERT, UPDATE, DELETE",
    "hubbub_sessions": "SELECT, INSERT, UPDATE, DELETE",
    "hubbub_presence": "SELECT, INSERT, UPDATE, DELETE",
    "hubbub_schema_version": "SELECT",
}
"""The rights that hubbub's statements need, by table. UPDATE of `hubbub_deletions` is for the lock of a row."""

VERSION_TABLE_EXISTS = Statement(
    "migrations.version_table_exists",
    bool,
    "SELECT to_regclass(current_schema() || '.hubbub_schema_version') IS NOT NULL AS version_table_exists",
)

VERSIONS = Statement(
    "migrations.versions", str, "SELECT version_num FROM hubbub_schema_version ORDER BY version_num"
)


OTHER_SCHEMAS = Statement(
    "migrations.other_schemas",
    str,
    """
    SELECT relnamespace::regnamespace::text AS schema
    FROM pg_class
    WHERE relname = 'hubbub_schema_version'
        AND relkind = 'r'
        AND relnamespace IS DISTINCT FROM to_regnamespace(current_schema())
    ORDER BY schema
    """,
)

FOREIGN_TABLES = Statement(
    "migrations.foreign_tables",
    str,
    """
    SELECT relname::text AS name
    FROM pg_class
    WHERE relname = ANY ($1)
        AND relnamespace = to_regnamespace(current_schema())
    ORDER BY name
    """,
)


async def current_revision(executor: Executor) -> str | None:
    """The revision that the database is at, None without a schema. It may be one that this code does not know."""
    if not await executor.fetch_one(VERSION_TABLE_EXISTS):
        return None
    return ", ".join(await executor.fetch_all(VERSIONS)) or None


async def verify(executor: Executor) -> None:
    """Check that the schema is at the revision that this code was written for. Raises: SchemaMismatch."""
    current = await current_revision(executor)
    if current is None:
        raise mismatch(None, await executor.fetch_all(OTHER_SCHEMAS))
    if current != HEAD:
        raise mismatch(current)


async def refuse_foreign_tables(executor: Executor, schema: str) -> None:
    """Check that no table of the application has the name of one that is to be made. Raises: Invalid."""
    made = [table for table in TABLES if table != "hubbub_schema_version"]  # which stays when all is undone
    if found := await executor.fetch_all(FOREIGN_TABLES, made):
        what = f"{schema} has the tables {', '.join(found)} already, and no revision of hubbub"
        way_out = (
            "choose another schema, as in DB_SCHEMA=hubbub; docs/migrations.md has the way for original tables"
        )
        raise Invalid("DB_SCHEMA", f"{what}: {way_out}")


def mismatch(current: str | None, others: Sequence[str] = ()) -> SchemaMismatch:
    """The error for a database at `current`, with the way out. `elsewhere` are schemas with a version table."""
    if current is None and others:
        where = f"its tables are in the schema {' and '.join(others)}: set DB_SCHEMA"
        return SchemaMismatch(current, HEAD, f"{where}, or run `hubbub migrate up`")
    if is_unknown(current):
        return SchemaMismatch(current, HEAD, "a newer hubbub has migrated it, so upgrade hubbub")
    return SchemaMismatch(current, HEAD, "run `hubbub migrate up`")


def is_unknown(current: str | None) -> bool:
    return current is not None and current not in REVISIONS


def to_apply(current: str | None, target: str) -> tuple[str, ...]:
    """The revisions from a database at `current` up to `target` ("head" or an id), oldest first.

    Raises: Invalid (an unknown revision), SchemaMismatch (the database is newer than this code).
    """
    end = len(REVISIONS) if target == "head" else ordinal(target)
    return REVISIONS[_count_applied(current) : end]


def to_undo(current: str | None, target: str) -> tuple[str, ...]:
    """The revisions from a database at `current` back to `target` ("base", "-1" or an id), newest first.

    Raises: Invalid (not an applied revision), SchemaMismatch (the database is newer than this code).
    """
    applied = _count_applied(current)
    named = {"base": 0, "-1": max(applied - 1, 0)}
    end = named[target] if target in named else ordinal(target)
    if end > applied:
        raise Invalid("revision", f"{target} is not applied: the database is at {current or 'none'}")
    return REVISIONS[end:applied][::-1]


def previous(revision: str) -> str:
    """The revision that a database is at once `revision` is undone: "base" for the first."""
    return ("base", *REVISIONS)[ordinal(revision) - 1]


def ordinal(revision: str) -> int:
    """The position of a revision in `REVISIONS`, counted from 1. Raises: Invalid (an unknown revision)."""
    if revision not in REVISIONS:
        raise Invalid("revision", f"there is no such revision: they go from {REVISIONS[0]} to {HEAD}")
    return REVISIONS.index(revision) + 1


def _count_applied(current: str | None) -> int:
    if is_unknown(current):
        raise mismatch(current)
    return 0 if current is None else ordinal(current)
