"""Servers that tests kill, and chats on them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio

from commands import execute
from faults import chat as chats
from faults.chat import Chat
from faults.fragile import FragileServers
from faults.standby import Pair, Standby
from hubbub import Settings, migrations
from pgbouncer.run import chosen, through
from pgbouncer.server import PgBouncer
from waiting import until_it_answers

TEMPLATE = "faults_template"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def fragile_folder() -> AsyncIterator[Path]:
    """A folder outside pytest's own, which the account of the servers may not enter."""
    folder = Path(tempfile.mkdtemp(prefix="hubbub-faults-"))
    yield folder
    shutil.rmtree(folder)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def fragile_servers(fragile_folder: Path) -> AsyncIterator[FragileServers]:
    servers = FragileServers(fragile_folder)
    settings = await servers.start()
    await execute(settings.postgres, f"CREATE DATABASE {TEMPLATE}")
    await migrations.up(replace(settings.postgres, database=TEMPLATE))
    yield servers
    await servers.stop()


@pytest.fixture
async def fragile(fragile_servers: FragileServers) -> FragileServers:
    """Servers that both run when the test begins, even if an earlier test has ended them."""
    await fragile_servers.start()
    return fragile_servers


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def fragile_pgbouncer(
    fragile_servers: FragileServers, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[PgBouncer | None]:
    """The PgBouncer in front of the servers, if the run uses one. It outlives them."""
    settings = await fragile_servers.start()
    with chosen(tmp_path_factory.mktemp("pgbouncer"), settings.postgres) as pgbouncer:
        yield pgbouncer


@pytest.fixture
async def own_settings(fragile: FragileServers) -> AsyncIterator[Settings]:
    """A migrated database for this test alone, bypassing any pooler."""
    settings, name = await fragile.start(), f"test_{uuid4().hex}"
    await execute(settings.postgres, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    yield replace(settings, postgres=replace(settings.postgres, database=name))
    await fragile.start()

    async def is_dropped() -> bool:
        try:
            await execute(settings.postgres, f"DROP DATABASE {name} WITH (FORCE)")
        except asyncpg.InsufficientPrivilegeError:  # an autovacuum worker, which ends by itself
            return False
        return True

    await until_it_answers(is_dropped)


@pytest.fixture
def fragile_settings(
    own_settings: Settings, fragile_pgbouncer: PgBouncer | None, request: pytest.FixtureRequest
) -> Settings:
    """The same database, through the pooler if there is one."""
    return replace(own_settings, postgres=through(fragile_pgbouncer, own_settings.postgres, request.node))


@pytest.fixture
async def pair(fragile: FragileServers, fragile_folder: Path, own_settings: Settings) -> AsyncIterator[Pair]:
    """The server of that database, with a standby for this test alone."""
    standby = Standby(fragile_folder, own_settings.postgres)
    await standby.start()
    yield Pair(fragile, standby, own_settings)
    await fragile.start()
    administrator = fragile.administrator(own_settings.postgres)
    await execute(administrator, "ALTER SYSTEM RESET ALL", "SELECT pg_reload_conf()")
    await standby.stop()


@pytest.fixture
async def chat(fragile_settings: Settings, tmp_path: Path) -> AsyncIterator[Chat]:
    """Three rooms, with all users in each."""
    async with chats.opened(fragile_settings, tmp_path, rooms=3) as chat:
        yield chat
