"""The requests of an idle process with the options of an application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from hubbub import Hub, Settings
from performance.conftest import Statements, statements
from redis_server import Server
from services.monitored import monitored

__all__ = ["statements"]

pytestmark = pytest.mark.slow

SECONDS = 10


@pytest.fixture
async def hub(own_server: Server, settings: Settings, statements: Statements) -> AsyncIterator[Hub]:
    async with Hub(replace(settings, redis=own_server.settings)) as hub:
        yield hub


async def requests(hub: Hub, statements: Statements) -> tuple[int, int, float]:
    """The numbers of commands and statements that the process sends, and the seconds that they cover."""
    await asyncio.sleep(4)  # until the scripts, which are first sent in full, are loaded
    clock = asyncio.get_running_loop().time
    begin = clock()
    statements.sent.clear()
    async with monitored(hub.settings.redis, hub._connection) as seen:
        await asyncio.sleep(SECONDS)
    commands = [line for line in seen.splitlines() if line and b" lua] " not in line and b'"ECHO"' not in line]
    assert any(b"EVALSHA" in line for line in commands)
    return len(commands), len(statements.sent), clock() - begin


async def test_idle_process_sends_at_most_one_command_and_one_statement_a_second(
    hub: Hub, statements: Statements
) -> None:
    commands, sent, seconds = await requests(hub, statements)
    assert commands <= seconds + 1
    assert sent <= seconds + 1


async def test_process_with_quiet_followers_compares_heads_and_memberships_once_a_second(
    hub: Hub, statements: Statements
) -> None:
    async with AsyncExitStack() as followers:
        for number in range(20):
            user = await hub.users.create(f"u{number}@example.org", f"u{number}", "!")
            await hub.rooms.create("quiet", created_by=user.id)
            await followers.enter_async_context(hub.follow(user.id, typing=True, presence=True, read_marks=True))
        commands, sent, seconds = await requests(hub, statements)
    assert commands <= seconds + 1
    assert sent <= 2 * (seconds + 1)


async def test_user_who_comes_wakes_an_idle_process(hub: Hub) -> None:
    await asyncio.sleep(4)
    ada = await hub.users.create("ada@example.org", "ada", "!")
    async with hub.presence.online(ada.id):
        assert (await hub.presence.is_online([ada.id]))[ada.id]
