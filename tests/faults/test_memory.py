"""A follower reads nothing while a flood comes. What waits for it is bounded, and later it is given all of it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from faults.chat import Chat
from faults.figures import Figures
from faults.scale import SCALE
from faults.worker import Worker
from hubbub import Hub
from waiting import until

CONTENT = "x" * 1_000
AT_MOST_MEGABYTES = 8


def megabytes(worker: Worker) -> float:
    """What the process has in memory now."""
    pages = int(Path(f"/proc/{worker.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def flood(chat: Chat, messages: int) -> None:
    """By a crowd in this process, which has nothing to write down: the database says what was sent."""
    numbers = iter(range(messages))
    async with Hub(chat.settings) as hub:

        async def send() -> None:
            for number in numbers:
                await hub.messages.send(chat.room_ids[number % 3], chat.user_ids[1], f"{number} {CONTENT}")

        await asyncio.gather(*(send() for _ in range(200)))


@pytest.mark.timeout(240)
@pytest.mark.guarantee("G8", f"{SCALE.stalled:,} messages of 1 kB while a follower reads nothing")
async def test_a_stalled_follower_takes_bounded_memory_and_misses_nothing(chat: Chat, figures: Figures) -> None:
    # Both are live when they stall: they have read what is there, that all have joined.
    joins = len(chat.room_ids) * len(chat.user_ids)
    bounded = await chat.follower(stalls_after=joins, buffer=100)
    # What the figure is worth: one that may keep everything in memory does.
    boundless = await chat.follower(stalls_after=joins, buffer=100_000)
    await chat.converged()
    before, before_boundless = megabytes(bounded), megabytes(boundless)
    await flood(chat, SCALE.stalled)
    await until(lambda: megabytes(boundless) - before_boundless > AT_MOST_MEGABYTES)
    stalled = megabytes(bounded) - before
    boundless.tell()
    bounded.tell()
    await chat.converged()
    reading = megabytes(bounded) - before
    found = await chat.violations()
    figures.found(
        f"{stalled:.1f} MB more while it stalled, {reading:.1f} MB after it had read all "
        f"({megabytes(boundless) - before_boundless:.0f} MB without a bound), {len(found)} violations"
    )
    assert stalled < AT_MOST_MEGABYTES
    assert reading < AT_MOST_MEGABYTES
    assert not found
