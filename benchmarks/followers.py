"""Followers of rooms: how many events a process delivers, and what ten thousand idle ones weigh."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from benchmarks import child
from benchmarks.measuring import Comparison, Figures, Load, Pace, Target, compare
from benchmarks.peers.node import CONTENT
from benchmarks.stage import PEOPLE, ROOMS, USERS, Stage
from hubbub import Hub, MessageSent

SHARED_ROOMS = 100
AT_ONCE = 100
"""Messages that are sent before all followers have had those of the time before."""


async def delivery(stage: Stage, pace: Pace) -> AsyncIterator[Comparison]:
    """1,000 followers in one process; what they follow is sent by another hub, and comes by way of Redis."""
    async with (
        Hub(stage.settings) as hub,
        Hub(stage.settings) as sender,
        _crowd(hub, sender, rooms=1) as one_room,
        _crowd(hub, sender, rooms=SHARED_ROOMS) as many_rooms,
    ):
        yield await compare(
            "followers",
            f"delivery to {PEOPLE:,} followers in one process",
            {"hubbub": one_room, f"hubbub, in {SHARED_ROOMS} rooms": many_rooms},
            pace,
            targets=[Target("rate", at_least=100_000)],
        )


@asynccontextmanager
async def _crowd(hub: Hub, sender: Hub, *, rooms: int) -> AsyncIterator[Load]:
    """Everybody follows one of the first `rooms` rooms, and reads on at once."""
    delivered, woken = 0, asyncio.Event()
    wanted = 0

    async def follow(number: int) -> None:
        nonlocal delivered
        async with hub.follow(USERS[number], rooms=[ROOMS[number % rooms]]) as feed:
            entered.release()
            async for event in feed:
                if isinstance(event, MessageSent):
                    delivered += 1
                    if delivered >= wanted:
                        woken.set()

    async def load(seconds: float) -> Figures:
        """Sends so many at a time and waits until all have them; so no follower has more than its buffer holds."""
        nonlocal delivered, wanted
        cpu_began, began = time.process_time(), time.perf_counter()
        total = 0
        while time.perf_counter() < began + seconds:
            delivered, wanted = 0, AT_ONCE * PEOPLE // rooms
            woken.clear()
            senders = (sender.messages.send(ROOMS[n % rooms], USERS[n % rooms], CONTENT) for n in range(AT_ONCE))
            await asyncio.gather(*senders)
            await woken.wait()
            total += delivered
        elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu_began
        return {"rate": total / elapsed, "cpu_us": cpu * 1_000_000 / total}

    entered = asyncio.Semaphore(0)
    async with AsyncExitStack() as stack:
        tasks = [asyncio.create_task(follow(number)) for number in range(PEOPLE)]
        stack.push_async_callback(_cancelled, tasks)
        for _ in tasks:
            await entered.acquire()
        yield load


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def idle(stage: Stage, pace: Pace) -> AsyncIterator[Comparison]:
    """10,000 idle followers of 1,000 rooms, in a process of their own."""
    rounds = 1 if pace.quick else pace.rounds
    yield Comparison(
        "idle-followers",
        "memory of 10,000 idle followers",
        [{"hubbub": await child.run("idle_followers", stage.settings)} for _ in range(rounds)],
        [Target("MiB", at_most=80)],
    )
