"""The revisions of the schema, in order, and which of them a database is at.

Imports neither Alembic nor SQLAlchemy: the library asks this each time it opens.
"""

from __future__ import annotations

from hubbub.errors import Invalid, SchemaMismatch
from hubbub.postgres import Executor, Statement

REVISIONS: tuple[str, ...] = (
    "0001",
    "0002",
    "0003",
    "0004",
    "0005",
    "0006",
    "0007",
    "0008",
    "0009",
    "0010",
    "0011",
    "0012",
)
HEAD = REVISIONS[-1]

VERSION_TABLE = "hubbub_schema_version"

TABLES: tuple[str, ...] = (
    "users",
    "rooms",
    "messages",
    "room_users",
    "message_read_receipts",
    "room_events",
    "hubbub_imports",
    VERSION_TABLE,
)

VERSION_TABLE_EXISTS = Statement(
    "migrations.version_table_exists",
    bool,
    """
    SELECT to_regclass('hubbub_schema_version') IS NOT NULL AS version_table_exists
    """,
)

VERSIONS = Statement(
    "migrations.versions",
    str,
    """
    SELECT version_num
    FROM hubbub_schema_version
    ORDER BY version_num
    """,
)


async def found_in(executor: Executor) -> str | None:
    """The revision that the database is at, None without a schema. It may be one that this code does not know."""
    if not await executor.fetch_one(VERSION_TABLE_EXISTS):
        return None
    return ", ".join(await executor.fetch_all(VERSIONS)) or None


async def verify(executor: Executor) -> None:
    """Raise `SchemaMismatch` unless the database is at the revision that this code was written for."""
    found = await found_in(executor)
    if found != HEAD:
        raise mismatch(found)


def mismatch(found: str | None) -> SchemaMismatch:
    """The error for a database at `found`, with the way out."""
    if is_unknown(found):
        return SchemaMismatch(found, HEAD, "a newer hubbub has migrated it, so upgrade hubbub")
    return SchemaMismatch(found, HEAD, "run `hubbub migrate up`")


def is_unknown(found: str | None) -> bool:
    return found is not None and found not in REVISIONS


def ahead(found: str | None, revision: str) -> tuple[str, ...]:
    """The revisions between a database at `found` and `revision` ("head" or an id), the oldest first.

    Raises `Invalid` for an unknown revision, `SchemaMismatch` for a database newer than this code.
    """
    end = len(REVISIONS) if revision == "head" else _place(revision)
    return REVISIONS[_applied(found) : end]


def behind(found: str | None, revision: str) -> tuple[str, ...]:
    """The revisions that lead from `found` back to `revision` ("base", "-1" or an id), the newest first.

    Raises `Invalid` for a revision that is unknown or not applied, `SchemaMismatch` for a database newer than
    this code.
    """
    applied = _applied(found)
    if revision == "base":
        end = 0
    elif revision == "-1":
        end = max(applied - 1, 0)
    else:
        end = _place(revision)
    if end > applied:
        raise Invalid("revision", f"{revision} is not applied: the database is at {found or 'none'}")
    return REVISIONS[end:applied][::-1]


def before(revision: str) -> str:
    """The revision that a database is at once `revision` is undone: "base" for the first."""
    return ("base", *REVISIONS)[_place(revision) - 1]


def refuse_unknown(revision: str) -> None:
    """Raise `Invalid` for an id that is not among the revisions."""
    _place(revision)


def _applied(found: str | None) -> int:
    """How many revisions a database at `found` has."""
    if is_unknown(found):
        raise mismatch(found)
    return 0 if found is None else _place(found)


def _place(revision: str) -> int:
    if revision not in REVISIONS:
        raise Invalid("revision", f"there is no such revision: they go from {REVISIONS[0]} to {HEAD}")
    return REVISIONS.index(revision) + 1
