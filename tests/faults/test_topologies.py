"""Redis with Sentinels, and as a cluster. A primary is killed, frozen or demoted under load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pytest

from faults import chat as chats
from faults.chat import PAUSE_SECONDS
from faults.figures import IS_FULL, SCALE, Figures, in_time
from faults.history import now
from hubbub import Hub, Settings, Unavailable, new_id
from redis_server import Server
from redis_topologies import DOWN_AFTER_SECONDS, MASTER, NODE_TIMEOUT_SECONDS, ask_sentinel, cluster, watched
from waiting import until_it_answers

ROOMS = 3
ENDLESS = 1_000_000

BACK_SECONDS = 5
"""The time after the loss until announcements are prompt again."""

PROMPT_SECONDS = 0.05
"""The highest median delay of a prompt announcement. Without announcements it is half a heartbeat."""

BACK_DELIVERIES = 200
"""The number of announcements in that median."""


class Topology(NamedTuple):
    settings: Settings
    primary: Server
    """The primary that is lost. It has the session, among others."""
    change_over: Callable[[], Awaitable[object]]
    """Its planned failover. Returns once another server is the primary."""
    error_seconds: float
    """The time after its loss in which calls may fail."""


@asynccontextmanager
async def _opened(kind: str, settings: Settings, folder: Path) -> AsyncIterator[Topology]:
    if kind == "Sentinel":
        with watched(folder) as servers:
            await servers.ready()
            redis = replace(servers.settings, connect_timeout_seconds=2, deadline_seconds=5)

            async def change_over() -> None:
                assert await ask_sentinel(servers.sentinels[0], "SENTINEL", "FAILOVER", MASTER) == b"OK"
                await until_it_answers(has_changed)

            async def has_changed() -> bool:
                found = await ask_sentinel(servers.sentinels[0], "SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
                return found == [b"127.0.0.1", str(servers.servers[1].port).encode()]

            yield Topology(replace(settings, redis=redis), servers.servers[0], change_over, DOWN_AFTER_SECONDS + 1)
    else:
        with cluster(folder) as nodes:
            await nodes.form()
            redis = replace(nodes.settings, connect_timeout_seconds=2, deadline_seconds=5)

            async def change_over() -> None:
                [replica] = [
                    nodes.of(shard.nodes[1])
                    for shard in await nodes.shards(nodes.nodes[1])
                    if shard.nodes[0].port == nodes.nodes[0].port
                ]
                assert await nodes.ask(replica, "CLUSTER", "FAILOVER") == b"OK"
                await until_it_answers(lambda: nodes.is_primary(replica))

            # The first node, the only one in the settings, has a third of the slots.
            yield Topology(replace(settings, redis=redis), nodes.nodes[0], change_over, NODE_TIMEOUT_SECONDS + 2.5)


@pytest.mark.guarantee("G12", "a primary of Redis lost, with Sentinels and in a cluster")
@pytest.mark.parametrize("loss", ["kill", "freeze", "planned"])
@pytest.mark.parametrize("kind", ["Sentinel", "cluster"])
async def test_loss_of_a_primary_loses_no_event_and_keeps_sessions_and_presence(
    kind: str, loss: str, fragile_settings: Settings, tmp_path: Path, figures: Figures
) -> None:
    (tmp_path / "servers").mkdir()
    async with (
        _opened(kind, fragile_settings, tmp_path / "servers") as topology,
        chats.opened(topology.settings, tmp_path, rooms=ROOMS) as chat,
        Hub(topology.settings) as hub,
    ):
        # Sessions of many users, so that some are in the slots of the lost primary.
        owners = [*chat.user_ids, *[new_id() for _ in range(20)]]
        tokens = [await hub.sessions.create_session(user_id) for user_id in owners]
        online = [hub.presence.online(user_id) for user_id in chat.user_ids]
        for one in online:
            await one.__aenter__()
        for _ in range(SCALE.followers):
            await chat.follower()
        failed: list[int] = []
        wrong = 0

        async def read_session(token: str) -> None:
            nonlocal wrong
            while True:
                began = now()
                try:
                    wrong += await hub.sessions.get_session(token) is None
                except Unavailable:
                    # A hanging primary delays each call until its deadline. The last failed call counts.
                    failed.append(began if loss == "freeze" else now())
                await asyncio.sleep(0.05)

        await chat.sender(ENDLESS, seed=1, callers=10, pause_seconds=PAUSE_SECONDS)
        await chat.acknowledged(50)
        await asyncio.sleep(0.5)  # until the replicas have the writes
        reading = [asyncio.create_task(read_session(token)) for token in tokens]
        lost_at = now()
        if loss == "planned":
            await topology.change_over()
        else:
            getattr(topology.primary, loss)()
        await asyncio.sleep(BACK_SECONDS if IS_FULL else topology.error_seconds)
        back_at = now()
        await chat.until(lambda: len(chat.delays(since=back_at)) >= BACK_DELIVERIES)
        for sender in chat.senders:
            await sender.end()
        await chat.converged()

        async def presence_is_known() -> bool:  # an election without a majority is repeated after seconds
            return None not in (await hub.presence.is_online(chat.user_ids)).values()

        await until_it_answers(presence_is_known)
        for task in reading:
            task.cancel()
        await asyncio.wait(reading)
        assert all(task.cancelled() for task in reading)
        presence = await hub.presence.is_online(chat.user_ids)
        found = await chat.violations()
        last_error = (max(failed, default=lost_at) - lost_at) / 1e9
        usual = median(chat.delays(since=back_at))
        figures.found(
            f"{kind}, {loss}: {len(found)} violations in {chat.count:,} calls, {chat.errors} failed; "
            f"{wrong} sessions lost; last error of a session {last_error:.1f} s after it; "
            f"delay {usual * 1000:.0f} ms again {BACK_SECONDS} s after it, and {chat.delays()[-1]:.2f} s at most"
        )
        for one in online:
            await one.__aexit__(None, None, None)
        assert not found
        assert chat.errors == 0
        assert wrong == 0
        assert presence == dict.fromkeys(chat.user_ids, True)
        assert in_time(last_error, topology.error_seconds)
        assert in_time(usual, PROMPT_SECONDS)
