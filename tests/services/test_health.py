from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from hubbub import Health, Hub, Settings
from redis_server import Server, binaries
from waiting import until_it_answers


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Server]:
    server = Server(binaries()[0], tmp_path)
    yield server.start()
    server.stop()


@pytest.fixture
async def hub(settings: Settings, own_redis: Server) -> AsyncIterator[Hub]:
    patient = replace(own_redis.settings, connect_timeout_seconds=10, deadline_seconds=10)
    async with Hub(replace(settings, redis=patient)) as hub:
        yield hub


async def test_health_of_a_working_hub_is_ok_and_encodes_to_json(hub: Hub) -> None:
    health = await hub.health(deadline_seconds=20)
    assert (health.ready, health.degraded) == (True, False)
    assert (health.postgres.reason, health.redis.reason) == (None, None)
    assert health.pool.limit == hub.settings.postgres.pool_size
    told = msgspec.json.decode(msgspec.json.encode(health))
    assert told.keys() == {"ready", "degraded", "postgres", "redis", "pool"}
    assert told["pool"].keys() == {"limit", "open", "in_use", "waiting"}


async def health_of(hub: Hub, *, deadline_seconds: float) -> Health:
    """The health, asked for until PostgreSQL has answered by the deadline, which a busy machine may miss."""
    found = await hub.health(deadline_seconds=deadline_seconds)

    async def is_ready() -> bool:
        nonlocal found
        found = await hub.health(deadline_seconds=deadline_seconds)
        return found.ready

    if not found.ready:
        await until_it_answers(is_ready)
    return found


async def test_hub_without_redis_is_ready_and_degraded(hub: Hub, own_redis: Server) -> None:
    own_redis.kill()
    health = await health_of(hub, deadline_seconds=1)
    assert (health.ready, health.degraded, health.redis.ok) == (True, True, False)
    assert health.redis.reason
    own_redis.start()

    async def is_well() -> bool:
        return not (await hub.health(deadline_seconds=5)).degraded

    await until_it_answers(is_well)


async def test_frozen_redis_is_reported_within_the_deadline(hub: Hub, own_redis: Server) -> None:
    own_redis.freeze()
    health = await health_of(hub, deadline_seconds=0.3)
    assert health.degraded
    assert health.redis.reason == "no answer within 0.3 s"


async def test_hub_with_an_exhausted_pool_is_not_ready(settings: Settings) -> None:
    tiny = replace(settings, postgres=replace(settings.postgres, pool_size=1))
    async with Hub(tiny) as hub, hub.transaction():
        health = await hub.health(deadline_seconds=0.3)
    assert not health.ready
    assert not health.degraded
    assert health.postgres.reason == "no answer within 0.3 s"
    assert health.pool.in_use == health.pool.limit == 1


async def test_closed_hub_is_not_ready(settings: Settings) -> None:
    async with Hub(settings) as hub:
        pass
    health = await hub.health()
    assert (health.ready, health.postgres.reason) == (False, "it is closed")
    assert not health.redis.ok


async def test_cancelled_probe_leaves_no_waiting_caller(hub: Hub, own_redis: Server) -> None:
    own_redis.freeze()
    probes = [asyncio.create_task(hub.health(deadline_seconds=30)) for _ in range(20)]
    await asyncio.sleep(0)
    for probe in probes:
        probe.cancel()
    await asyncio.gather(*probes, return_exceptions=True)
    own_redis.thaw()
    health = await hub.health(deadline_seconds=20)
    assert health.ready
    assert health.pool.waiting == 0
