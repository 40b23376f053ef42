"""Servers for these tests alone: they damage databases, and create roles, which belong to a whole server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import pytest
import pytest_asyncio

from commands import execute
from diagnostics.sections import Look, Sql, section_of
from hubbub import PostgresSettings, Settings, migrations
from hubbub.embedded import Servers
from redis_server import Server, binaries
from rights import superuser


class OwnServer(NamedTuple):
    """A server with a migrated database, with the settings of its owner and of the superuser."""

    owner: PostgresSettings
    superuser: PostgresSettings


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def own_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OwnServer]:
    folder: Path = tmp_path_factory.mktemp("own_server")
    async with Servers(folder, fsync=False) as settings:
        await migrations.up(settings.postgres)
        yield OwnServer(settings.postgres, superuser(settings.postgres, folder))


@pytest.fixture
async def database(own_server: OwnServer) -> AsyncIterator[PostgresSettings]:
    """A migrated database for this test alone, with the settings of its owner."""
    name = f"doctor_{uuid4().hex}"
    await execute(
        own_server.superuser,
        f"CREATE DATABASE {name} TEMPLATE {own_server.owner.database} OWNER {own_server.owner.user}",
    )
    yield replace(own_server.owner, database=name)
    await execute(own_server.superuser, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def as_superuser(own_server: OwnServer, database: PostgresSettings) -> PostgresSettings:
    """The database, with the settings of the superuser."""
    return replace(own_server.superuser, database=database.database)


@pytest.fixture
def sql(as_superuser: PostgresSettings) -> Sql:
    """Runs SQL in the database as the superuser."""

    async def sql(text: str) -> None:
        await execute(as_superuser, text)

    return sql


@pytest.fixture
async def role(own_server: OwnServer, database: PostgresSettings) -> AsyncIterator[PostgresSettings]:
    """The database, with the settings of an application that has only the rights it needs."""
    name = f"application_{uuid4().hex}"
    await execute(own_server.superuser, f"CREATE ROLE {name} LOGIN PASSWORD 'of-the-tests'")
    await migrations.grant(replace(own_server.superuser, database=database.database), name)
    yield replace(database, user=name, password="of-the-tests")
    in_database = replace(own_server.superuser, database=database.database)
    await execute(in_database, f"DROP OWNED BY {name}; DROP ROLE {name}")


@pytest.fixture
def look() -> Look:
    """Runs the checks of PostgreSQL, like `section_of`."""
    return section_of


@pytest.fixture
def servers_of(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts Valkey with additional lines of configuration."""
    started: list[Server] = []

    def start(*lines: str) -> Server:
        folder = tmp_path / f"valkey-{len(started)}"
        folder.mkdir()
        started.append(Server(binaries()[0], folder, extra=lines))
        return started[-1].start()

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def both(database: PostgresSettings, servers_of: Callable[..., Server]) -> Settings:
    return Settings(postgres=database, redis=servers_of().settings)
