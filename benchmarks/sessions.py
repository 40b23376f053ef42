"""Session lookups, by 200 callers and by one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.asyncio

from benchmarks.contenders import Window, duel, hubbub, python
from benchmarks.context import USERS, Context
from benchmarks.measuring import Comparison, Pace, aims, closed_loop
from benchmarks.peers.node import IOREDIS, node, skipped
from hubbub import Hub, RedisSettings

SESSIONS = 1_000
DATA = {"device": "phone", "roles": ["member"], "ip": "192.0.2.1"}
KEYS = [f"session:{number}" for number in range(SESSIONS)]
LIFE_SECONDS = 86_400
AIMS = {200: 1.1, 1: 0.9}
"""By number of callers, beside ioredis."""


def client_of(settings: RedisSettings, connections: int) -> redis.asyncio.Redis:
    """redis-py's client with its defaults, except the limit of 100 connections, at which it raises."""
    return redis.asyncio.Redis(
        host=settings.host, port=settings.port, password=settings.password, max_connections=connections
    )


async def sessions(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """Each contender with its own form of sessions: hubbub's, and the original one for the others."""
    async with client_of(context.settings.redis, 1) as client:
        for key, user_id in zip(KEYS, USERS, strict=False):
            await client.setex(key, LIFE_SECONDS, json.dumps({"userId": str(user_id), **DATA}))
    for callers, aim in AIMS.items():
        yield await duel(
            context,
            pace,
            f"sessions-{callers}",
            f"session lookups, {callers} callers" if callers > 1 else "session lookups, one caller",
            {
                **hubbub(look_ups, callers=callers),
                IOREDIS: node("session", callers, sessions=KEYS),
                **({"redis-py": python(redis_py_look_ups, callers=callers)} if callers > 1 else {}),
            },
            targets=aims(("rate", aim, IOREDIS)),
            skipped=skipped(IOREDIS),
        )


@asynccontextmanager
async def look_ups(context: Context, callers: int) -> AsyncIterator[Window]:
    async with Hub(context.settings) as hub:
        tokens = [await hub.sessions.create_session(user_id, DATA) for user_id in USERS[:SESSIONS]]
        yield lambda seconds: closed_loop(
            lambda number: hub.sessions.get_session(tokens[number % SESSIONS]), callers, seconds
        )


@asynccontextmanager
async def redis_py_look_ups(context: Context, callers: int) -> AsyncIterator[Window]:
    async with client_of(context.settings.redis, callers) as client:

        async def look_up(number: int) -> None:
            data = await client.get(KEYS[number % SESSIONS])
            assert data is not None
            assert json.loads(data)["userId"]

        yield lambda seconds: closed_loop(look_up, callers, seconds)
