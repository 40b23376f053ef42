"""Redis with Sentinels, and as a cluster: a primary is killed under load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from faults import chat as chats
from faults.chat import PAUSE_SECONDS
from faults.figures import SCALE, Figures, in_time
from hubbub import Hub, Settings, Unavailable
from redis_server import Server
from redis_topologies import DOWN_AFTER_SECONDS, MASTER, NODE_TIMEOUT_SECONDS, ask_sentinel, cluster, watched
from waiting import until_it_answers

ROOMS = 3


class Topology(NamedTuple):
    settings: Settings
    primary: Server
    """The one to lose, of a session among others."""
    change_over: Callable[[], Awaitable[object]]
    """The planned failover of it. Returns once another is the primary."""
    error_seconds: float
    """How long after its loss calls may fail."""


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

            # The first node is the only one that the settings name, and has a third of the slots.
            yield Topology(replace(settings, redis=redis), nodes.nodes[0], change_over, NODE_TIMEOUT_SECONDS + 2.5)


@pytest.mark.guarantee("G12", "a primary of Redis lost, with Sentinels and in a cluster")
@pytest.mark.parametrize("loss", ["kill", "planned"])
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
        tokens = [await hub.sessions.create_session(user_id) for user_id in chat.user_ids for _ in range(5)]
        online = [hub.presence.online(user_id) for user_id in chat.user_ids]
        for one in online:
            await one.__aenter__()
        for _ in range(SCALE.followers):
            await chat.follower()
        errors: list[float] = []
        lost_at = 0.0
        wrong = 0

        async def read_sessions() -> None:
            nonlocal wrong
            while True:
                answers = await asyncio.gather(*map(hub.sessions.get_session, tokens), return_exceptions=True)
                for answer in answers:
                    if isinstance(answer, Unavailable):
                        errors.append(time.monotonic() - lost_at)
                    elif isinstance(answer, BaseException):
                        raise answer
                    else:
                        wrong += answer is None
                await asyncio.sleep(0.05)

        messages = round(10 * (2 * topology.error_seconds) / PAUSE_SECONDS)
        await chat.sender(messages, seed=1, callers=10, pause_seconds=PAUSE_SECONDS)
        await chat.acknowledged(50)
        await asyncio.sleep(0.5)  # for the replicas, which a loss may overtake
        reading = asyncio.create_task(read_sessions())
        lost_at = time.monotonic()
        if loss == "kill":
            topology.primary.kill()
        else:
            await topology.change_over()
        await chat.all_is_sent()
        await chat.converged()
        reading.cancel()
        await asyncio.wait([reading])
        assert reading.cancelled(), reading.exception()
        presence = await hub.presence.is_online(chat.user_ids)
        found = await chat.violations()
        late = [delay for delay in chat.delays()[-50:] if delay]
        figures.found(
            f"{kind}, {loss}: {len(found)} violations in {chat.count:,} calls, {chat.errors} failed; "
            f"{wrong} sessions lost; last error of a session {max(errors, default=0):.1f} s after it; "
            f"longest delay {late[-1] if late else 0:.2f} s"
        )
        for one in online:
            await one.__aexit__(None, None, None)
        assert not found
        assert chat.errors == 0
        assert wrong == 0
        assert presence == dict.fromkeys(chat.user_ids, True)
        assert in_time(max(errors, default=0), topology.error_seconds)
