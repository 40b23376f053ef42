"""PostgreSQL is killed under load. After its recovery all acknowledged changes are stored."""

from __future__ import annotations

import pytest

from faults import checker
from faults.chat import Chat
from faults.checker import stored_in
from faults.figures import SCALE, Figures
from faults.fragile import FragileServers
from hubbub.postgres import connect


async def setting(chat: Chat, name: str) -> object:
    connection = await connect(chat.settings.postgres)
    try:
        return await connection.fetchval("SELECT current_setting($1)", name)
    finally:
        await connection.close()


async def execute(chat: Chat, command: str) -> None:
    connection = await connect(chat.settings.postgres)
    try:
        await connection.execute(command)
    finally:
        await connection.close()


@pytest.mark.guarantee("G1", f"kill -9 of PostgreSQL under load, {SCALE.seeds} times")
async def test_acknowledged_calls_survive_kill_9_of_postgresql(
    chat: Chat, fragile: FragileServers, figures: Figures
) -> None:
    assert {await setting(chat, name) for name in ("fsync", "synchronous_commit", "full_page_writes")} == {"on"}
    half = SCALE.messages // 2
    for seed in range(SCALE.seeds):
        senders = [await chat.sender(1_000_000, seed=2 * seed + n, callers=20) for n in range(2)]
        await chat.acknowledged(half)
        fragile.kill("postgresql")
        await fragile.start()
        await chat.acknowledged(half)
        for sender in senders:
            await sender.end()
    lost = list(checker.lost(chat.sent, await stored_in(chat.settings.postgres)))
    figures.found(f"{len(lost)} lost of {chat.count:,} acknowledged calls, {chat.errors:,} tries failed")
    assert chat.errors >= SCALE.seeds
    assert not lost
    assert await chat.violations() == []


async def test_loss_is_found_when_the_server_acknowledges_before_it_writes(
    chat: Chat, fragile: FragileServers
) -> None:
    """The test above can find losses: without synchronous_commit the same load and kill lose messages."""
    database = chat.settings.postgres.database
    await execute(chat, f"ALTER DATABASE {database} SET synchronous_commit = off")
    lost: list[str] = []
    for seed in range(10):  # the last commits may happen to be written already
        await chat.sender(1_000_000, seed=seed, callers=20)
        await chat.acknowledged(100)
        fragile.kill("postgresql")
        await chat.senders[-1].kill()
        await fragile.start()
        lost = list(checker.lost(chat.sent, await stored_in(chat.settings.postgres)))
        if lost:
            break
    assert lost
