"""A follower reads nothing while many messages are sent. Its memory is bounded, and later it receives them all."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from faults.chat import Chat
from faults.figures import SCALE, Figures
from faults.worker import Worker
from hubbub import Hub

CONTENT = "x" * 1_000
AT_MOST_MEGABYTES = 8


def megabytes(worker: Worker) -> float:
    """The resident memory of the process."""
    pages = int(Path(f"/proc/{worker.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def flood(chat: Chat, messages: int) -> None:
    """Send from this process without a history. The database has the messages."""
    numbers = iter(range(messages))
    async with Hub(chat.settings) as hub:

        async def send() -> None:
            for number in numbers:
                await hub.messages.send(chat.room_ids[number % 3], chat.user_ids[1], f"{number} {CONTENT}")

        await asyncio.gather(*(send() for _ in range(200)))


@pytest.mark.guarantee("G8", f"{SCALE.stalled:,} messages of 1 kB while a follower reads nothing")
async def test_stalled_follower_takes_bounded_memory_and_misses_nothing(chat: Chat, figures: Figures) -> None:
    """One buffer is bounded by its number of events. The other has space for all, and is bounded in bytes."""
    # Both are live when they stall, because they have read the whole log, which is only the joins.
    joins = len(chat.room_ids) * len(chat.user_ids)
    stalled = [await chat.follower(stalls_after=joins, buffer=buffer) for buffer in (100, 100_000)]
    await chat.converged()
    before = [megabytes(worker) for worker in stalled]
    await flood(chat, SCALE.stalled)
    witness = await chat.follower()  # has read everything, so all announcements were published
    await chat.converged(witness)
    waiting = [megabytes(worker) - at_first for worker, at_first in zip(stalled, before, strict=True)]
    for worker in stalled:
        worker.send_line()
    await chat.converged(*stalled)
    reading = [megabytes(worker) - at_first for worker, at_first in zip(stalled, before, strict=True)]
    found = await chat.violations()
    figures.found(
        f"{max(waiting):.1f} MB more while it stalled, {max(reading):.1f} MB after it had read all "
        f"{SCALE.stalled * len(CONTENT) / 1e6:.0f} MB, {len(found)} violations"
    )
    assert max(waiting) < AT_MOST_MEGABYTES
    assert max(reading) < AT_MOST_MEGABYTES
    assert not found
