"""The schema of hubbub and its history, beside whatever else lives in the database.

The revisions are Alembic's, with a version table of hubbub's own (`hubbub_schema_version`). Importing this package
imports neither Alembic nor SQLAlchemy: the library checks the schema when it opens, and only a command changes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hubbub.migrations import revisions
from hubbub.migrations.grants import Limits, grant
from hubbub.migrations.patience import Patience
from hubbub.migrations.revisions import HEAD, REVISIONS, TABLES, verify
from hubbub.postgres import Pool
from hubbub.settings import PostgresSettings

__all__ = [
    "HEAD",
    "REVISIONS",
    "TABLES",
    "Limits",
    "Patience",
    "Revision",
    "Status",
    "describe",
    "down",
    "grant",
    "sql",
    "status",
    "up",
    "verify",
]

USUAL_PATIENCE = Patience()


@dataclass(frozen=True, slots=True)
class Revision:
    """One step of the schema's history: what it is for, and what undoing it loses, in words."""

    id: str
    title: str
    loss: str


@dataclass(frozen=True, slots=True)
class Status:
    """Where a database stands. `unknown` is True when it is at a revision that this code does not know."""

    current: str | None
    head: str
    applied: tuple[str, ...]
    pending: tuple[str, ...]
    unknown: bool


async def up(
    settings: PostgresSettings, revision: str = "head", *, patience: Patience = USUAL_PATIENCE
) -> list[str]:
    """Apply what is missing up to `revision`, and return the ids of what this call applied, the oldest first.

    Any number of processes may call it at once: one applies, the others wait for it. What was cut short is
    completed by the next call. Raises `Invalid` for an unknown revision, and before anything is changed for rows
    that the new schema cannot hold; `Conflict` for a duplicate that came in meanwhile; `SchemaMismatch` for a
    database newer than this code; `Unavailable` where the server or a lock was not to be had.
    """
    from hubbub.migrations.walk import walk  # noqa: PLC0415 - Alembic and SQLAlchemy take 0.4 s to import

    return await walk(settings, "up", lambda found: revisions.ahead(found, revision), patience)


async def down(settings: PostgresSettings, revision: str, *, patience: Patience = USUAL_PATIENCE) -> list[str]:
    """Undo what came after `revision`: an id, "-1" or "base". Returns what was undone, the newest first.

    The data of what it drops is lost: `describe` says which. Raises as `up` does, and `Invalid` for a revision
    that is not applied.
    """
    from hubbub.migrations.walk import walk  # noqa: PLC0415 - as in `up`

    return await walk(settings, "down", lambda found: revisions.behind(found, revision), patience)


async def status(settings: PostgresSettings) -> Status:
    """Which revisions the database has and which it lacks. Changes nothing. Raises `Unavailable`."""
    pool = Pool(settings)
    try:
        found = await revisions.found_in(pool)
    finally:
        await pool.close()
    if revisions.is_unknown(found):
        return Status(current=found, head=HEAD, applied=(), pending=(), unknown=True)
    pending = revisions.ahead(found, "head")
    applied = REVISIONS[: len(REVISIONS) - len(pending)]
    return Status(current=found, head=HEAD, applied=applied, pending=pending, unknown=False)


def sql(direction: Literal["up", "down"] = "up", *, start: str | None = None, revision: str | None = None) -> str:
    """The SQL that `up` or `down` would run, for a database administrator. Connects to nothing.

    From `start` (default: nothing for up, the head for down) to `revision` (default: the head for up, "base" for
    down). Indexes are built outside of transactions, so a client must send the statements one by one, as psql
    does. Raises `Invalid`.
    """
    from hubbub.migrations.history import written  # noqa: PLC0415 - as in `up`

    if start is not None:
        revisions.refuse_unknown(start)
    if direction == "up":
        return written("up", revisions.ahead(start, revision or "head"), start)
    start = start or HEAD
    return written("down", revisions.behind(start, revision or "base"), start)


def describe(revision: str) -> Revision:
    """What a revision is for, and what undoing it loses. Raises `Invalid` for an unknown one."""
    from hubbub.migrations.history import told  # noqa: PLC0415 - as in `up`

    revisions.refuse_unknown(revision)
    return Revision(revision, *told(revision))
