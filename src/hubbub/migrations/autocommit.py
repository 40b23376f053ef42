"""Statements that commit one by one, because no transaction can hold them or because one would hold its locks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from alembic.operations import Operations
from sqlalchemy.exc import SQLAlchemyError


@contextmanager
def autocommit(op: Operations) -> Iterator[None]:
    """Commit what the revision did so far, then every statement of the block on its own.

    It is Alembic's own block, but what the block raised is what its caller gets: on a connection that was lost, or
    given up because the task was cancelled, Alembic's tidying fails as well and would hide it.
    """
    failure: BaseException | None = None
    try:
        with op.get_context().autocommit_block():
            try:
                yield
            except BaseException as error:
                failure = error
                raise
    except SQLAlchemyError:
        if failure is None:
            raise
    if failure is not None:
        raise failure
