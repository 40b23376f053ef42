"""hubbub's history in Alembic's hands. What imports this module imports Alembic and SQLAlchemy.

Alembic is configured here in code. There is no alembic.ini and no env.py, and the revisions get `op` as an
argument instead of importing Alembic's global one: so an application that runs its own Alembic in the same
process, even around a call of hubbub's, is not disturbed.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from io import StringIO
from typing import Literal

from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext, MigrationStep, RevisionStep
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from hubbub.migrations.revisions import VERSION_TABLE

Direction = Literal["up", "down"]

URL = "postgresql+asyncpg://"


@cache
def scripts() -> ScriptDirectory:
    """The revisions of this package, read once."""
    config = Config()
    config.set_main_option("script_location", "hubbub:migrations")
    return ScriptDirectory.from_config(config)


def move(connection: Connection, direction: Direction, revision: str) -> None:
    """Apply or undo one revision, in a transaction that also notes it in the version table.

    A revision that builds an index commits on the way; it can be run again from any point where it stopped.
    """
    context = MigrationContext.configure(connection, opts=_options(direction, [revision]))
    with context.begin_transaction():
        context.run_migrations(op=Operations(context))


def written(direction: Direction, revisions: Iterable[str], start: str | None) -> str:
    """The SQL that applies or undoes `revisions` on a database that is at `start`."""
    paper = StringIO()
    options = _options(direction, revisions) | {
        "as_sql": True,
        "starting_rev": start,
        "output_buffer": paper,
    }
    context = MigrationContext.configure(url=URL, opts=options)
    with context.begin_transaction():
        context.run_migrations(op=Operations(context))
    return paper.getvalue()


def told(revision: str) -> tuple[str, str]:
    """What the revision is for, and what undoing it loses, in words."""
    script = scripts().get_revision(revision)
    return script.doc, str(script.module.LOSS)


def _options(direction: Direction, revisions: Iterable[str]) -> dict[str, object]:
    steps = [_step(direction, revision) for revision in revisions]
    return {
        "version_table": VERSION_TABLE,
        "transaction_per_migration": True,
        "script": scripts(),
        "fn": lambda _heads, _context: steps,
    }


def _step(direction: Direction, revision: str) -> RevisionStep:
    script = scripts().get_revision(revision)
    if direction == "up":
        return MigrationStep.upgrade_from_script(scripts().revision_map, script)
    return MigrationStep.downgrade_from_script(scripts().revision_map, script)
