"""Followers of rooms: events delivered per process, and the memory of ten thousand idle ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from benchmarks import child
from benchmarks.context import PEOPLE, ROOMS, USERS, Context
from benchmarks.measuring import Comparison, Figures, Load, Pace, Target, compare
from benchmarks.peers.node import CONTENT
from hubbub import Hub, MessageSent

SHARED_ROOMS = 100
MESSAGES_PER_TURN = 100
"""Messages sent at a time. The next ones are sent when all followers have received these."""


async def delivery(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """1,000 followers in one process. Another hub sends the messages, announced through Redis."""
    async with (
        Hub(context.settings) as hub,
        Hub(context.settings) as sender,
        _followers(hub, sender, rooms=1) as one_room,
        _followers(hub, sender, rooms=SHARED_ROOMS) as many_rooms,
    ):
        yield await compare(
            "followers",
            f"delivery to {PEOPLE:,} followers in one process",
            {"hubbub": one_room, f"hubbub, in {SHARED_ROOMS} rooms": many_rooms},
            pace,
            targets=[Target("rate", at_least=100_000)],
        )


@asynccontextmanager
async def _followers(hub: Hub, sender: Hub, *, rooms: int) -> AsyncIterator[Load]:
    """1,000 followers, each of one of the first `rooms` rooms."""
    delivered, all_delivered = 0, asyncio.Event()
    expected = 0

    async def follow(number: int) -> None:
        nonlocal delivered
        async with hub.follow(USERS[number], rooms=[ROOMS[number % rooms]]) as feed:
            following.release()
            async for event in feed:
                if isinstance(event, MessageSent):
                    delivered += 1
                    if delivered >= expected:
                        all_delivered.set()

    async def load(seconds: float) -> Figures:
        """Send some messages at a time and wait for their delivery, so that no follower's buffer overflows."""
        nonlocal delivered, expected
        cpu_began, began = time.process_time(), time.perf_counter()
        total = 0
        while time.perf_counter() < began + seconds:
            delivered, expected = 0, MESSAGES_PER_TURN * PEOPLE // rooms
            all_delivered.clear()
            senders = (
                sender.messages.send(ROOMS[n % rooms], USERS[n % rooms], CONTENT) for n in range(MESSAGES_PER_TURN)
            )
            await asyncio.gather(*senders)
            await all_delivered.wait()
            total += delivered
        elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu_began
        return {"rate": total / elapsed, "cpu_us": cpu * 1_000_000 / total}

    following = asyncio.Semaphore(0)
    async with AsyncExitStack() as stack:
        tasks = [asyncio.create_task(follow(number)) for number in range(PEOPLE)]
        stack.push_async_callback(_cancelled, tasks)
        for _ in tasks:
            await following.acquire()
        yield load


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def idle(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """10,000 idle followers of 1,000 rooms, in their own process."""
    rounds = 1 if pace.quick else pace.rounds
    yield Comparison(
        "idle-followers",
        "memory of 10,000 idle followers",
        [{"hubbub": await child.run("idle_followers", context.settings)} for _ in range(rounds)],
        [Target("MiB", at_most=80)],
    )
