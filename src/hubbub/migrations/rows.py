"""Rows of a filled database that a revision cannot take along."""

from __future__ import annotations

from alembic.operations import Operations
from sqlalchemy import text

from hubbub.errors import Invalid


def refuse(op: Operations, field: str, reason: str, query: str) -> None:
    """Raise `Invalid` where `query` finds rows, with their number and the query itself, before anything changes.

    To change such rows is for their owner to decide. SQL on paper cannot ask: there the rule itself refuses them.
    """
    if op.get_context().as_sql:
        return
    count = op.get_bind().scalar(text(f"SELECT count(*) FROM ({query}) AS refused"))  # noqa: S608 - no input in it
    if count:
        raise Invalid(field, f"{count} in the database {reason}; find them with: {query}")
