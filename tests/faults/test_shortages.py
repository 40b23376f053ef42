"""A server has no free connection or no disk space. Callers get that error, lose nothing, and continue later."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from errno import ENOSPC
from io import FileIO
from pathlib import Path

import asyncpg
import pytest

from faults import chat as chats
from faults.callers import calling
from faults.chat import Chat
from faults.figures import Figures
from faults.fragile import FragileServers
from faults.history import Failed
from hubbub import Hub, Settings, Unavailable, migrations
from hubbub.postgres import connect
from waiting import until, until_it_answers

# A new cluster takes 55 MB of the disk.
MEGABYTES = 128
NO_CONNECTION = "the server has no connection free"
NO_DISK = "the server is out of disk space or memory"

TERMINATE = """
    SELECT pg_terminate_backend(pid)
    FROM pg_stat_activity
    WHERE backend_type = 'client backend'
        AND application_name = 'hubbub'
"""
# Whether the other clients and the administrator have all connections. A connection of the application that is
# still logging in is in no view, and would become free when it is lost.
NONE_IS_LEFT = """
    SELECT count(*) = current_setting('max_connections')::integer
        - current_setting('superuser_reserved_connections')::integer
        - COALESCE(current_setting('reserved_connections', true), '0')::integer
    FROM pg_stat_activity
    WHERE application_name IN ('other', 'administrator')
"""


class OtherClients:
    """Clients that take every connection the server allows without superuser rights."""

    def __init__(self, settings: Settings, stack: AsyncExitStack) -> None:
        others = replace(settings.postgres, connect_timeout_seconds=30)
        self._settings = others
        self._stack = stack

    async def take_all(self) -> None:
        """Take all connections, including those of the application after it was terminated."""
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
        others = OtherClients(chat.settings, stack)
        # The hub keeps its one connection and gets no other.
        async with Hub(chat.settings) as hub, hub.transaction() as tx:

            async def gets_no_other() -> bool:
                await others.take_all()
                try:
                    await hub.users.get(chat.user_ids[0])  # one that was refused a moment ago may be free again
                except Unavailable as error:
                    return error.retryable and NO_CONNECTION in str(error)
                return False

            await until_it_answers(gets_no_other)
            assert await tx.users.get(chat.user_ids[0])

        async def none_is_left() -> bool:
            await administrator.execute(TERMINATE)
            await others.take_all()
            return bool(await administrator.fetchval(NONE_IS_LEFT))

        await until_it_answers(none_is_left)
        short = replace(chat.settings.postgres, deadline_seconds=1)

        async def is_refused() -> bool:
            with pytest.raises(Unavailable) as caught:
                await Hub(replace(chat.settings, postgres=short)).start()
            assert caught.value.retryable
            assert not caught.value.outcome_unknown
            return NO_CONNECTION in str(caught.value)  # a server that is slow to refuse gives another reason

        await until_it_answers(is_refused)
        yield


@pytest.mark.session("takes the connections of the server, of which a pooler keeps some")
@pytest.mark.guarantee("G13", "other clients hold all connections of PostgreSQL")
async def test_callers_without_connection_get_an_error_and_go_on_when_one_is_free(
    chat: Chat, fragile: FragileServers, figures: Figures
) -> None:
    async with calling(chat) as callers:
        await chat.under_load(fragile, no_connection_free)
        await callers.are_answered()
    found = await chat.violations()
    figures.found(callers.figure(chat, found))
    assert callers.refused
    assert not found


PIECE = bytes(65_536)


class SmallDisk:
    """A file system at `folder`, so small that a test can fill it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    @contextmanager
    def full(self) -> Iterator[None]:
        """Fill the disk to the last byte."""
        with self._ballast.open("wb", buffering=0) as ballast:
            _fill(ballast)
        try:
            yield
        finally:
            self._ballast.unlink()


def _fill(file: FileIO) -> None:
    try:
        # A partial write has reached the end of the disk, and the next one raises.
        while file.write(PIECE):
            pass
    except OSError as error:
        if error.errno != ENOSPC:
            raise


@contextmanager
def mounted(folder: Path, *, megabytes: int) -> Iterator[SmallDisk]:
    """A tmpfs at the existing `folder`. Skips the test where mounting is not permitted."""
    options = f"size={megabytes}m,mode=0755"
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mount.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        # Lazily, because a server that did not stop may still have files open on it.
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def small_disk() -> Iterator[SmallDisk]:
    """A disk outside pytest's own folder, which the account of the servers may not enter."""
    with tempfile.TemporaryDirectory(prefix="hubbub-small-") as folder:
        Path(folder).chmod(0o755)
        with mounted(Path(folder), megabytes=MEGABYTES) as disk:
            yield disk


@pytest.fixture
async def cramped(small_disk: SmallDisk) -> AsyncIterator[FragileServers]:
    """Servers with all their files on the small disk."""
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
    """The number of attempts of senders that failed because the disk was full."""
    return sum(
        isinstance(record, Failed) and NO_DISK in record.reason for history in chat.sent for record in history
    )


@pytest.mark.guarantee("G13", "the disk of PostgreSQL full")
async def test_senders_wait_for_space_on_full_disk_and_readers_go_on(
    cramped_chat: Chat, small_disk: SmallDisk, figures: Figures
) -> None:
    chat = cramped_chat
    await chat.follower()
    sender = await chat.sender(1_000_000, seed=1)
    await chat.acknowledged(100)
    async with calling(chat) as callers:
        with small_disk.full():
            await chat.until(lambda: refusals(chat) > 20)
            before = callers.answered["messages.page"]
            await until(lambda: callers.answered["messages.page"] > before)
        await callers.are_answered()
    await chat.acknowledged(100)
    await sender.end()
    await chat.converged()
    found = await chat.violations()
    figures.found(f"{len(found)} violations in {chat.count:,} calls, {refusals(chat):,} tries refused")
    assert not found


@pytest.mark.guarantee("G13", "the disk full in the middle of PostgreSQL's log: it gives up")
async def test_acknowledged_calls_survive_crash_of_postgresql_on_full_disk(
    cramped_chat: Chat, cramped: FragileServers, small_disk: SmallDisk, figures: Figures
) -> None:
    chat = cramped_chat
    await chat.follower()
    sender = await chat.sender(1_000_000, seed=1)
    await chat.acknowledged(100)
    with small_disk.full():
        await use_up_the_log(chat, cramped)
        await chat.until(lambda: chat.errors > 0)
    await cramped.start()  # it may have ended, because a start needs space for the log, too
    await chat.acknowledged(100)
    await sender.end()
    await chat.converged()
    found = await chat.violations()
    figures.found(f"{len(found)} violations in {chat.count:,} calls, {chat.errors:,} tries failed")
    assert not found


async def use_up_the_log(chat: Chat, servers: FragileServers) -> None:
    """Switch to the next segment of PostgreSQL's log until the disk has no space for another, and PostgreSQL ends.

    Its server log cannot report that, because it is on the same disk.
    """
    connection = await connect(servers.administrator(chat.settings.postgres))
    try:
        while True:
            await connection.execute("SELECT pg_switch_wal()")
            await connection.execute("SELECT pg_logical_emit_message(true, 'test', 'hello')")
    except (asyncpg.PostgresConnectionError, OSError):
        connection.terminate()
