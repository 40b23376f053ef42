"""Servers of these tests' own: they do harm to databases, and make roles, which are there for a whole server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import pytest
import pytest_asyncio

from cli._doctor.saying import Look, Sql
from hubbub import PostgresSettings, Settings, migrations
from hubbub.cli._doctor import postgresql
from hubbub.cli._doctor.examination import Section
from hubbub.embedded import Servers
from hubbub.postgres import Pool, connect
from redis_server import Server, binaries
from rights import superuser


class Clinic(NamedTuple):
    """A server with a migrated database, as its owner and as the superuser sees it."""

    owner: PostgresSettings
    superuser: PostgresSettings


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def clinic(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Clinic]:
    folder: Path = tmp_path_factory.mktemp("clinic")
    async with Servers(folder, fsync=False) as settings:
        await migrations.up(settings.postgres)
        yield Clinic(settings.postgres, superuser(settings.postgres, folder))


async def run(settings: PostgresSettings, sql: str) -> None:
    connection = await connect(settings)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


@pytest.fixture
async def patient(clinic: Clinic) -> AsyncIterator[PostgresSettings]:
    """A migrated database of this test's own, as its owner sees it."""
    name = f"patient_{uuid4().hex}"
    await run(
        clinic.superuser, f"CREATE DATABASE {name} TEMPLATE {clinic.owner.database} OWNER {clinic.owner.user}"
    )
    yield replace(clinic.owner, database=name)
    await run(clinic.superuser, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def almighty(clinic: Clinic, patient: PostgresSettings) -> PostgresSettings:
    """The patient as the superuser sees it."""
    return replace(clinic.superuser, database=patient.database)


@pytest.fixture
def sql(almighty: PostgresSettings) -> Sql:
    """Runs SQL in the patient, whatever it takes."""

    async def sql(text: str) -> None:
        await run(almighty, text)

    return sql


@pytest.fixture
async def role(clinic: Clinic, patient: PostgresSettings) -> AsyncIterator[PostgresSettings]:
    """The patient as an application sees it that was given the rights it needs."""
    name = f"application_{uuid4().hex}"
    await run(clinic.superuser, f"CREATE ROLE {name} LOGIN PASSWORD 'of-the-tests'")
    await migrations.grant(replace(clinic.superuser, database=patient.database), name)
    yield replace(patient, user=name, password="of-the-tests")
    in_patient = replace(clinic.superuser, database=patient.database)
    await run(in_patient, f"DROP OWNED BY {name}; DROP ROLE {name}")


@pytest.fixture
def look() -> Look:
    """What the doctor says of a database."""

    async def look(
        settings: PostgresSettings, *, processes: int = 1, said: PostgresSettings | None = None
    ) -> Section:
        pool = Pool(settings)
        try:
            return await postgresql.look(pool, said or settings, processes)
        finally:
            await pool.close()

    return look


@pytest.fixture
def servers_of(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts Valkey with further lines of configuration."""
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
def both(patient: PostgresSettings, servers_of: Callable[..., Server]) -> Settings:
    return Settings(postgres=patient, redis=servers_of().settings)
