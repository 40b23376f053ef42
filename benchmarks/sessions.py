"""Session lookups, by 200 callers and by one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import redis.asyncio

from benchmarks import limits
from benchmarks.context import USERS, Context
from benchmarks.measuring import Comparison, Pace, Step, Target, compare, loop_of
from benchmarks.peers import node
from hubbub import Hub, RedisSettings

SESSIONS = 1_000
DATA = {"device": "phone", "roles": ["member"], "ip": "192.0.2.1"}
KEYS = [f"session:{number}" for number in range(SESSIONS)]
LIFE_SECONDS = 86_400
CALLERS = (200, 1)
LOOKUP = "GET session:__rand_int__"


def client_of(settings: RedisSettings, connections: int) -> redis.asyncio.Redis:
    """redis-py's client with its defaults, except the limit of 100 connections, at which it raises."""
    return redis.asyncio.Redis(
        host=settings.host, port=settings.port, password=settings.password, max_connections=connections
    )


async def sessions(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """Each contender with its own form of sessions: hubbub's, and the original one for the others."""
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(Hub(context.settings))
        tokens = [await hub.sessions.create_session(user_id, DATA) for user_id in USERS[:SESSIONS]]
        client = await stack.enter_async_context(client_of(context.settings.redis, max(CALLERS)))
        pooled = await stack.enter_async_context(_waiting_client(context.settings.redis))
        for key, user_id in zip(KEYS, USERS, strict=False):
            await client.setex(key, LIFE_SECONDS, json.dumps({"userId": str(user_id), **DATA}))
        steps = {
            "hubbub": lambda number: hub.sessions.get_session(tokens[number % SESSIONS]),
            "redis-py": _lookup_step(client),
            "redis-py, its pool of 50": _lookup_step(pooled),
        }
        skipped, original, benchmark = {}, None, _benchmark()
        if reason := node.missing():
            skipped["ioredis"] = reason
        else:
            original = await stack.enter_async_context(node.node(context, context.original, sessions=KEYS))
        if benchmark is None:
            skipped["redis-benchmark"] = "neither valkey-benchmark nor redis-benchmark is installed"
        for callers in CALLERS:
            contenders = {name: loop_of(step, callers) for name, step in steps.items()}
            if original:
                contenders["ioredis"] = original.load("session", callers)
            if benchmark:
                contenders[benchmark.name] = limits.redis_benchmark(context, benchmark, LOOKUP, callers)
            yield await compare(
                f"sessions-{callers}",
                f"session lookups, {callers} callers" if callers > 1 else "session lookups, one caller",
                contenders,
                pace,
                targets=[Target("rate", 1.2, "ioredis"), Target("rate", 8, "redis-py")] if callers > 1 else [],
                skipped=skipped,
            )


def _waiting_client(settings: RedisSettings) -> redis.asyncio.Redis:
    """A client with redis-py's pool in which callers wait, with its default of 50 connections."""
    pool = redis.asyncio.BlockingConnectionPool(
        host=settings.host, port=settings.port, password=settings.password, timeout=None
    )
    return redis.asyncio.Redis.from_pool(pool)


def _lookup_step(client: redis.asyncio.Redis) -> Step:
    async def look_up(number: int) -> None:
        data = await client.get(KEYS[number % SESSIONS])
        assert data is not None
        assert json.loads(data)["userId"]

    return look_up


def _benchmark() -> Path | None:
    return limits.find("valkey-benchmark") or limits.find("redis-benchmark")
