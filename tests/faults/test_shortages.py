"""A server has no connection free, or no disk. Callers are told so, nothing is lost, and it passes."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from faults import chat as chats
from faults.chat import Chat
from faults.figures import Figures
from faults.fragile import FragileServers
from faults.history import Failed
from faults.load import under_load
from faults.small_disk import SmallDisk, mounted
from faults.visitors import visitors
from hubbub import Hub, Settings, Unavailable, migrations
from hubbub.postgres import connect
from waiting import until, until_it_answers

# A new cluster takes 55 MB of it.
MEGABYTES = 128
NO_CONNECTION = "the server has no connection free"
NO_DISK = "the server is out of disk space or memory"

TERMINATE = """
    SELECT pg_terminate_backend(pid)
    FROM pg_stat_activity
    WHERE backend_type = 'client backend'
        AND application_name = 'hubbub'
"""
# Whether the others and the administrator have all that there are. A connection of the application that is still
# logging in stands in no view, and would be free when it is lost.
NONE_IS_LEFT = """
    SELECT count(*) = current_setting('max_connections')::integer
        - current_setting('superuser_reserved_connections')::integer
        - COALESCE(current_setting('reserved_connections', true), '0')::integer
    FROM pg_stat_activity
    WHERE application_name IN ('other', 'administrator')
"""


class Crowd:
    """Other clients, who take every connection that the server gives to those who are not superusers."""

    def __init__(self, settings: Settings, stack: AsyncExitStack) -> None:
        others = replace(settings.postgres, connect_timeout_seconds=30)
        self._settings = others
        self._stack = stack

    async def take_all(self) -> None:
        """Also those that the application has: it is thrown out, and comes too late."""
        while await self._take_one():
            pass

    async def _take_one(self) -> bool:
        try:
            connection = await connect(self._settings, server_settings={"application_name": "other"})
        except Unavailable:
            return False
        self._stack.push_async_callback(connection.close)
        return True


@asynccontextmanager
async def no_connection_free(chat: Chat, fragile: FragileServers) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        administrator = await connect(
            fragile.administrator(chat.settings.postgres), server_settings={"application_name": "administrator"}
        )
        stack.push_async_callback(administrator.close)
        crowd = Crowd(chat.settings, stack)
        # What the hub has it keeps, and it cannot grow.
        async with Hub(chat.settings) as hub, hub.transaction() as tx:
            await crowd.take_all()
            with pytest.raises(Unavailable, match=NO_CONNECTION) as caught:
                await hub.users.get(chat.user_ids[0])
            assert caught.value.retryable
            assert await tx.users.get(chat.user_ids[0])

        async def nobody_is_left() -> bool:
            await administrator.execute(TERMINATE)
            await crowd.take_all()
            return bool(await administrator.fetchval(NONE_IS_LEFT))

        await until_it_answers(nobody_is_left)
        impatient = replace(chat.settings.postgres, deadline_seconds=1)
        with pytest.raises(Unavailable, match=NO_CONNECTION) as caught:
            await Hub(replace(chat.settings, postgres=impatient)).start()
        assert caught.value.retryable
        assert not caught.value.outcome_unknown
        yield


@pytest.mark.session("takes the connections of the server, of which a pooler keeps some")
@pytest.mark.guarantee("G13", "other clients hold all connections of PostgreSQL")
async def test_who_gets_no_connection_is_told_and_goes_on_when_there_are_some(
    chat: Chat, fragile: FragileServers, figures: Figures
) -> None:
    async with visitors(chat) as guests:
        await under_load(chat, fragile, no_connection_free, chat.settings)
        await guests.are_served()
    found = await chat.violations()
    figures.found(guests.figure(chat, found))
    assert guests.refused
    assert not found


@pytest.fixture
def small_disk() -> Iterator[SmallDisk]:
    """Not below pytest's own folder, through which the account of the servers may not pass."""
    with tempfile.TemporaryDirectory(prefix="hubbub-small-") as folder:
        Path(folder).chmod(0o755)
        with mounted(Path(folder), megabytes=MEGABYTES) as disk:
            yield disk


@pytest.fixture
async def cramped(small_disk: SmallDisk) -> AsyncIterator[FragileServers]:
    """Servers whose files are all on the small disk."""
    servers = FragileServers(small_disk.folder / "servers")
    yield servers
    await servers.stop()


@pytest.fixture
async def cramped_chat(cramped: FragileServers, tmp_path: Path) -> AsyncIterator[Chat]:
    settings = await cramped.start()
    await migrations.up(settings.postgres)
    async with chats.opened(settings, tmp_path, rooms=3) as chat:
        yield chat


def refusals(chat: Chat) -> int:
    """How often a sender was told that there is no disk."""
    return sum(
        isinstance(record, Failed) and NO_DISK in record.reason for history in chat.sent for record in history
    )


@pytest.mark.guarantee("G13", "the disk of PostgreSQL full")
async def test_senders_wait_for_room_on_a_full_disk_and_readers_go_on(
    cramped_chat: Chat, small_disk: SmallDisk, figures: Figures
) -> None:
    chat = cramped_chat
    await chat.follower()
    sender = await chat.sender(1_000_000, seed=1)
    await chat.acknowledged(100)
    async with visitors(chat) as guests:
        with small_disk.full():
            await chat.until(lambda: refusals(chat) > 20)
            before = guests.answered["messages.page"]
            await until(lambda: guests.answered["messages.page"] > before)
        await guests.are_served()
    await chat.acknowledged(100)
    await sender.end()
    await chat.converged()
    found = await chat.violations()
    figures.found(f"{len(found)} violations in {chat.count:,} calls, {refusals(chat):,} tries refused")
    assert not found


@pytest.mark.guarantee("G13", "the disk full in the middle of PostgreSQL's log: it gives up")
async def test_a_server_that_gave_up_for_want_of_disk_comes_back_with_what_was_acknowledged(
    cramped_chat: Chat, cramped: FragileServers, small_disk: SmallDisk, figures: Figures
) -> None:
    chat = cramped_chat
    await chat.follower()
    sender = await chat.sender(1_000_000, seed=1)
    await chat.acknowledged(100)
    with small_disk.full():
        await use_up_the_log(chat, cramped)
        await chat.until(lambda: chat.errors > 0)
    await cramped.start()  # it may have given up for good: it needs room for the log to start, too
    await chat.acknowledged(100)
    await sender.end()
    await chat.converged()
    found = await chat.violations()
    figures.found(f"{len(found)} violations in {chat.count:,} calls, {chat.errors:,} tries failed")
    assert not found


async def use_up_the_log(chat: Chat, servers: FragileServers) -> None:
    """Leave one segment of the log after the other, until there is no room for the next: PostgreSQL ends then.

    It cannot say so in the file of what it says, which is on the same disk.
    """
    connection = await connect(servers.administrator(chat.settings.postgres))
    try:
        while True:
            await connection.execute("SELECT pg_switch_wal()")
            await connection.execute("SELECT pg_logical_emit_message(true, 'test', 'hello')")
    except (asyncpg.PostgresConnectionError, OSError):
        connection.terminate()
