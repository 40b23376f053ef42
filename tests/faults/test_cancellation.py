"""Callers are cancelled at random awaits. They leave nothing behind and do not affect other callers."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from faults import checker
from faults.calls import Call, calls_in, world_in
from faults.chat import Chat
from faults.checker import stored_in
from faults.figures import SCALE, Figures
from hubbub import Hub, HubbubError, Options, Settings
from hubbub.passwords import MIN_COST, Passwords
from hubbub.postgres import connect
from hubbub.redis import Connection
from hubbub.redis.replies import as_bytes_list
from injection.operations import World
from waiting import HANGS_AFTER_SECONDS, until, until_it_answers

POOL_SIZE = 5
CALLERS = 20
# Some calls delete rows that others need, so each caller creates a new world after this many calls.
CALLS_IN_A_WORLD = 10
# The default is five seconds, and this test would wait for it.
GRACE_SECONDS = 0.2

LEFT = """
    SELECT (
        SELECT count(*)
        FROM pg_stat_activity
        WHERE datname = current_database()
            AND pid <> pg_backend_pid()
            AND state <> 'idle'
    ) + (
        SELECT count(*)
        FROM pg_locks
        WHERE database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND pid <> pg_backend_pid()
    )
"""
# Without autovacuum workers.
CONNECTIONS = """
    SELECT count(*)
    FROM pg_stat_activity
    WHERE backend_type = 'client backend'
        AND datname = current_database()
        AND pid <> pg_backend_pid()
"""


async def ask(settings: Settings, question: str) -> int:
    connection = await connect(settings.postgres)
    try:
        return int(await connection.fetchval(question))
    finally:
        await connection.close()


async def keys_left(settings: Settings) -> list[str]:
    """Keys without a TTL, except sessions, which the calls create on purpose."""
    connection = Connection(settings.redis)
    await connection.start()
    try:
        keys = [key.decode() for key in as_bytes_list(await connection.execute("KEYS", "*"))]
        return [
            key for key in keys if await connection.execute("TTL", key) == -1 and not key.startswith("session:")
        ]
    finally:
        await connection.close()


def sockets() -> set[str]:
    """The number of open sockets of this process."""
    links = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of the folder itself
            links.add(str(descriptor.readlink()))
    return {link for link in links if link.startswith("socket:")}


def kinds_in(world: World, folder: Path) -> dict[str, Call]:
    """Every public call, and two calls that do not end by themselves."""
    hub, user_id, room_id = world.hub, world.ada.id, world.room.id

    async def follow_while_online() -> None:
        async with hub.presence.online(user_id), hub.follow(user_id, typing=True, presence=True) as feed:
            async for _ in feed:
                pass

    async def send_in_transactions() -> None:
        while True:
            async with hub.transaction() as tx:
                await tx.messages.send(room_id, user_id, "first")
                async with tx.savepoint() as part:
                    await part.messages.send(room_id, user_id, "second")

    return calls_in(world, folder) | {"following": follow_while_online, "talking": send_in_transactions}


async def cancelled_somewhere(call: Call) -> bool:
    """Cancel the call at a random await. Returns whether it was cancelled before it ended."""
    task = asyncio.ensure_future(call())
    if random.random() < 0.5:
        for _ in range(random.randrange(40)):
            await asyncio.sleep(0)
    else:
        await asyncio.sleep(random.uniform(0, 0.02))
    task.cancel()
    with suppress(asyncio.CancelledError, HubbubError):  # another call may have deleted its rows
        await task
    return task.cancelled()


@pytest.mark.session("counts the sessions of the server, which a pooler keeps")
@pytest.mark.guarantee("G10", "calls of every kind cancelled at random moments")
async def test_cancelled_calls_leave_no_task_connection_lock_or_lease(
    chat: Chat, tmp_path: Path, figures: Figures
) -> None:
    tasks, files = asyncio.all_tasks(), sockets()
    settings = replace(chat.settings, postgres=replace(chat.settings.postgres, pool_size=POOL_SIZE))
    options = Options(presence_grace_seconds=GRACE_SECONDS)
    kinds: set[str] = set()
    user_ids = list(chat.user_ids)
    async with Hub(settings, options=options, passwords=Passwords(cost=MIN_COST)) as hub:
        own = asyncio.all_tasks()
        cancelled = 0

        async def caller() -> None:
            nonlocal cancelled
            while cancelled < SCALE.cancelled:
                world = await world_in(hub)
                user_ids.extend([world.ada.id, world.bob.id])
                calls = kinds_in(world, tmp_path)
                for name in random.sample(sorted(calls), CALLS_IN_A_WORLD):
                    if await cancelled_somewhere(calls[name]):
                        cancelled += 1
                        kinds.add(name)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))

        await until(lambda: not asyncio.all_tasks() - own)

        async def nothing_is_left() -> bool:
            return await ask(chat.settings, LEFT) == 0

        async def all_are_offline() -> bool:
            return not any((await hub.presence.is_online(user_ids)).values())

        await until_it_answers(nothing_is_left)
        await until_it_answers(all_are_offline)
        # All connections of the pool can be held at the same time, so no cancelled call keeps one.
        async with asyncio.timeout(HANGS_AFTER_SECONDS), AsyncExitStack() as stack:
            for _ in range(POOL_SIZE):
                await (await stack.enter_async_context(hub.transaction())).users.get(chat.user_ids[0])
        at_most = await ask(chat.settings, CONNECTIONS)
    leaked_tasks = len(asyncio.all_tasks() - tasks)
    leaked_sockets = len(sockets() - files)
    leaked_connections = await ask(chat.settings, CONNECTIONS)
    keys = await keys_left(chat.settings)
    figures.found(
        f"{cancelled:,} calls of {len(kinds)} kinds: {leaked_tasks} tasks, {leaked_connections} connections, "
        f"{leaked_sockets} sockets, 0 locks, 0 leases leaked, {POOL_SIZE} of {POOL_SIZE} of the pool free"
    )
    assert at_most <= POOL_SIZE
    assert leaked_tasks == leaked_connections == leaked_sockets == 0
    assert keys == []
    assert not list(checker.holes(await stored_in(chat.settings.postgres)))
