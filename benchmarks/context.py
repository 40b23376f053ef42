"""The servers of a run: its own PostgreSQL and Valkey, with the same chat in two schemas."""

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
"""And as many rooms. User n is a member of room n; the first 100 rooms have ten members each, and room 1 has
all."""

MAX_CONNECTIONS = 250
"""Six peers are connected at a time, with pools of 20. The default of PostgreSQL is 100."""


def id_of(number: int) -> UUID:
    """The id of user `number`, and of room `number`."""
    return UUID(int=0x7000_8000_0000_0000_0000 + number)


USERS = tuple(id_of(number) for number in range(1, PEOPLE + 1))
ROOMS = USERS
# Rooms for the COPY that shows the limit. It numbers their messages itself, so nothing else writes to them.
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
class Context:
    """The servers of this run. `settings` has the database with hubbub's schema, `original` that with the original
    one."""

    settings: Settings
    original: PostgresSettings
    superuser: PostgresSettings
    folder: Path

    def database(self, name: str) -> Settings:
        return replace(self.settings, postgres=replace(self.settings.postgres, database=name))

    async def as_superuser(self, *statements: str, database: str = "postgres") -> None:
        await run(replace(self.superuser, database=database), *statements)

    async def new_database(self, name: str) -> Settings:
        """Another database with hubbub's schema."""
        await self.as_superuser(f"CREATE DATABASE {name} OWNER {self.settings.postgres.user}")
        await migrations.up(self.database(name).postgres)
        return self.database(name)


async def connect(settings: PostgresSettings) -> asyncpg.Connection[asyncpg.Record]:
    return await asyncpg.connect(**address(settings))


class Address(TypedDict):
    """Arguments of `asyncpg.connect`."""

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
    """Run the statements in order on one connection, each in its own transaction."""
    connection = await connect(settings)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@asynccontextmanager
async def started() -> AsyncIterator[Context]:
    """Start servers in a temporary folder, with fsync and synchronous_commit on, and users and rooms in them."""
    with tempfile.TemporaryDirectory(prefix="hubbub-bench-") as name:
        temporary = Path(name)
        await asyncio.to_thread(temporary.chmod, 0o755)  # PostgreSQL runs as another user if this runs as root
        folder = temporary / "servers"
        async with Servers(folder) as settings:
            superuser = _superuser(folder, settings)
            await run(superuser, f"ALTER SYSTEM SET max_connections = {MAX_CONNECTIONS}")
        async with Servers(folder) as settings:
            built = Context(
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


async def _fill(built: Context) -> None:
    await built.as_superuser(f"CREATE DATABASE original OWNER {built.settings.postgres.user}")
    await run(built.original, ORIGINAL_SCHEMA.read_text(encoding="utf-8"), *FILL)
    await migrations.up(built.settings.postgres)
    await run(built.settings.postgres, *FILL)
    await built.as_superuser("CHECKPOINT")
