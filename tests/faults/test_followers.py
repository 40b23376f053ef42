"""Followers receive the log once and in order despite server faults, lost announcements and killed processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from faults.chat import Chat, Fault
from faults.figures import SCALE, Figures, in_time
from faults.fragile import FragileServers
from faults.relays import LostAnnouncements
from hubbub import Options
from hubbub.redis import Connection

HEARTBEAT_SECONDS = Options().follow_heartbeat_seconds
# The time for a comparison of heads and a read of the log.
SLACK_SECONDS = 0.3
KILLS = 3


@asynccontextmanager
async def nothing(chat: Chat, fragile: FragileServers) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def postgresql_killed(chat: Chat, fragile: FragileServers) -> AsyncIterator[None]:
    fragile.kill("postgresql")
    yield
    await fragile.start()


@asynccontextmanager
async def redis_killed(chat: Chat, fragile: FragileServers) -> AsyncIterator[None]:
    fragile.kill("valkey")
    yield
    await fragile.start()


@asynccontextmanager
async def postgresql_frozen(chat: Chat, fragile: FragileServers) -> AsyncIterator[None]:
    with fragile.frozen("postgresql"):
        yield


@asynccontextmanager
async def redis_frozen(chat: Chat, fragile: FragileServers) -> AsyncIterator[None]:
    with fragile.frozen("valkey"):
        yield


@asynccontextmanager
async def subscriptions_cut(chat: Chat, fragile: FragileServers) -> AsyncIterator[None]:
    """Cut all subscriptions repeatedly."""
    connection = Connection(chat.settings.redis)
    await connection.start()

    async def cut() -> None:
        while True:
            await connection.execute("CLIENT", "KILL", "TYPE", "pubsub")
            await asyncio.sleep(0.1)

    cutting = asyncio.create_task(cut())
    yield
    cutting.cancel()
    await asyncio.wait([cutting])
    await connection.close()


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=pytest.mark.guarantee("G4", words))
        for fault, words in {
            nothing: "no fault",
            postgresql_killed: "PostgreSQL killed",
            postgresql_frozen: "PostgreSQL frozen",
            redis_killed: "Redis killed",
            redis_frozen: "Redis frozen",
            subscriptions_cut: "CLIENT KILL TYPE pubsub, ten times a second",
        }.items()
    ],
    ids=lambda fault: fault.__name__,
)
async def test_followers_receive_the_log_during_fault_of_a_server(
    chat: Chat, fragile: FragileServers, fault: Fault, figures: Figures
) -> None:
    await chat.under_load(fragile, fault)
    found = await chat.violations()
    delays = chat.delays()
    figures.found(f"{len(found)} violations in {len(delays):,} deliveries, delay at most {delays[-1]:.2f} s")
    assert not found


@pytest.mark.parametrize(
    ("dropped", "late_seconds"),
    [
        pytest.param(1, 0, marks=pytest.mark.guarantee("G4", "every announcement dropped")),
        pytest.param(
            0.5, 0.5, marks=pytest.mark.guarantee("G4", "half of the announcements dropped, the rest late")
        ),
    ],
    ids=["dropped", "late"],
)
async def test_followers_receive_the_log_within_a_heartbeat_when_announcements_are_lost(
    chat: Chat, fragile: FragileServers, dropped: float, late_seconds: float, figures: Figures
) -> None:
    redis = chat.settings.redis
    async with LostAnnouncements(
        redis.host, redis.port, dropped=dropped, late_seconds=late_seconds, seed=4
    ) as relay:
        through = replace(chat.settings, redis=replace(redis, port=relay.port))
        await chat.under_load(fragile, nothing, through)
        found = await chat.violations()
        for follower in chat.followers:
            await follower.kill()
    delays = chat.delays()
    figures.found(
        f"{len(found)} violations in {len(delays):,} deliveries, {relay.dropped:,} announcements dropped, "
        f"delay at most {delays[-1]:.2f} s"
    )
    assert relay.dropped
    assert bool(relay.delayed) == bool(late_seconds)
    assert not found
    assert in_time(delays[-1], HEARTBEAT_SECONDS + SLACK_SECONDS)


@pytest.mark.guarantee("G4", "kill -9 of a follower, another process goes on from its last cursor")
async def test_follower_process_goes_on_from_cursors_of_killed_process(chat: Chat, figures: Figures) -> None:
    follower = await chat.follower()
    sender = await chat.sender(1_000_000, seed=1, callers=5, pause_seconds=0.01)
    for _ in range(KILLS):
        await chat.acknowledged(SCALE.messages // 5)
        await follower.kill()
        await chat.acknowledged(SCALE.messages // 20)
        follower = await chat.follower(instead_of=follower)
    await sender.end()
    await chat.converged()
    found = await chat.violations()
    figures.found(f"{len(found)} violations in {len(chat.delays()):,} deliveries, {KILLS} kills")
    assert not found
