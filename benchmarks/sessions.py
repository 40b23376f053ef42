"""Session lookups, by 200 callers and by one."""

from __future__ import annotations

import asyncio
import json
import socket
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import redis.asyncio

from benchmarks.contenders import Window, duel, hubbub, python
from benchmarks.context import USERS, Context
from benchmarks.measuring import Comparison, Pace, aims, closed_loop
from benchmarks.peers.node import IOREDIS, node, skipped
from hubbub import Hub, RedisSettings
from hubbub.embedded.programs import find_valkey

SESSIONS = 1_000
DATA = {"device": "phone", "roles": ["member"], "ip": "192.0.2.1"}
KEYS = [f"session:{number}" for number in range(SESSIONS)]
LIFE_SECONDS = 86_400
AIMS = {200: 1.1, 1: 0.9}
"""The targets by number of callers, beside ioredis."""


def client_of(settings: RedisSettings, connections: int) -> redis.asyncio.Redis:
    """redis-py's client with its defaults, except for the limit of 100 connections, at which it raises."""
    return redis.asyncio.Redis(
        host=settings.host, port=settings.port, password=settings.password, max_connections=connections
    )


async def sessions(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """Each contender uses its own form of sessions, which for the peers is the original one."""
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


async def cluster(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """The same through the router of Redis Cluster, on a cluster of one node, beside a plain server."""
    async with _cluster_of_one(context) as clustered:
        alone = python(look_ups, loop="uvloop", callers=200)
        yield await duel(
            clustered,
            pace.seldom,
            "sessions-cluster",
            "session lookups in a Redis Cluster, 200 callers",
            {**hubbub(look_ups, callers=200), "hubbub, uvloop, no cluster": lambda _: alone(context)},
            targets=[],
        )


@asynccontextmanager
async def _cluster_of_one(context: Context) -> AsyncIterator[Context]:
    settings = replace(context.settings.redis, port=_free_port(), cluster=True)
    lines = {
        "port": settings.port,
        "cluster-port": _free_port(),
        "bind": settings.host,
        "requirepass": settings.password,
        "cluster-enabled": "yes",
        "dir": context.folder,
        "save": '""',
    }
    process = await asyncio.create_subprocess_exec(find_valkey(None), "-", stdin=PIPE, stdout=DEVNULL)
    try:
        assert process.stdin is not None
        process.stdin.write("".join(f"{name} {value}\n" for name, value in lines.items()).encode())
        process.stdin.close()
        async with asyncio.timeout(10), client_of(settings, 1) as client:
            await _until(client, lambda _: True, "CLUSTER ADDSLOTSRANGE", 0, 16_383)
            await _until(client, lambda found: found["cluster_state"] == "ok", "CLUSTER INFO")
        yield replace(context, settings=replace(context.settings, redis=settings), redis=process.pid)
    finally:
        process.terminate()
        await process.wait()


async def _until(client: redis.asyncio.Redis, is_right: Callable[[Any], bool], *command: str | int) -> None:
    """Repeat a command until the server has started and the answer is right."""
    while True:
        try:
            if is_right(await client.execute_command(*command)):  # type: ignore[no-untyped-call]
                return
        except redis.ConnectionError:
            pass
        await asyncio.sleep(0.05)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


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
