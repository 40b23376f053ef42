"""Indexes on tables that are in use: built beside the old one, without holding up the application."""

from __future__ import annotations

from dataclasses import dataclass

from alembic.operations import Operations
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from hubbub.errors import Conflict
from hubbub.migrations.autocommit import autocommit
from hubbub.postgres.errors import UNIQUE_CONSTRAINTS

# To build an index is to wait for every transaction older than it. Nothing of the application queues behind that
# wait, so it may be longer than a lock timeout; it ends all the same, for the sake of whoever watches.
BUILD_LOCK_TIMEOUT = "60s"

IS_VALID = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")


@dataclass(frozen=True, slots=True)
class Index:
    """An index under its final name: `on` is what follows the table in CREATE INDEX."""

    name: str
    table: str
    on: str
    unique: bool = False

    def build(self, op: Operations, *, to: str) -> None:
        """Build it under a provisional name. Commits what the revision did so far.

        The name carries `to`, the revision that the database is on its way to. So what a killed run left behind
        has the same definition: it is kept where it is whole, and dropped and built again where it is INVALID.
        """
        with autocommit(op):
            op.execute(f"SET lock_timeout = '{BUILD_LOCK_TIMEOUT}'")
            if not self._is_built(op, to):
                self._drop_unfinished(op, to)
                self._create(op, to)
            op.execute("RESET lock_timeout")

    def replace(self, op: Operations, *, to: str) -> None:
        """Put what was built in the place of the index of the final name, if there is one."""
        op.execute(f"DROP INDEX IF EXISTS {self.name}")
        op.execute(f"ALTER INDEX {self._provisional(to)} RENAME TO {self.name}")

    def constrain(self, op: Operations, *, to: str) -> None:
        """Make what was built a UNIQUE constraint of the final name."""
        built = self._provisional(to)
        op.execute(f"ALTER TABLE {self.table} ADD CONSTRAINT {self.name} UNIQUE USING INDEX {built}")

    def _provisional(self, to: str) -> str:
        return f"{self.name}_to_{to}"

    def _is_built(self, op: Operations, to: str) -> bool:
        if op.get_context().as_sql:
            return False
        return bool(op.get_bind().scalar(IS_VALID, {"name": self._provisional(to)}))

    def _drop_unfinished(self, op: Operations, to: str) -> None:
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {self._provisional(to)}")

    def _create(self, op: Operations, to: str) -> None:
        unique = "UNIQUE " if self.unique else ""
        try:
            op.execute(f"CREATE {unique}INDEX CONCURRENTLY {self._provisional(to)} ON {self.table} {self.on}")
        except IntegrityError as error:
            # An index that failed on a duplicate would go on refusing new ones.
            self._drop_unfinished(op, to)
            raise Conflict(UNIQUE_CONSTRAINTS.get(self.name, self.name)) from error
