"""The PgBouncer of a whole test run: `make pooled`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hubbub import PostgresSettings
from pgbouncer.server import PgBouncer

CHOSEN = "HUBBUB_PGBOUNCER"
"""The variable with the path of the program. Without it all connections go to PostgreSQL directly."""


@contextmanager
def chosen(folder: Path, *roles: PostgresSettings) -> Iterator[PgBouncer | None]:
    """A PgBouncer for these roles in front of their server. None if the variable is not set."""
    if (program := os.environ.get(CHOSEN)) is None:
        yield None
        return
    with PgBouncer(Path(program), folder, roles).running() as pgbouncer:
        yield pgbouncer


def through(pgbouncer: PgBouncer | None, settings: PostgresSettings, test: pytest.Item) -> PostgresSettings:
    """The settings of the pooler, if there is one and the test does not have the marker `session`."""
    if pgbouncer is None or test.get_closest_marker("session") is not None:
        return settings
    return pgbouncer.in_front_of(settings)
