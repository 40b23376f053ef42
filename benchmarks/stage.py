"""What everybody plays on: PostgreSQL and Valkey of this run's own, with the same chat in two schemas."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict
from uuid import UUID

import asyncpg

from hubbub import PostgresSettings, Settings, migrations
from hubbub.embedded import Servers

HERE = Path(__file__).parent
ORIGINAL_SCHEMA = HERE / "original.sql"

PEOPLE = 1_000
"""As many rooms. Person n is a member of room n; the first 100 rooms have ten members each, and room 1 has all."""

# Six peers with a pool of 20 each are connected at a time; the default is 100.
MAX_CONNECTIONS = 250


def id_of(number: int) -> UUID:
    """Of person `number` and of room `number`, which no table has both of."""
    return UUID(int=0x7000_8000_0000_0000_0000 + number)


USERS = tuple(id_of(number) for number in range(1, PEOPLE + 1))
ROOMS = USERS
# Rooms to which nobody sends but the COPY that shows the limit: it numbers their messages itself.
COPY_ROOMS = tuple(id_of(number) for number in range(PEOPLE + 1, 2 * PEOPLE + 1))

_ID_OF = "('00000000-0000-7000-8000-' || lpad(to_hex({}), 12, '0'))::uuid"
_ID = _ID_OF.format("n")
_SHARED = _ID_OF.format("(n - 1) % 100 + 1")

FILL = (
    f"""
    INSERT INTO users (id, email, username, password_hash)
    SELECT {_ID}, 'user-' || n || '@example.org', 'user-' || n, 'not a hash'
    FROM generate_series(1, {PEOPLE}) AS n
    """,
    f"""
    INSERT INTO rooms (id, name, created_by)
    SELECT {_ID}, 'room-' || n, {_ID_OF.format(f"(n - 1) % {PEOPLE} + 1")}
    FROM generate_series(1, {2 * PEOPLE}) AS n
    """,
    f"""
    INSERT INTO room_users (room_id, user_id)
    SELECT {_ID}, {_ID}
    FROM generate_series(1, {PEOPLE}) AS n
    UNION
    SELECT {_SHARED}, {_ID}
    FROM generate_series(1, {PEOPLE}) AS n
    UNION
    SELECT '00000000-0000-7000-8000-000000000001', {_ID}
    FROM generate_series(1, {PEOPLE}) AS n
    """,
    "ANALYZE",
)


@dataclass(frozen=True)
class Stage:
    """Where the servers of this run are. `settings` has hubbub's schema, `original` the original one."""

    settings: Settings
    original: PostgresSettings
    superuser: PostgresSettings
    folder: Path

    def database(self, name: str) -> Settings:
        return replace(self.settings, postgres=replace(self.settings.postgres, database=name))

    async def as_superuser(self, *statements: str, database: str = "postgres") -> None:
        await run(replace(self.superuser, database=database), *statements)

    async def new_database(self, name: str) -> Settings:
        """A further database with hubbub's schema."""
        await self.as_superuser(f"CREATE DATABASE {name} OWNER {self.settings.postgres.user}")
        await migrations.up(self.database(name).postgres)
        return self.database(name)


async def connect(settings: PostgresSettings) -> asyncpg.Connection[asyncpg.Record]:
    return await asyncpg.connect(**address(settings))


class Address(TypedDict):
    """As asyncpg takes it."""

    host: str
    port: int
    user: str
    password: str | None
    database: str


def address(settings: PostgresSettings) -> Address:
    return {
        "host": settings.host,
        "port": settings.port,
        "user": settings.user,
        "password": settings.password,
        "database": settings.database,
    }


async def run(settings: PostgresSettings, *statements: str) -> None:
    """One after the other on one connection, each in a transaction of its own."""
    connection = await connect(settings)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """Servers in a temporary folder, with fsync and synchronous_commit on, filled with people and rooms."""
    with tempfile.TemporaryDirectory(prefix="hubbub-bench-") as name:
        temporary = Path(name)
        await asyncio.to_thread(temporary.chmod, 0o755)  # PostgreSQL runs as another user where this runs as root
        folder = temporary / "servers"
        async with Servers(folder) as settings:
            superuser = _superuser(folder, settings)
            await run(superuser, f"ALTER SYSTEM SET max_connections = {MAX_CONNECTIONS}")
        async with Servers(folder) as settings:
            built = Stage(
                settings,
                original=replace(settings.postgres, database="original"),
                superuser=_superuser(folder, settings),
                folder=temporary,
            )
            await _fill(built)
            yield built


def _superuser(folder: Path, settings: Settings) -> PostgresSettings:
    passwords = json.loads((folder / "passwords.json").read_text(encoding="utf-8"))
    return replace(
        settings.postgres, user="postgres", password=passwords["postgresql_superuser"], database="postgres"
    )


async def _fill(built: Stage) -> None:
    await built.as_superuser(f"CREATE DATABASE original OWNER {built.settings.postgres.user}")
    await run(built.original, ORIGINAL_SCHEMA.read_text(encoding="utf-8"), *FILL)
    await migrations.up(built.settings.postgres)
    await run(built.settings.postgres, *FILL)
    await built.as_superuser("CHECKPOINT")
