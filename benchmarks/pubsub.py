"""From publish to delivery: 200 publishers that await each publish, one channel, one subscriber."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import redis.asyncio
from broadcaster import Broadcast

from benchmarks.context import Context
from benchmarks.measuring import Comparison, Figures, Load, Pace, Target, compare, summary
from benchmarks.peers import node
from benchmarks.peers.node import PAYLOAD
from benchmarks.sessions import client_of
from hubbub import Hub, RedisSettings

PUBLISHERS = 200
PACED_PER_SECOND = 200
LONGEST_SECONDS = 60
PROBE = "is the subscription active?"

Publish = Callable[[str], Awaitable[object]]
Receive = Callable[[str], None]

# A subscription that calls a function with each message of a channel; entering it returns the function to publish.
Channel = Callable[[Receive], AbstractAsyncContextManager[Publish]]


async def pubsub(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """The highest rate, and the latency at 200 per second."""
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(Hub(context.settings))
        client = await stack.enter_async_context(client_of(context.settings.redis, PUBLISHERS + 10))
        channels = {
            "hubbub": _of_hubbub(hub),
            "redis-py": _of_redis_py(client),
            "broadcaster": await stack.enter_async_context(_broadcaster(context.settings.redis)),
        }
        original = (
            None if node.missing() else await stack.enter_async_context(node.node(context, context.original))
        )
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
            f"publish to delivery, {PACED_PER_SECOND} a second",
            {name: paced(channel) for name, channel in channels.items()}
            | ({"ioredis": original.load("publish, paced", PACED_PER_SECOND)} if original else {}),
            pace,
            targets=[],
            skipped=skipped,
        )


def saturated(channel: Channel) -> Load:
    """A load that ends when all published messages have arrived."""

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
        began, total = time.perf_counter(), round(PACED_PER_SECOND * seconds)
        for number in range(total):
            await asyncio.sleep(max(0.0, began + number / PACED_PER_SECOND - time.perf_counter()))
            await publish(f"{time.perf_counter()} {PAYLOAD}")
        return total

    return lambda seconds: _delivered(channel, publish_all, seconds)


async def _delivered(
    channel: Channel, publish_all: Callable[[Publish, float], Awaitable[int]], seconds: float
) -> Figures:
    """`publish_all` returns the number of messages to expect."""
    latencies: list[float] = []
    subscribed = asyncio.Event()

    def receive(message: str) -> None:
        if message == PROBE:
            subscribed.set()
        else:
            latencies.append(time.perf_counter() - float(message.partition(" ")[0]))

    async with channel(receive) as publish, asyncio.timeout(LONGEST_SECONDS):
        while not subscribed.is_set():  # some clients return before Redis has confirmed
            await publish(PROBE)
            await asyncio.sleep(0.01)
        cpu_began, began = time.process_time(), time.perf_counter()
        total = await publish_all(publish, seconds)
        while len(latencies) < total:  # noqa: ASYNC110 - an event per message would be part of the measurement
            await asyncio.sleep(0.001)
        elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    return summary(latencies, elapsed, cpu)


def _of_hubbub(hub: Hub) -> Channel:
    @asynccontextmanager
    async def channel(receive: Receive) -> AsyncIterator[Publish]:
        async with await hub.realtime.subscribe_to_channel("room-hubbub", receive):
            yield lambda message: hub.realtime.publish("room-hubbub", message)

    return channel


def _of_redis_py(client: redis.asyncio.Redis) -> Channel:
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

    return channel


@asynccontextmanager
async def _broadcaster(settings: RedisSettings) -> AsyncIterator[Channel]:
    """With a second channel that stays subscribed. With redis-py 8 the listener of broadcaster stops at the first
    subscription, continues at the next one, and ends with the last."""
    query = f"max_connections={PUBLISHERS + 10}"  # at redis-py's default of 100 it raises
    url = f"redis://:{settings.password}@{settings.host}:{settings.port}?{query}"
    async with Broadcast(url) as broadcast, broadcast.subscribe("nothing"):

        @asynccontextmanager
        async def channel(receive: Receive) -> AsyncIterator[Publish]:
            async with broadcast.subscribe("room-broadcaster") as subscriber:

                async def listen() -> None:
                    while event := await subscriber.get():
                        receive(event.message)

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
