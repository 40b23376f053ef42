"""A hub behind PgBouncer in transaction mode, with fewer sessions of PostgreSQL than the hub has connections."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace

import pytest

from faults import checker
from faults.checker import stored_in
from hubbub import Hub, Invalid, MessageSent, PostgresSettings, Room, Settings, User
from hubbub.postgres import Executor, Pool, Statement, connect
from pgbouncer.conftest import Start
from pgbouncer.server import PgBouncer
from rights import as_redis_user
from waiting import until_it_answers

SESSIONS = 3
CALLERS = 30

SESSION = Statement("test.session", int, "SELECT pg_backend_pid()")
# asyncpg turns `jit` off and on again when it reads the types of arrays, possibly in two sessions.
LEFT_BEHIND = Statement(
    "test.left_behind",
    lambda name, value: f"{name} = {value}",
    """
    SELECT name, setting
    FROM pg_settings
    WHERE source = 'session'
        AND name NOT IN ('application_name', 'client_encoding', 'standard_conforming_strings', 'jit')
    UNION ALL
    SELECT 'prepared', name
    FROM pg_prepared_statements
    UNION ALL
    SELECT locktype, mode
    FROM pg_locks
    WHERE pid = pg_backend_pid()
        AND locktype = 'advisory'
    UNION ALL
    SELECT 'temporary table', relname
    FROM pg_class
    WHERE relpersistence = 't'
    """,
)
NOT_AT_REST = """
    SELECT count(*)
    FROM pg_stat_activity
    WHERE datname = current_database()
        AND pid <> pg_backend_pid()
        AND backend_type = 'client backend'
        AND (state <> 'idle' OR EXISTS (SELECT FROM pg_locks WHERE pg_locks.pid = pg_stat_activity.pid))
"""


@pytest.fixture
def pooler(started: Start) -> PgBouncer:
    return started(f"default_pool_size = {SESSIONS}")


@pytest.fixture
def pooled(servers: Settings, application: PostgresSettings, pooler: PgBouncer) -> Settings:
    return Settings(postgres=pooler.in_front_of(application), redis=as_redis_user(servers.redis))


@pytest.fixture
async def hub(pooled: Settings) -> AsyncIterator[Hub]:
    async with Hub(pooled) as hub:
        yield hub


async def in_every_session(settings: PostgresSettings, look: Callable[[Executor], Awaitable[None]]) -> set[int]:
    """Call `look` in every session of the pooler at the same time. Returns their process ids."""
    pool = Pool(settings)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(pool.close)
        transactions = [await stack.enter_async_context(pool.transaction()) for _ in range(SESSIONS)]
        for transaction in transactions:
            await look(transaction)
        return {pid for transaction in transactions for pid in await transaction.fetch_all(SESSION)}


async def talk(hub: Hub, room: Room, ada: User, n: int) -> None:
    """Reads and writes of a client, alone and in a transaction."""
    message = await hub.messages.send(room.id, ada.id, f"message {n}")
    await hub.messages.edit(message.id, f"edited {n}", by=ada.id)
    async with hub.transaction() as tx:
        await tx.messages.send(room.id, ada.id, f"first {n}")
        await tx.messages.send(room.id, ada.id, f"second {n}")
    assert (await hub.users.get(ada.id)).username == "ada"
    page = await hub.messages.page(room.id, limit=5)
    await hub.receipts.mark_read(room.id, ada.id, up_to=page.items[-1].seq)
    assert (await hub.rooms.list_for(ada.id)).items


async def test_many_callers_share_few_sessions_and_leave_nothing_in_them(
    hub: Hub, pooled: Settings, application: PostgresSettings, room: Room, ada: User
) -> None:
    await asyncio.gather(*(talk(hub, room, ada, n) for n in range(CALLERS)))
    assert not list(checker.holes(await stored_in(application)))
    found: list[str] = []

    async def look(executor: Executor) -> None:
        found.extend(await executor.fetch_all(LEFT_BEHIND))

    assert len(await in_every_session(pooled.postgres, look)) == SESSIONS
    assert set(found) <= {"TimeZone = UTC"}  # PgBouncer sets the time zone of each client


async def test_limits_of_the_role_apply(pooled: Settings) -> None:
    limits = Statement("test.limits", str, "SELECT current_setting('statement_timeout')")

    async def look(executor: Executor) -> None:
        assert await executor.fetch_all(limits) == ["30s"]

    await in_every_session(pooled.postgres, look)


async def test_cancelled_callers_leave_every_session_idle(
    hub: Hub, application: PostgresSettings, room: Room, ada: User
) -> None:
    async def cancelled_somewhere(n: int) -> None:
        task = asyncio.create_task(talk(hub, room, ada, n))
        await asyncio.sleep(random.uniform(0, 0.05))
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    for start in range(0, 300, CALLERS):
        await asyncio.gather(*(cancelled_somewhere(n) for n in range(start, start + CALLERS)))
    watch = await connect(application)

    async def all_are_at_rest() -> bool:
        return bool(await watch.fetchval(NOT_AT_REST) == 0)

    await until_it_answers(all_are_at_rest)
    await watch.close()
    await asyncio.gather(*(talk(hub, room, ada, n) for n in range(CALLERS)))


async def test_hub_and_followers_survive_a_restart_of_the_pooler(
    pooled: Settings, pooler: PgBouncer, hub: Hub, room: Room, ada: User
) -> None:
    async with hub.follow(ada.id, after={room.id: None}) as feed:
        pooler.stop()
        pooler.start()
        message = await hub.messages.send(room.id, ada.id, "hello")
        async with asyncio.timeout(30):
            async for event in feed:
                if isinstance(event, MessageSent) and event.message.id == message.id:
                    break


async def test_refused_value_returns_its_session_to_the_pooler(
    pooler: PgBouncer, application: PostgresSettings
) -> None:
    """There is one refused value per session. If these kept their sessions, no other caller would get one."""
    pools = [Pool(replace(pooler.in_front_of(application), deadline_seconds=20)) for _ in range(SESSIONS + 1)]
    echo = Statement("test.echo", int, "SELECT $1::int")
    for pool in pools[1:]:
        with pytest.raises(Invalid):
            await pool.fetch_all(echo, "one")
    assert await pools[0].fetch_all(echo, 1) == [1]
    for pool in pools:
        await pool.close()
