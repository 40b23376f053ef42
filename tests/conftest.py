"""Real servers for the whole run, and a database of its own for every test that asks for one.

They are those of the plugin that applications use, `pytest_hubbub`, with rights of our own making on top.

What the tests do through `hub`, `settings` and `pool` they do as an application with as few rights as it can have;
`servers`, `empty_database` and `postgres_settings` are the owner's, who migrates. Where HUBBUB_PGBOUNCER names a
PgBouncer, the application comes through it, and the owner does not.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import pytest_asyncio
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from citus import cluster as citus
from citus.cluster import Cluster
from commands import ON_CITUS, execute
from databases import EMPTY_ON_CITUS, Databases
from hubbub import Hub, PostgresSettings, Settings, author_marks, migrations
from hubbub.migrations import distribution
from hubbub.models import Room, User
from hubbub.postgres import Pool, connect
from hubbub.testing import Template, serving
from pgbouncer.run import chosen, through
from pgbouncer.server import PgBouncer
from rights import ROLE, as_redis_user, as_role, cheap_login, make_redis_users, role, superuser
from waiting import HANGS_AFTER_SECONDS

if TYPE_CHECKING:
    from secrecy.leaks import LeakSearch

pytest_plugins = ["secrecy.leaks", "faults.figures", "file_order"]

# A shell that runs the suite in the background hands SIGINT down as ignored, and every process that a test starts
# would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# On a busy machine an example may take longer than 200 ms, and to think of ten of them longer than a second.
hypothesis_settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.register_profile("fast", hypothesis_settings.get_profile("patient"), max_examples=20)
hypothesis_settings.load_profile("patient")

# Variables that a shell has set must not reach a test. Without bytecode, each of the many processes that tests
# start would compile hubbub again.
SET_BY_SHELLS = ("DB_", "REDIS_", "DATABASE_URL", "PYTHONDONTWRITEBYTECODE")
for name in [name for name in os.environ if name.startswith(SET_BY_SHELLS)]:
    del os.environ[name]


FAST = "not slow"
"""The choice of `make test-fast`."""

# Tests that kill, freeze or start servers, run commands, wait in real time, try many examples or fill a database,
# and those of the suite itself, by the beginnings of their paths. `make test-fast` leaves them out, with the tests
# that carry the marker. `make check` runs english and sql.
SLOW = (
    *("backup", "browser", "citus", "cli", "diagnostics", "docs", "embedded", "english", "examples", "faults"),
    *("injection", "javascript/test_network", "pgbouncer", "secrecy", "sql", "tls"),
    *("redis/test_cluster", "redis/test_sentinel", "redis/test_sharded"),
    *("history/test_crashes", "history/test_import", "migrations", "performance", "versions"),
    *("services/feed", "services/test_accounts", "services/test_presence", "services/test_rate_limits"),
    *(
        "services/test_cache_faults",
        "services/test_cache_races",
        "services/test_sessions",
        "services/test_realtime",
    ),
    *("services/test_changes", "test_on_connection", "test_transactions"),
    *("services/test_typing_indicators", "postgres/test_connections", "postgres/test_executor"),
    *("postgres/test_pool", "postgres/test_reconnector", "postgres/test_transaction"),
    *("repositories/messages/test_pages", "repositories/messages/test_send_many"),
    *("repositories/messages/test_writer", "repositories/test_read_receipts", "repositories/test_room_changes"),
    "web/",
    *(
        "test_background_tasks",
        "test_databases",
        "test_deletions",
        "test_permissions",
        "test_pytest_hubbub",
        "test_readme",
        "test_testing",
    ),
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even read the slow files in `make test-fast`: all processes of the run read all files."""
    return True if config.option.markexpr == FAST and _is_of(collection_path, SLOW) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _is_of(item.path, SLOW):
            item.add_marker(pytest.mark.slow)


def _is_of(path: Path, beginnings: tuple[str, ...]) -> bool:
    return path.relative_to(Path(__file__).parent).as_posix().startswith(beginnings)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: kills, freezes or starts a server, or waits in real time")
    config.addinivalue_line("markers", "one_server(reason): is skipped where rooms are distributed")
    config.addinivalue_line("markers", "counts_pages: gets a database without the dead rows of other tests")
    if config.option.markexpr == FAST:
        hypothesis_settings.load_profile("fast")
    config.addinivalue_line("markers", "session(reason): goes past a pooler, as it is about sessions of its own")


@pytest.fixture(scope="session")
def servers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def hubbub_servers(servers_folder: Path) -> Iterator[Settings]:
    """The servers of the plugin, in a known folder: the superuser's password is there."""
    with serving(servers_folder) as settings:
        # The defaults of 2 s and 5 s are short for a machine that is busy with the other processes of the suite.
        postgres = replace(settings.postgres, connect_timeout_seconds=30)
        redis = replace(settings.redis, connect_timeout_seconds=30, deadline_seconds=30)
        yield replace(settings, postgres=postgres, redis=redis)


@pytest.fixture(scope="session")
def administrator(hubbub_servers: Settings, servers_folder: Path) -> PostgresSettings:
    """A superuser of the servers."""
    return superuser(hubbub_servers.postgres, servers_folder)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def servers(
    hubbub_servers: Settings, administrator: PostgresSettings, leak_search: LeakSearch
) -> AsyncIterator[Settings]:
    """PostgreSQL and Valkey that end with the run. Without fsync: a test that needs it starts its own.

    The settings are those of the owner of the database, and of the one Redis user who may do everything.
    """
    await execute(administrator, *role(), *cheap_login(hubbub_servers.postgres))
    await make_redis_users(hubbub_servers.redis)
    async with leak_search.recording(hubbub_servers.redis, administrator):
        yield hubbub_servers


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def template(servers: Settings, hubbub_template: Template, administrator: PostgresSettings) -> str:
    """The name of the migrated database that is copied, and the SQL that copies it."""
    await migrations.grant(replace(administrator, database=hubbub_template.settings.database), ROLE)
    return hubbub_template.as_sql


@pytest.fixture(scope="session")
def databases(servers: Settings, administrator: PostgresSettings, template: str) -> Databases:
    """The migrated databases of this process of the run."""
    return Databases(servers.postgres, administrator, template)


@pytest.fixture
async def empty_database(servers: Settings, administrator: PostgresSettings) -> AsyncIterator[PostgresSettings]:
    """A database of this test's own, without a table."""
    name = f"test_{uuid4().hex}"
    await execute(servers.postgres, f"CREATE DATABASE {name}")
    yield replace(servers.postgres, database=name)
    await execute(administrator, f"DROP DATABASE {name} WITH (FORCE)")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cluster() -> AsyncIterator[Cluster]:
    """A coordinator and two workers of Citus, with a role for the application."""
    if citus.INSTALLATION is None:
        pytest.skip(citus.LACKING)
    async with citus.running() as cluster:
        await execute(cluster.superuser(cluster.coordinator, citus.DATABASE), *role())
        yield cluster


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def distributed_database(cluster: Cluster) -> PostgresSettings:
    """The one database of a run with ON_CITUS, whose tables each test empties: to distribute one takes seconds."""
    database = await cluster.make_database("suite")
    await migrations.up(database)
    await migrations.grant(replace(database, user="postgres"), ROLE)
    await distribution.distribute(database)
    return database


CHECKS = """
    SELECT conrelid::regclass::text, conname::text
    FROM pg_constraint
    WHERE contype = 'c'
        AND connamespace = 'public'::regnamespace
"""


@asynccontextmanager
async def _emptied(database: PostgresSettings) -> AsyncIterator[PostgresSettings]:
    """Without rows before a test, and afterwards without the constraints that it has added."""
    await execute(database, *EMPTY_ON_CITUS)
    connection = await connect(database)
    try:
        own = {tuple(row) for row in await connection.fetch(CHECKS)}
        yield database
        for table, name in {tuple(row) for row in await connection.fetch(CHECKS)} - own:
            await connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
    finally:
        await connection.close()


@pytest.fixture
def database_on_citus(request: pytest.FixtureRequest) -> PostgresSettings | None:
    """The database of a run with ON_CITUS. Tests of Citus have databases of their own."""
    if not ON_CITUS or request.path.parent.name == "citus":
        return None
    for marker in request.node.iter_markers("one_server"):
        pytest.skip(*marker.args)
    database: PostgresSettings = request.getfixturevalue("distributed_database")
    return database


@pytest.fixture
async def postgres_settings(
    databases: Databases, database_on_citus: PostgresSettings | None, request: pytest.FixtureRequest
) -> AsyncIterator[PostgresSettings]:
    """A database of this test's own, migrated, for its owner."""
    if database_on_citus is not None:
        async with _emptied(database_on_citus) as database:
            yield database
        return
    counts_pages = request.node.get_closest_marker("counts_pages") is not None
    database, state = await databases.take(without_dead_rows=counts_pages)
    yield database
    await databases.give_back(database, state)


@pytest.fixture(scope="session")
def pgbouncer(servers: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PgBouncer | None]:
    """The one in front of all databases, if the run goes through one."""
    with chosen(tmp_path_factory.mktemp("pgbouncer"), as_role(servers.postgres)) as pgbouncer:
        yield pgbouncer


@pytest.fixture
def settings(
    servers: Settings,
    postgres_settings: PostgresSettings,
    pgbouncer: PgBouncer | None,
    request: pytest.FixtureRequest,
) -> Settings:
    """Both servers for the application, which has no right that it does not need."""
    application = through(pgbouncer, as_role(postgres_settings), request.node)
    return Settings(postgres=application, redis=as_redis_user(servers.redis))


@pytest.fixture
async def pool(settings: Settings, database_on_citus: PostgresSettings | None) -> AsyncIterator[Pool]:
    pool = Pool(settings.postgres)
    if database_on_citus is not None:
        pool.distribute()
    await pool.open()
    yield pool
    await pool.close()


@pytest.fixture
async def hub(settings: Settings) -> AsyncIterator[Hub]:
    async with Hub(settings) as hub:
        yield hub


@pytest.fixture
def marks_are_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads wait for the read marks of authors until their deadline: on a busy machine, a second is too short."""
    monkeypatch.setattr(author_marks, "MAX_WAIT_SECONDS", HANGS_AFTER_SECONDS)
    monkeypatch.setattr(author_marks, "MARK_WAIT_DIVISOR", 1)


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
