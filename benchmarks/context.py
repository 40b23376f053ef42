"""The servers of a run: its own PostgreSQL and Valkey, with the same chat in two schemas."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict
from uuid import UUID

import asyncpg

from hubbub import PostgresSettings, Settings, migrations
from hubbub.embedded import Servers
from hubbub.redis import Connection
from hubbub.redis.replies import as_bytes

HERE = Path(__file__).parent
ORIGINAL_SCHEMA = HERE / "original.sql"

PEOPLE = 1_000
"""The number of users, and of rooms. User n is a member of room n. The first 100 rooms have ten members each, and
all users are members of room 1."""

MAX_CONNECTIONS = 250
"""Eight contenders are connected at a time, with pools of 20. The default of PostgreSQL is 100."""

WAL_FILES = 128
"""Files of 16 MiB each. PostgreSQL fills a new file with zeros and flushes it, which stops all sends for 20 ms and
more. So the files are made before the measurements, and reused after each checkpoint."""


def id_of(number: int) -> UUID:
    """The id of user `number` and of room `number`."""
    return UUID(int=0x7000_8000_0000_0000_0000 + number)


USERS = tuple(id_of(number) for number in range(1, PEOPLE + 1))
ROOMS = USERS
# Rooms for the COPY that measures the limit. It assigns the seqs itself, so nothing else writes to these rooms.
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
    """The servers of this run. `settings` has the database with hubbub's schema, `original` the one with the
    original schema."""

    settings: Settings
    original: PostgresSettings
    superuser: PostgresSettings
    folder: Path
    postmaster: int
    redis: int
    standby: int | None = None
    """The ids of the servers' processes."""

    def servers_cpu_seconds(self) -> dict[str, float]:
        """The processor time of each server until now."""
        standby = {} if self.standby is None else {"standby": _cpu_seconds_of_family(self.standby)}
        return {"postgres": _cpu_seconds_of_family(self.postmaster), "redis": _cpu_seconds(self.redis), **standby}

    async def make_wal_ready(self) -> None:
        """Run a checkpoint, after which PostgreSQL can reuse the files of the write-ahead log."""
        await self.as_superuser("CHECKPOINT")

    def database(self, name: str) -> Settings:
        return replace(self.settings, postgres=replace(self.settings.postgres, database=name))

    async def as_superuser(self, *statements: str, database: str = "postgres") -> None:
        await run(replace(self.superuser, database=database), *statements)

    async def new_database(self, name: str) -> Settings:
        """Create another database with hubbub's schema."""
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
async def started(*, quick: bool) -> AsyncIterator[Context]:
    """Start servers in a temporary folder, with fsync and synchronous_commit on, and users and rooms in them."""
    with tempfile.TemporaryDirectory(prefix="hubbub-bench-") as name:
        temporary = Path(name)
        await asyncio.to_thread(temporary.chmod, 0o755)  # PostgreSQL runs as another user if this runs as root
        folder = temporary / "servers"
        async with Servers(folder) as settings:
            superuser = _superuser(folder, settings)
            await run(
                superuser,
                f"ALTER SYSTEM SET max_connections = {MAX_CONNECTIONS}",
                f"ALTER SYSTEM SET min_wal_size = '{16 * WAL_FILES}MB'",
                f"ALTER SYSTEM SET max_wal_size = '{4 * 16 * WAL_FILES}MB'",
                "ALTER SYSTEM SET checkpoint_timeout = '30min'",
            )
        async with Servers(folder) as settings:
            superuser = _superuser(folder, settings)
            built = Context(
                settings,
                original=replace(settings.postgres, database="original"),
                superuser=superuser,
                folder=temporary,
                postmaster=await _postmaster(superuser),
                redis=int((await redis_info(settings))["process_id"]),
            )
            await _fill(built)
            await _make_wal(built, WAL_FILES // 8 if quick else WAL_FILES)
            yield built


async def redis_info(settings: Settings) -> dict[str, str]:
    """The fields of `INFO server`."""
    connection = Connection(settings.redis)
    await connection.start()
    try:
        lines = as_bytes(await connection.execute("INFO", "server")).decode().splitlines()
    finally:
        await connection.close()
    return dict(line.split(":", 1) for line in lines if ":" in line)


async def _postmaster(superuser: PostgresSettings) -> int:
    connection = await connect(superuser)
    try:
        return int(_stat(await connection.fetchval("SELECT pg_backend_pid()"))[1])
    finally:
        await connection.close()


async def _make_wal(built: Context, files: int) -> None:
    connection = await connect(built.superuser)
    try:
        for _ in range(files):
            await connection.execute("SELECT pg_logical_emit_message(false, 'bench', ''), pg_switch_wal()")
    finally:
        await connection.close()
    await built.make_wal_ready()


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: the state, the parent and so on."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()


def _cpu_seconds(pid: int) -> float:
    """The processor time of a process with all its threads, from a counter in nanoseconds."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text(encoding="ascii").split()[0]) for thread in threads) / 1e9


def _cpu_seconds_of_family(pid: int) -> float:
    """The processor time of a process and its children, including ended ones."""
    fields = _stat(pid)
    total = _cpu_seconds(pid) + (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    for child in children:
        with suppress(OSError):  # it has just ended
            total += _cpu_seconds(int(child))
    return total


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
