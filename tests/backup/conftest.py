"""A chat under load, a role that may only read it, and a server to restore it on."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest

from backup.programs import Programs
from commands import execute
from faults import chat as chats
from faults.chat import Chat
from hubbub import PostgresSettings, Settings
from hubbub.embedded import Servers
from hubbub.embedded.programs import CHOSEN_POSTGRESQL
from rights import role, superuser

PASSWORD = "of-the-backup"


@dataclass(frozen=True, slots=True)
class NewServer:
    """Another PostgreSQL, with an empty database and the application's role, which has no rights in it."""

    owner: PostgresSettings
    superuser: PostgresSettings


@pytest.fixture
async def chat(settings: Settings, tmp_path: Path) -> AsyncIterator[Chat]:
    """Three rooms with all users in each. Its processes have only the rights of the application."""
    async with chats.opened(settings, tmp_path, rooms=3) as chat:
        yield chat


@pytest.fixture
async def reader(postgres_settings: PostgresSettings, administrator: PostgresSettings) -> PostgresSettings:
    """The role that takes the backup, with the rights in the documentation. It is deleted with the cluster."""
    name = f"backup_{uuid4().hex}"
    await execute(administrator, f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
    await execute(postgres_settings, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}")
    return replace(postgres_settings, user=name, password=PASSWORD)


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    monkeypatch.delenv(CHOSEN_POSTGRESQL, raising=False)
    return Programs()


@pytest.fixture
async def new_server(programs: Programs) -> AsyncIterator[NewServer]:
    """A server of the version of the programs."""
    folder = Path(tempfile.mkdtemp(prefix="hubbub-backup-"))  # a folder that the account of the servers may pass
    async with Servers(folder, fsync=False) as servers:
        of_all = replace(superuser(servers.postgres, folder), database=servers.postgres.database)
        await execute(of_all, *role())
        yield NewServer(servers.postgres, of_all)
    shutil.rmtree(folder)
