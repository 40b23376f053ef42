"""Administrators act on servers under load. Callers get at most a typed error, and continue afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from faults.callers import calling
from faults.chat import Chat, Fault
from faults.figures import Figures
from faults.fragile import FragileServers
from hubbub.migrations.revisions import steps
from hubbub.postgres import connect
from waiting import until

EVERY_SECONDS = 0.25
PAUSE_SECONDS = 0.01

TERMINATE = """
    SELECT count(pg_terminate_backend(pid))
    FROM pg_stat_activity
    WHERE datname = current_database()
        AND pid <> pg_backend_pid()
"""

# The columns of each table that are widened, and their types. They change the result of prepared statements, which
# PostgreSQL then refuses to run.
WIDENED = {
    "users": {"username": "varchar(50)", "email": "varchar(255)", "avatar_url": "varchar(500)"},
    "rooms": {"name": "varchar(100)"},
    "room_users": {"role": "varchar(20)"},
    "messages": {"message_type": "varchar(20)"},
    "room_events": {"kind": "varchar(20)"},
}
# PostgreSQL refuses another type for a column that a trigger names, so the administrator recreates the trigger.
[TRIGGER] = [step.sql for step in steps("up", "0019") if " TRIGGER " in step.sql]
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
    """Terminate all backends repeatedly."""
    connection = await connect(fragile.administrator(chat.settings.postgres))
    ended = 0

    async def terminate() -> None:
        nonlocal ended
        while True:
            ended += await connection.fetchval(TERMINATE)
            await asyncio.sleep(EVERY_SECONDS)

    terminating = asyncio.create_task(terminate())
    await until(lambda: ended > 0)
    yield
    terminating.cancel()
    await asyncio.wait([terminating])
    await connection.close()


def changes() -> Iterator[str]:
    """Commands that add, widen, narrow and drop columns of every table."""
    for table, columns in WIDENED.items():
        yield f"ALTER TABLE {table} ADD COLUMN of_the_future jsonb NOT NULL DEFAULT '{{}}'"
        for column in columns:
            for kind in ("text", columns[column]):
                change = f"ALTER TABLE {table} ALTER COLUMN {column} TYPE {kind}"
                yield (
                    change if table != "rooms" else f"DROP TRIGGER hubbub_check_room ON rooms; {change}; {TRIGGER}"
                )
        yield f"ALTER TABLE {table} DROP COLUMN of_the_future"


@asynccontextmanager
async def tables_changed(chat: Chat, fragile: FragileServers) -> AsyncIterator[None]:
    """Change all tables repeatedly. At the end they are as before."""
    connection = await connect(chat.settings.postgres)
    is_over = asyncio.Event()

    async def change() -> None:
        while not is_over.is_set():
            for command in changes():
                await connection.execute(command)
                await asyncio.sleep(PAUSE_SECONDS)

    changing = asyncio.create_task(change())
    yield
    is_over.set()
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
async def test_process_goes_on_after_restart_of_a_server_or_loss_of_its_connections(
    chat: Chat, fragile: FragileServers, fault: Fault, figures: Figures
) -> None:
    async with calling(chat) as callers:
        await chat.under_load(fragile, fault)
        await callers.are_answered()
    found = await chat.violations()
    figures.found(callers.figure(chat, found))
    assert not found


@pytest.mark.guarantee("G13", "columns added and widened in every table")
async def test_calls_go_on_without_error_while_tables_are_changed(
    chat: Chat, fragile: FragileServers, figures: Figures
) -> None:
    async with calling(chat) as callers:
        await chat.under_load(fragile, tables_changed)
    found = await chat.violations()
    stale = callers.refused.pop(("transaction", STALE), 0)
    figures.found(
        f"{len(found)} violations, {chat.errors + callers.refused.total()} errors in "
        f"{chat.count + callers.answered.total():,} calls; {stale} of "
        f"{stale + callers.answered['transaction']} transaction blocks to be run again"
    )
    assert not found
    assert chat.errors == 0
    assert not callers.refused
