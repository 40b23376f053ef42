"""The schema of hubbub and its history, beside any other tables in the database.

The revisions are SQL files in `versions/`. A version table of hubbub's own (`hubbub_schema_version`) has the id of
the newest that was applied. The library checks the schema when it opens, and only a command changes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hubbub.errors import Invalid
from hubbub.migrations import revisions
from hubbub.migrations.distribution import is_begun, is_distributed
from hubbub.migrations.grants import Limits, grant
from hubbub.migrations.revisions import HEAD, REVISIONS, to_apply, to_undo, verify
from hubbub.migrations.runner import Timeouts, migrate, renumber
from hubbub.migrations.runner import move as move_tables
from hubbub.postgres import TABLES, Pool
from hubbub.renamed import renamed_argument, warn_of_former_name
from hubbub.settings import PostgresSettings
from hubbub.settings.variables import refused_schema

__all__ = [
    "HEAD",
    "REVISIONS",
    "TABLES",
    "Limits",
    "Revision",
    "Status",
    "Timeouts",
    "describe",
    "down",
    "grant",
    "move",
    "restored",
    "sql",
    "status",
    "up",
    "verify",
]

USUAL_TIMEOUTS = Timeouts()


@dataclass(frozen=True, slots=True)
class Revision:
    """One step of the schema's history: what it is for, and what undoing it deletes, in words."""

    id: str
    title: str
    loss: str


@dataclass(frozen=True, slots=True)
class Status:
    """The revision of a database. `unknown` is True when it is at a revision that this code does not know."""

    current: str | None
    head: str
    applied: tuple[str, ...]
    pending: tuple[str, ...]
    unknown: bool


async def up(
    settings: PostgresSettings,
    revision: str = "head",
    *,
    timeouts: Timeouts = USUAL_TIMEOUTS,
    patience: Timeouts | None = None,
) -> list[str]:
    """Apply what is missing up to `revision`, and return the ids of what this call applied, oldest first.

    Any number of processes may call it at once: one applies, the others wait for it. A run that was interrupted is
    completed by the next call. Rows that the new schema cannot hold are refused before anything is changed; a
    duplicate that is added meanwhile is a conflict. `patience` is the former name of `timeouts`.
    Raises: Invalid (unknown revision, unfit rows), Conflict, SchemaMismatch (newer than this code).
    """
    timeouts = renamed_argument(timeouts, patience, "patience=", "timeouts=")
    return await migrate(settings, "up", lambda found: to_apply(found, revision), timeouts)


async def down(
    settings: PostgresSettings,
    revision: str,
    *,
    timeouts: Timeouts = USUAL_TIMEOUTS,
    patience: Timeouts | None = None,
) -> list[str]:
    """Undo what came after `revision`: an id, "-1" or "base". Returns the ids of what was undone, newest first.

    The data in dropped tables and columns are lost: `describe` lists them. `patience` is the former name of
    `timeouts`.
    Raises: Invalid (not an applied revision, or rooms are distributed over nodes), Conflict (duplicates),
    SchemaMismatch (newer than this code).
    """
    pool = Pool(settings)
    try:
        if await is_begun(pool):
            raise Invalid("revision", "cannot be undone where rooms are distributed over nodes")
    finally:
        await pool.close()
    timeouts = renamed_argument(timeouts, patience, "patience=", "timeouts=")
    return await migrate(settings, "down", lambda found: to_undo(found, revision), timeouts)


async def move(settings: PostgresSettings, schema: str, *, timeouts: Timeouts = USUAL_TIMEOUTS) -> None:
    """Move the tables from the schema of `settings` to another one, which is made if it does not exist.

    All of them or none: rows, indexes and the rights on the tables move along, and no row is rewritten.
    Processes with the former `DB_SCHEMA` fail from then on. A role of the application needs USAGE on the new
    schema, which `grant` gives it.
    Raises: Invalid (the name, or tables with these names are there), SchemaMismatch (to be migrated first).
    """
    if await _is_distributed(settings):
        raise Invalid("schema", "cannot be changed where rooms are distributed over nodes")
    if schema == settings.schema:
        raise Invalid("schema", "has the tables already: set DB_SCHEMA to the schema that they move from")
    await move_tables(settings, schema, timeouts)


async def restored(settings: PostgresSettings, *, timeouts: Timeouts = USUAL_TIMEOUTS) -> bool:
    """After a restore by pg_restore: give new entries larger transaction ids than all that were restored.

    The feed of changes needs it, because the transactions of another cluster begin at 1. Run it before the
    application starts. It takes milliseconds. Returns whether there was something to do.
    Where rooms are distributed over nodes, there is no feed and nothing to do.
    Raises: SchemaMismatch (to be migrated first).
    """
    if await _is_distributed(settings):
        return False
    return await renumber(settings, timeouts)


async def status(settings: PostgresSettings) -> Status:
    """The revisions that the database has, and those that it lacks. Changes nothing."""
    pool = Pool(settings)
    try:
        current = await revisions.current_revision(pool)
    finally:
        await pool.close()
    if revisions.is_unknown(current):
        return Status(current, HEAD, applied=(), pending=(), unknown=True)
    pending = to_apply(current, "head")
    return Status(current, HEAD, REVISIONS[: len(REVISIONS) - len(pending)], pending, unknown=False)


def sql(
    direction: Literal["up", "down"] = "up",
    *,
    start: str | None = None,
    revision: str | None = None,
    schema: str = "public",
) -> str:
    """The SQL that `up` or `down` would run, for a database administrator. Connects to no server.

    It sets the search path to `schema`, which it makes if that is not `public` and has no tables of hubbub yet.

    It leads from `start` (default: no schema for up, the head for down) to `revision` (default: the head for up,
    "base" for down). Indexes are built outside of transactions, so a client must send the statements one by one,
    as psql does.
    Raises: Invalid (an unknown revision, or `schema` cannot be the name of a schema).
    """
    if (reason := refused_schema(schema)) is not None:
        raise Invalid("schema", reason)
    if start is not None:
        revisions.ordinal(start)
    into = f"SET search_path = {schema};\n\n"
    if schema != "public" and direction == "up" and start is None:
        into = f"CREATE SCHEMA IF NOT EXISTS {schema};\n\n{into}"
    if direction == "up":
        return into + revisions.script("up", to_apply(start, revision or "head"))
    return into + revisions.script("down", to_undo(start or HEAD, revision or "base"))


def describe(revision: str) -> Revision:
    """The purpose of a revision, and the data that undoing it deletes. Raises: Invalid (an unknown revision)."""
    revisions.ordinal(revision)
    loss = revisions.first_comment("down", revision).removeprefix("Deletes: ")
    return Revision(revision, revisions.first_comment("up", revision), loss)


async def _is_distributed(settings: PostgresSettings) -> bool:
    pool = Pool(settings)
    try:
        await verify(pool)
        return await is_distributed(pool, settings.schema)
    finally:
        await pool.close()


def _patience(
    *, lock_timeout_seconds: float = 2, locks_seconds: float = 60, turn_seconds: float = 600
) -> Timeouts:
    """The former `Patience`, with the former names of its fields."""
    return Timeouts(
        lock_timeout_seconds=lock_timeout_seconds, retry_seconds=locks_seconds, migration_lock_seconds=turn_seconds
    )


def __getattr__(name: str) -> object:
    if name == "Patience":
        warn_of_former_name("hubbub.migrations.Patience", "Timeouts", stacklevel=2)
        return _patience
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
