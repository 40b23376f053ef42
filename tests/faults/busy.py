"""A process that sends and follows, and measures the delay of each turn of its event loop.

python -m faults.busy PLAN          PLAN: a `Plan` as JSON; the settings are in the environment
"""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from uuid import UUID

import msgspec

from faults.history import History, Stalled, now
from faults.worker import plan_of, run, settings_of_environment
from hubbub import Hub
from waiting import until

TURN_SECONDS = 0.002
# The scheduler of Linux counts for this thread, in nanoseconds: time on a processor, and time waiting for one.
SCHEDULED = Path("/proc/thread-self/schedstat")


class Plan(msgspec.Struct, frozen=True):
    """The numbers of senders and followers, each of them a task, and the duration."""

    history: Path
    user_ids: list[UUID]
    rooms: list[UUID]
    senders: int
    followers: int
    seconds: float


async def measure(history: History) -> None:
    """Record the delay of each turn, and the part of it in which this thread waited for a processor."""
    while True:
        before, waited = now(), _waited_for_processor()
        await asyncio.sleep(TURN_SECONDS)
        late = (now() - before) / 1e9 - TURN_SECONDS
        history.write(Stalled(now(), late, _waited_for_processor() - waited))


def _waited_for_processor() -> float:
    return int(SCHEDULED.read_text().split()[1]) / 1e9


async def load(_has_line: asyncio.Event) -> None:
    plan = plan_of(Plan)
    async with Hub(settings_of_environment()) as hub:
        received = 0

        async def send(n: int) -> None:
            while True:
                await hub.messages.send(plan.rooms[n % len(plan.rooms)], plan.user_ids[0], "hello, hello")

        async def follow(n: int) -> None:
            async with hub.follow(plan.user_ids[n % len(plan.user_ids)]) as feed:
                async for _ in feed:
                    nonlocal received
                    received += 1

        work = [asyncio.create_task(send(n)) for n in range(plan.senders)]
        work += [asyncio.create_task(follow(n)) for n in range(plan.followers)]
        # Objects from before the load belong to the start of a server. The collector visits them only once.
        gc.collect()
        gc.freeze()
        with History(plan.history) as history:
            work.append(asyncio.create_task(measure(history)))
            await asyncio.wait(work, timeout=plan.seconds, return_when=asyncio.FIRST_COMPLETED)
            # On a busy machine the followers may not have started yet.
            await until(lambda: received > 0 or any(task.done() for task in work))
        failed = [task for task in work if task.done()]
        for task in work:
            task.cancel()
        await asyncio.wait(work)
        for task in failed:
            task.result()  # none ends by itself
        assert received, "the followers received nothing"


if __name__ == "__main__":
    run(load)
