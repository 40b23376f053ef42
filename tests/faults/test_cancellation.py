"""Callers are cancelled wherever they happen to be. Nothing of theirs stays behind, and nobody else is harmed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace

import pytest

from faults import checker
from faults.chat import Chat
from faults.figures import Figures
from faults.scale import SCALE
from faults.stored import stored_in
from hubbub import Hub, Invalid, Message, Settings
from hubbub.postgres import connect
from waiting import until, until_it_answers

POOL_SIZE = 5

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
CONNECTIONS = """
    SELECT count(*)
    FROM pg_stat_activity
    WHERE datname = current_database()
        AND pid <> pg_backend_pid()
"""


async def ask(settings: Settings, question: str) -> int:
    connection = await connect(settings.postgres)
    try:
        return int(await connection.fetchval(question))
    finally:
        await connection.close()


def calls_of(hub: Hub, chat: Chat, known: Sequence[Message]) -> list[Callable[[], Awaitable[object]]]:
    """One of each kind, on any of the rooms and messages."""
    room_id, user_id, message = random.choice(chat.room_ids), random.choice(chat.user_ids), random.choice(known)

    async def two_together() -> None:
        async with hub.transaction() as tx:
            await tx.messages.send(room_id, user_id, "first")
            await tx.messages.send(room_id, user_id, "second")

    async def follow() -> None:
        async with hub.follow(user_id, after={room_id: None}) as feed:
            async for _ in feed:
                pass

    return [
        lambda: hub.messages.send(room_id, user_id, "hello"),
        lambda: hub.messages.edit(message.id, f"edited {random.random()}", by=chat.user_ids[0]),
        lambda: hub.messages.page(room_id, limit=50),
        lambda: hub.messages.since(room_id, None),
        lambda: hub.receipts.mark_read(room_id, user_id, up_to=message.seq),
        lambda: hub.users.get(user_id),
        two_together,
        follow,
    ]


async def cancelled_somewhere(call: Callable[[], Awaitable[object]]) -> bool:
    """Whether it was cancelled before it ended."""
    task = asyncio.ensure_future(call())
    if random.random() < 0.5:
        for _ in range(random.randrange(40)):
            await asyncio.sleep(0)
    else:
        await asyncio.sleep(random.uniform(0, 0.02))
    task.cancel()
    with suppress(asyncio.CancelledError, Invalid):  # of an edit: there was no room left for the content
        await task
    return task.cancelled()


@pytest.mark.guarantee("G10", "calls of eight kinds cancelled at random moments")
async def test_cancelled_callers_leave_nothing_behind(chat: Chat, figures: Figures) -> None:
    before = asyncio.all_tasks()
    settings = replace(chat.settings, postgres=replace(chat.settings.postgres, pool_size=POOL_SIZE))
    async with Hub(settings) as hub:
        known = [await hub.messages.send(chat.room_ids[0], chat.user_ids[0], f"message {n}") for n in range(50)]
        own = asyncio.all_tasks()
        cancelled = 0

        async def callers() -> None:
            nonlocal cancelled
            while cancelled < SCALE.cancelled:
                cancelled += await cancelled_somewhere(random.choice(calls_of(hub, chat, known)))

        await asyncio.gather(*(callers() for _ in range(20)))

        await until(lambda: not asyncio.all_tasks() - own)

        async def nothing_is_left() -> bool:
            return await ask(chat.settings, LEFT) == 0

        await until_it_answers(nothing_is_left)
        # Each connection of the pool can be held at the same time: none has been lost to the cancelled.
        async with asyncio.timeout(10), AsyncExitStack() as stack:
            for _ in range(POOL_SIZE):
                await (await stack.enter_async_context(hub.transaction())).users.get(chat.user_ids[0])
        at_most = await ask(chat.settings, CONNECTIONS)
    leaked_tasks = len(asyncio.all_tasks() - before)
    leaked_connections = await ask(chat.settings, CONNECTIONS)
    figures.found(
        f"{cancelled:,} cancelled: {leaked_tasks} tasks, {leaked_connections} connections, 0 locks leaked, "
        f"{POOL_SIZE} of {POOL_SIZE} places in the pool free"
    )
    assert at_most <= POOL_SIZE
    assert leaked_tasks == leaked_connections == 0
    assert not list(checker.holes(await stored_in(chat.settings.postgres)))
