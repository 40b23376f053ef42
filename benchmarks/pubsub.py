"""From publish to delivery: one channel, one subscriber."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from benchmarks.contenders import Window, duel, hubbub, python
from benchmarks.context import Context
from benchmarks.measuring import ASYNCIO, UVLOOP, Comparison, Done, Pace, Target, aims
from benchmarks.peers.node import IOREDIS, PAYLOAD, node, skipped
from benchmarks.sessions import client_of
from hubbub import Hub

PUBLISHERS = 200
PACED_PER_SECOND = 200
MAX_SECONDS = 60
PROBE = "is the subscription active?"

Publish = Callable[[str], Awaitable[object]]
Receive = Callable[[str], None]

# A subscription that calls a function with each message of a channel. Entering it returns a function to publish.
Channel = Callable[[Receive], AbstractAsyncContextManager[Publish]]


async def pubsub(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """The highest rate, and the latency at 200 per second."""
    yield await duel(
        context,
        pace,
        "pubsub",
        f"publish to delivery, {PUBLISHERS} publishers",
        {
            **hubbub(hub_channel, paced=False),
            IOREDIS: node("publish", PUBLISHERS),
            "redis-py": python(redis_py_channel, paced=False),
        },
        targets=aims(("rate", 1.9, IOREDIS)),
        skipped=skipped(IOREDIS),
    )
    yield await duel(
        context,
        pace.seldom,
        "pubsub-paced",
        f"publish to delivery, {PACED_PER_SECOND} a second",
        {**hubbub(hub_channel, paced=True), IOREDIS: node("publish, paced", PACED_PER_SECOND)},
        targets=[Target("p99_ms", at_most=1.0, of=of) for of in (UVLOOP, ASYNCIO)],
        skipped=skipped(IOREDIS),
    )


@asynccontextmanager
async def hub_channel(context: Context, *, paced: bool) -> AsyncIterator[Window]:
    async with Hub(context.settings) as hub:

        @asynccontextmanager
        async def channel(receive: Receive) -> AsyncIterator[Publish]:
            async with await hub.realtime.subscribe_to_channel("room-hubbub", receive):
                yield lambda message: hub.realtime.publish("room-hubbub", message)

        yield _window(channel, paced=paced)


@asynccontextmanager
async def redis_py_channel(context: Context, *, paced: bool) -> AsyncIterator[Window]:
    async with client_of(context.settings.redis, PUBLISHERS + 10) as client:

        @asynccontextmanager
        async def channel(receive: Receive) -> AsyncIterator[Publish]:
            async with client.pubsub() as subscriber:
                await subscriber.subscribe("room-redis-py")

                async def listen() -> None:
                    async for message in subscriber.listen():
                        if message["type"] == "message":
                            receive(message["data"].decode())

                async with _in_background(listen()):
                    yield lambda message: client.publish("room-redis-py", message)

        yield _window(channel, paced=paced)


def _window(channel: Channel, *, paced: bool) -> Window:
    return lambda seconds: _delivered(channel, _paced if paced else _saturated, seconds)


async def _saturated(publish: Publish, seconds: float) -> int:
    """Run publishers that each await their publish. Returns the number of messages."""
    until = time.perf_counter() + seconds

    async def publisher() -> int:
        count = 0
        while True:
            await publish(f"{time.perf_counter()} {PAYLOAD}")
            count += 1
            if time.perf_counter() >= until:
                return count

    return sum(await asyncio.gather(*(publisher() for _ in range(PUBLISHERS))))


async def _paced(publish: Publish, seconds: float) -> int:
    began, total = time.perf_counter(), round(PACED_PER_SECOND * seconds)
    for number in range(total):
        await asyncio.sleep(max(0.0, began + number / PACED_PER_SECOND - time.perf_counter()))
        await publish(f"{time.perf_counter()} {PAYLOAD}")
    return total


async def _delivered(
    channel: Channel, publish_all: Callable[[Publish, float], Awaitable[int]], seconds: float
) -> Done:
    """Publish and receive until all published messages have arrived."""
    latencies: list[float] = []
    subscribed = asyncio.Event()

    def receive(message: str) -> None:
        if message == PROBE:
            subscribed.set()
        else:
            latencies.append(time.perf_counter() - float(message.partition(" ")[0]))

    async with channel(receive) as publish, asyncio.timeout(MAX_SECONDS):
        while not subscribed.is_set():  # some clients return before the confirmation of Redis
            await publish(PROBE)
            await asyncio.sleep(0.01)
        cpu_began, began = time.process_time(), time.perf_counter()
        total = await publish_all(publish, seconds)
        while len(latencies) < total:  # noqa: ASYNC110 - an event per message would be part of the measurement
            await asyncio.sleep(0.001)
        elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    return Done(total, elapsed, cpu, latencies)


@asynccontextmanager
async def _in_background(work: Coroutine[object, object, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
