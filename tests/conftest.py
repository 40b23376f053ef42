"""Real servers for the whole run, and a database of its own for every test that asks for one."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import pytest
import pytest_asyncio
from asyncpg import InsufficientPrivilegeError

from hubbub import Hub, PostgresSettings, Settings, migrations
from hubbub.embedded import Servers
from hubbub.models import Room, User
from hubbub.postgres import Pool, connect

# What a shell has set must not reach a test.
for name in [name for name in os.environ if name.startswith(("DB_", "REDIS_", "DATABASE_URL"))]:
    del os.environ[name]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Settings]:
    """PostgreSQL and Valkey that end with the run. Without fsync: what needs it starts its own."""
    async with Servers(tmp_path_factory.mktemp("servers"), fsync=False) as settings:
        yield settings


async def _run(settings: PostgresSettings, command: str) -> None:
    connection = await connect(settings)
    try:
        await connection.execute(command)
    finally:
        await connection.close()


async def _drop(settings: PostgresSettings, name: str) -> None:
    try:
        await _run(settings, f"DROP DATABASE {name} WITH (FORCE)")
    except InsufficientPrivilegeError:
        # Only a superuser may force out autovacuum. Without force PostgreSQL itself asks it to leave.
        await _run(settings, f"DROP DATABASE {name}")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def template(servers: Settings) -> str:
    """The name of a migrated database that others are copied from."""
    name = "hubbub_template"
    await _run(servers.postgres, f"CREATE DATABASE {name}")
    await migrations.up(replace(servers.postgres, database=name))
    return name


@pytest.fixture
async def empty_database(servers: Settings) -> AsyncIterator[PostgresSettings]:
    """A database of this test's own, without a table."""
    name = f"test_{uuid4().hex}"
    await _run(servers.postgres, f"CREATE DATABASE {name}")
    yield replace(servers.postgres, database=name)
    await _drop(servers.postgres, name)


@pytest.fixture
async def postgres_settings(servers: Settings, template: str) -> AsyncIterator[PostgresSettings]:
    """A database of this test's own, migrated. A copy by wal_log takes a third of the time of one by file_copy."""
    name = f"test_{uuid4().hex}"
    await _run(servers.postgres, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY wal_log")
    yield replace(servers.postgres, database=name)
    await _drop(servers.postgres, name)


@pytest.fixture
def settings(servers: Settings, postgres_settings: PostgresSettings) -> Settings:
    return replace(servers, postgres=postgres_settings)


@pytest.fixture
async def pool(postgres_settings: PostgresSettings) -> AsyncIterator[Pool]:
    pool = Pool(postgres_settings)
    await pool.open()
    yield pool
    await pool.close()


@pytest.fixture
async def hub(settings: Settings) -> AsyncIterator[Hub]:
    async with Hub(settings) as hub:
        yield hub


@pytest.fixture
async def ada(hub: Hub) -> User:
    return await hub.users.create("ada@example.org", "ada", "not a hash")


@pytest.fixture
async def bob(hub: Hub) -> User:
    return await hub.users.create("bob@example.org", "bob", "not a hash")


@pytest.fixture
async def room(hub: Hub, ada: User) -> Room:
    """A room of Ada's: she is its admin and only member, and its log has one entry."""
    return await hub.rooms.create("engine-room", created_by=ada.id)
