"""A process that measures the delay of each turn of its event loop, under one of two loads.

It sends and follows at once, or serves a user in thousands of rooms and thousands of followers of one room.

python -m faults.busy PLAN          PLAN: a `Plan` as JSON; the settings are in the environment
"""

from __future__ import annotations

import asyncio
import gc
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import UUID

import msgspec

from faults.history import History, Stalled, now
from faults.worker import plan_of, run, settings_of_environment
from hubbub import Hub, collect_garbage_rarely
from waiting import until

TURN_SECONDS = 0.002
# The scheduler of Linux counts for this thread, in nanoseconds: time on a processor, and time waiting for one.
SCHEDULED = Path("/proc/thread-self/schedstat")


class Plan(msgspec.Struct, frozen=True):
    """The numbers of senders and followers, each of them a task, and the duration.

    Without senders, the first user is in thousands of rooms, and the others are in the first of `rooms`.
    """

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
        if not plan.senders:
            await serve_many(hub, plan)
            return
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


async def serve_many(hub: Hub, plan: Plan) -> None:
    """The first user enters in each form, the others at once, and then the first user and the room are deleted."""
    user_id, *others = plan.user_ids
    collect_garbage_rarely()
    with History(plan.history) as history:
        measuring = asyncio.create_task(measure(history))
        async with hub.follow(user_id) as feed:
            await until(lambda: all(one.room.is_subscribed for one in feed.positions.values()))
            cursors = feed.cursors
        async with hub.follow(user_id, after=cursors, typing=True, presence=True, read_marks=True, profiles=True):
            await hub.users.update_profile(user_id, display_name="one of many rooms")
        async with AsyncExitStack() as stack:
            entering = [stack.enter_async_context(hub.follow(one)) for one in others]
            await asyncio.gather(*entering)
            await hub.users.delete(user_id)
            await hub.rooms.delete(plan.rooms[0])
        measuring.cancel()


if __name__ == "__main__":
    run(load)
