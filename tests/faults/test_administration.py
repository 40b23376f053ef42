"""What administrators do to servers under load: callers hear a typed error at most, and go on as before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from faults.chat import Chat
from faults.figures import Figures
from faults.fragile import FragileServers
from faults.load import Fault, under_load
from faults.visitors import visitors
from hubbub.postgres import connect

EVERY_SECONDS = 0.25
PAUSE_SECONDS = 0.01

TERMINATE = """
    SELECT count(pg_terminate_backend(pid))
    FROM pg_stat_activity
    WHERE datname = current_database()
        AND pid <> pg_backend_pid()
"""

# Of each table the columns that are made wider, and how wide they are. A statement that was prepared before has
# another result then, and PostgreSQL refuses to run it.
WIDENED = {
    "users": {"username": "varchar(50)", "email": "varchar(255)", "avatar_url": "varchar(500)"},
    "rooms": {"name": "varchar(100)"},
    "room_users": {"role": "varchar(20)"},
    "messages": {"message_type": "varchar(20)"},
    "room_events": {"kind": "varchar(20)"},
}
STALE = "the schema was changed under the statement"


@asynccontextmanager
async def postgresql_restarted(chat: Chat, fragile: FragileServers) -> AsyncIterator[None]:
    await fragile.shut_down("postgresql")
    yield
    await fragile.start()


@asynccontextmanager
async def redis_restarted(chat: Chat, fragile: FragileServers) -> AsyncIterator[None]:
    await fragile.shut_down("valkey")
    yield
    await fragile.start()


@asynccontextmanager
async def backends_terminated(chat: Chat, fragile: FragileServers) -> AsyncIterator[None]:
    """All of them, over and over."""
    connection = await connect(fragile.administrator(chat.settings.postgres))
    ended = 0

    async def terminate() -> None:
        nonlocal ended
        while True:
            ended += await connection.fetchval(TERMINATE)
            await asyncio.sleep(EVERY_SECONDS)

    terminating = asyncio.create_task(terminate())
    yield
    terminating.cancel()
    await asyncio.wait([terminating])
    await connection.close()
    assert ended


def changes() -> Iterator[str]:
    """Columns come, become wider, narrower again, and go, in every table."""
    for table, columns in WIDENED.items():
        yield f"ALTER TABLE {table} ADD COLUMN of_the_future jsonb NOT NULL DEFAULT '{{}}'"
        for column, kind in columns.items():
            yield f"ALTER TABLE {table} ALTER COLUMN {column} TYPE text"
            yield f"ALTER TABLE {table} ALTER COLUMN {column} TYPE {kind}"
        yield f"ALTER TABLE {table} DROP COLUMN of_the_future"


@asynccontextmanager
async def tables_changed(chat: Chat, fragile: FragileServers) -> AsyncIterator[None]:
    """Over and over; at the end all is as it was."""
    connection = await connect(chat.settings.postgres)
    is_enough = asyncio.Event()

    async def change() -> None:
        while not is_enough.is_set():
            for command in changes():
                await connection.execute(command)
                await asyncio.sleep(PAUSE_SECONDS)

    changing = asyncio.create_task(change())
    yield
    is_enough.set()
    await changing
    await connection.close()


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=pytest.mark.guarantee("G13", words))
        for fault, words in {
            postgresql_restarted: "PostgreSQL shut down and started",
            redis_restarted: "Redis shut down and started",
            backends_terminated: "all backends terminated, four times a second",
        }.items()
    ],
    ids=lambda fault: fault.__name__,
)
async def test_what_an_administrator_ends_comes_back_without_a_restart_of_the_process(
    chat: Chat, fragile: FragileServers, fault: Fault, figures: Figures
) -> None:
    async with visitors(chat) as guests:
        await under_load(chat, fragile, fault, chat.settings)
        await guests.are_served()
    found = await chat.violations()
    figures.found(guests.figure(chat, found))
    assert not found


@pytest.mark.guarantee("G13", "columns added and widened in every table")
async def test_nobody_notices_that_tables_are_changed(
    chat: Chat, fragile: FragileServers, figures: Figures
) -> None:
    async with visitors(chat) as guests:
        await under_load(chat, fragile, tables_changed, chat.settings)
    found = await chat.violations()
    stale = guests.refused.pop(("transaction", STALE), 0)
    figures.found(
        f"{len(found)} violations, {chat.errors + guests.refused.total()} errors in "
        f"{chat.count + guests.answered.total():,} calls; {stale} of "
        f"{stale + guests.answered['transaction']} transaction blocks to be run again"
    )
    assert not found
    assert chat.errors == 0
    assert not guests.refused
