"""From publish to delivery: 200 publishers that wait for Redis each time, one channel, one subscriber."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import redis.asyncio
from broadcaster import Broadcast

from benchmarks.measuring import Comparison, Figures, Load, Pace, Target, compare, summary
from benchmarks.peers import node
from benchmarks.peers.node import PAYLOAD
from benchmarks.sessions import client_of
from benchmarks.stage import Stage
from hubbub import Hub, RedisSettings

PUBLISHERS = 200
PACED_A_SECOND = 200
LONGEST_SECONDS = 60
PROBE = "does anybody hear me?"

Publish = Callable[[str], Awaitable[object]]
Hear = Callable[[str], None]

# Whoever enters it hears what is published on a channel, and gets a way to publish there.
Channel = Callable[[Hear], AbstractAsyncContextManager[Publish]]


async def pubsub(stage: Stage, pace: Pace) -> AsyncIterator[Comparison]:
    """As many as go through, and 200 a second: how long each takes."""
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(Hub(stage.settings))
        client = await stack.enter_async_context(client_of(stage.settings.redis, PUBLISHERS + 10))
        channels = {
            "hubbub": _of_hubbub(hub),
            "redis-py": _of_redis_py(client),
            "broadcaster": await stack.enter_async_context(_broadcaster(stage.settings.redis)),
        }
        original = None if node.missing() else await stack.enter_async_context(node.node(stage, stage.original))
        skipped = {"ioredis": reason} if (reason := node.missing()) else {}
        yield await compare(
            "pubsub",
            f"publish to delivery, {PUBLISHERS} publishers",
            {name: saturated(channel) for name, channel in channels.items()}
            | ({"ioredis": original.load("publish", PUBLISHERS)} if original else {}),
            pace,
            targets=[
                Target("rate", 1.5, "ioredis"),
                Target("rate", 8, "redis-py"),
                Target("rate", 8, "broadcaster"),
            ],
            skipped=skipped,
        )
        yield await compare(
            "pubsub-paced",
            f"publish to delivery, {PACED_A_SECOND} a second",
            {name: paced(channel) for name, channel in channels.items()}
            | ({"ioredis": original.load("publish, paced", PACED_A_SECOND)} if original else {}),
            pace,
            targets=[],
            skipped=skipped,
        )


def saturated(channel: Channel) -> Load:
    """Until all that was published has arrived."""

    async def publish_all(publish: Publish, seconds: float) -> int:
        until = time.perf_counter() + seconds

        async def publisher() -> int:
            count = 0
            while (now := time.perf_counter()) < until:
                await publish(f"{now} {PAYLOAD}")
                count += 1
            return count

        return sum(await asyncio.gather(*(publisher() for _ in range(PUBLISHERS))))

    return lambda seconds: _delivered(channel, publish_all, seconds)


def paced(channel: Channel) -> Load:
    async def publish_all(publish: Publish, seconds: float) -> int:
        began, total = time.perf_counter(), round(PACED_A_SECOND * seconds)
        for number in range(total):
            await asyncio.sleep(max(0.0, began + number / PACED_A_SECOND - time.perf_counter()))
            await publish(f"{time.perf_counter()} {PAYLOAD}")
        return total

    return lambda seconds: _delivered(channel, publish_all, seconds)


async def _delivered(
    channel: Channel, publish_all: Callable[[Publish, float], Awaitable[int]], seconds: float
) -> Figures:
    """`publish_all` says in the end how many there are to arrive."""
    latencies: list[float] = []
    heard = asyncio.Event()

    def hear(message: str) -> None:
        if message == PROBE:
            heard.set()
        else:
            latencies.append(time.perf_counter() - float(message.partition(" ")[0]))

    async with channel(hear) as publish, asyncio.timeout(LONGEST_SECONDS):
        while not heard.is_set():  # not everybody waits until Redis has confirmed
            await publish(PROBE)
            await asyncio.sleep(0.01)
        cpu_began, began = time.process_time(), time.perf_counter()
        total = await publish_all(publish, seconds)
        while len(latencies) < total:  # noqa: ASYNC110 - an event for each message would be part of the measure
            await asyncio.sleep(0.001)
        elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    return summary(latencies, elapsed, cpu)


def _of_hubbub(hub: Hub) -> Channel:
    @asynccontextmanager
    async def channel(hear: Hear) -> AsyncIterator[Publish]:
        async with await hub.realtime.subscribe_to_channel("room-hubbub", hear):
            yield lambda message: hub.realtime.publish("room-hubbub", message)

    return channel


def _of_redis_py(client: redis.asyncio.Redis) -> Channel:
    @asynccontextmanager
    async def channel(hear: Hear) -> AsyncIterator[Publish]:
        async with client.pubsub() as subscriber:
            await subscriber.subscribe("room-redis-py")

            async def listen() -> None:
                async for message in subscriber.listen():
                    if message["type"] == "message":
                        hear(message["data"].decode())

            async with _in_background(listen()):
                yield lambda message: client.publish("room-redis-py", message)

    return channel


@asynccontextmanager
async def _broadcaster(settings: RedisSettings) -> AsyncIterator[Channel]:
    """With a second channel, which stays subscribed: with redis-py 8 its listener gives up at the first
    subscription, goes on at the next one, and ends with the last."""
    query = f"max_connections={PUBLISHERS + 10}"  # at redis-py's default of 100 it raises
    url = f"redis://:{settings.password}@{settings.host}:{settings.port}?{query}"
    async with Broadcast(url) as broadcast, broadcast.subscribe("nothing"):

        @asynccontextmanager
        async def channel(hear: Hear) -> AsyncIterator[Publish]:
            async with broadcast.subscribe("room-broadcaster") as subscriber:

                async def listen() -> None:
                    while event := await subscriber.get():
                        hear(event.message)

                async with _in_background(listen()):
                    yield lambda message: broadcast.publish("room-broadcaster", message)

        yield channel


@asynccontextmanager
async def _in_background(work: Coroutine[object, object, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
