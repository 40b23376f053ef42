"""A process that does everything at once, and measures how late its event loop comes.

python -m faults.busy PLAN          PLAN: a `Plan` as JSON; the settings are in the environment
"""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from uuid import UUID

import msgspec

from faults.history import History, Stalled, now
from faults.process import plan_of, run, settings_of_environment
from hubbub import Hub

TURN_SECONDS = 0.002
# What the scheduler of Linux knows of this thread, in nanoseconds: its time on a processor, and waiting for one.
SCHEDULED = Path("/proc/thread-self/schedstat")


class Plan(msgspec.Struct, frozen=True):
    """Senders as tasks, followers as tasks, for so long."""

    history: Path
    user_ids: list[UUID]
    rooms: list[UUID]
    senders: int
    followers: int
    seconds: float


async def measure(history: History) -> None:
    """Note how late each turn came. What the machine gave to other processes meanwhile is told apart."""
    while True:
        before, waited = now(), _waited_for_processor()
        await asyncio.sleep(TURN_SECONDS)
        late = (now() - before) / 1e9 - TURN_SECONDS
        history.write(Stalled(now(), late, _waited_for_processor() - waited))


def _waited_for_processor() -> float:
    return int(SCHEDULED.read_text().split()[1]) / 1e9


async def load(_told: asyncio.Event) -> None:
    plan = plan_of(Plan)
    async with Hub(settings_of_environment()) as hub:
        heard = 0

        async def send(n: int) -> None:
            while True:
                await hub.messages.send(plan.rooms[n % len(plan.rooms)], plan.user_ids[0], "hello, hello")

        async def follow(n: int) -> None:
            async with hub.follow(plan.user_ids[n % len(plan.user_ids)]) as feed:
                async for _ in feed:
                    nonlocal heard
                    heard += 1

        work = [asyncio.create_task(send(n)) for n in range(plan.senders)]
        work += [asyncio.create_task(follow(n)) for n in range(plan.followers)]
        # What was made before the load is a server's start, and the collector's business once.
        gc.collect()
        gc.freeze()
        with History(plan.history) as history:
            work.append(asyncio.create_task(measure(history)))
            failed, _ = await asyncio.wait(work, timeout=plan.seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in work:
            task.cancel()
        await asyncio.wait(work)
        for task in failed:
            task.result()  # none ends by itself
        assert heard, "nobody followed"


if __name__ == "__main__":
    run(load)
