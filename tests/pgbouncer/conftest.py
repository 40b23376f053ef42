from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hubbub import PostgresSettings, Settings
from pgbouncer.run import CHOSEN
from pgbouncer.server import PgBouncer
from rights import as_role
from versions.catalogue import program

Start = Callable[..., PgBouncer]


@pytest.fixture
def started(servers: Settings, tmp_path: Path) -> Iterator[Start]:
    """Starts a PgBouncer for the application and the owner, with additional lines of configuration."""
    chosen = os.environ.get(CHOSEN)
    binary = Path(chosen) if chosen else program("pgbouncer")
    if binary is None:
        pytest.skip("there is no PgBouncer on this machine: `make servers` fetches one")
    with ExitStack() as stack:

        def start(*others: str) -> PgBouncer:
            people = (as_role(servers.postgres), servers.postgres)
            return stack.enter_context(PgBouncer(binary, tmp_path, people, *others).running())

        yield start


@pytest.fixture
def application(postgres_settings: PostgresSettings) -> PostgresSettings:
    """A migrated database for the application, without a pooler."""
    return as_role(postgres_settings)
