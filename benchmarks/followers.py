"""Readers of logs: deliveries to followers, the cost of idle followers, and the feed of changes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from benchmarks.contenders import Start, Window, duel, hubbub, python
from benchmarks.context import PEOPLE, ROOMS, USERS, Context
from benchmarks.measuring import ASYNCIO, UVLOOP, Comparison, Done, Figures, Pace, Target
from benchmarks.peers.node import CONTENT
from hubbub import Hub, MessageSent, NewMessage

SHARED_ROOMS = 100
MESSAGES_PER_TURN = 100
"""Messages per batch. The next batch is sent when all followers have received the last one."""
IDLE_FOLLOWERS = 10_000
ENTERED_TOGETHER = 100
BACKLOG = 2_000


async def delivery(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """1,000 followers in one process. Another hub sends the messages, announced through Redis."""
    for rooms, target in ((1, 100_000), (SHARED_ROOMS, None)):
        yield await duel(
            context,
            pace.seldom,
            f"followers-{rooms}",
            f"delivery to {PEOPLE:,} followers of {f'{rooms} rooms' if rooms > 1 else 'one room'} in one process",
            hubbub(followers, rooms=rooms),
            targets=[Target("rate", target, of=of) for of in (UVLOOP, ASYNCIO) if target],
        )


@asynccontextmanager
async def followers(context: Context, *, rooms: int) -> AsyncIterator[Window]:
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

    async def window(seconds: float) -> Done:
        """Send batches of messages and wait for their delivery, so that no follower's buffer overflows."""
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
        return Done(total, time.perf_counter() - began, time.process_time() - cpu_began)

    following = asyncio.Semaphore(0)
    async with Hub(context.settings) as hub, Hub(context.settings) as sender, AsyncExitStack() as stack:
        tasks = [asyncio.create_task(follow(number)) for number in range(PEOPLE)]
        stack.push_async_callback(_cancelled, tasks)
        for _ in tasks:
            await following.acquire()
        yield window


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def idle(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """10,000 idle followers of 1,000 rooms: their memory and their processor time."""
    count = PEOPLE if pace.quick else IDLE_FOLLOWERS
    found: dict[str, Figures] = {}
    for name, start in hubbub(idle_followers, count=count).items():
        async with start(context) as contender:
            figures = await contender(2 * pace.seconds)
            # An operation is a second here.
            shares = {f"{of} % of a core": figures.pop(f"{of}_us") / 10_000 for of in ("cpu", "postgres", "redis")}
            found[name] = {figure: figures[figure] for figure in ("MiB", "KiB a follower")} | shares
    yield Comparison(
        "idle-followers",
        f"{count:,} idle followers",
        [found],
        [Target("MiB", at_most=80, of=of) for of in (UVLOOP, ASYNCIO)],
    )


@asynccontextmanager
async def idle_followers(context: Context, count: int) -> AsyncIterator[Window]:
    """Ten followers per user, each of one room."""
    async with Hub(context.settings) as hub, AsyncExitStack() as stack:
        before = mebibytes_now()
        for first in range(0, count, ENTERED_TOGETHER):
            feeds = [
                hub.follow(USERS[n % PEOPLE], rooms=[ROOMS[n % PEOPLE]])
                for n in range(first, first + ENTERED_TOGETHER)
            ]
            await asyncio.gather(*map(stack.enter_async_context, feeds))
        used = mebibytes_now() - before

        async def window(seconds: float) -> Done:
            cpu, whole = time.process_time(), max(1, round(seconds))
            await asyncio.sleep(whole)
            more = {"MiB": used, "KiB a follower": used * 1_024 / count}
            return Done(whole, whole, time.process_time() - cpu, more=more)

        yield window


def mebibytes_now() -> float:
    """The resident memory of the process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def changes(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """One worker reads the entries of 100 rooms in the feed of changes."""
    database = await context.new_database("changes")
    async with Hub(database) as hub:
        ada = await hub.users.create("ada@example.org", "ada", "not a hash")
        rooms = [await hub.rooms.create(f"room {number}", created_by=ada.id) for number in range(SHARED_ROOMS)]
        new = [NewMessage(CONTENT) for _ in range(BACKLOG // SHARED_ROOMS)]
        await asyncio.gather(*(hub.messages.send_many(room.id, ada.id, new) for room in rooms))
    contenders: dict[str, Start] = {
        name: python(read_changes, loop=loop, database="changes")
        for name, loop in ((UVLOOP, "uvloop"), (ASYNCIO, "asyncio"))
    }
    yield await duel(context, pace.seldom, "changes", "feed of changes, one worker behind", contenders, targets=[])


@asynccontextmanager
async def read_changes(context: Context, database: str) -> AsyncIterator[Window]:
    async with Hub(context.database(database)) as hub:

        async def window(seconds: float) -> Done:
            cpu_began, began = time.process_time(), time.perf_counter()
            total = 0
            while time.perf_counter() < began + seconds:
                async with hub.changes.follow() as feed:
                    async for _ in feed:
                        total += 1
                        if total % BACKLOG == 0:
                            break
            return Done(total, time.perf_counter() - began, time.process_time() - cpu_began)

        yield window
