"""Patroni fails over under the load of a chat, after a kill -9 or a freeze of a node, and by a switchover."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from faults import chat as chats
from faults import checker
from faults.checker import stored_in
from faults.figures import Figures, in_time
from faults.fragile import FragileServers
from faults.history import now
from faults.patroni import Cluster, lacking
from faults.test_failover import ENDLESS, MORE, first_acknowledged, sent_to_the_end
from hubbub import Settings, migrations

pytestmark = pytest.mark.skipif(lacking() is not None, reason=str(lacking()))


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="hubbub-patroni-"))
    cluster = Cluster(folder)
    yield cluster
    cluster.stop()
    shutil.rmtree(folder)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=pytest.mark.guarantee("G1", f"Patroni, synchronous mode, {words}"))
        for fault, words in {
            "killed": "primary node killed",
            "frozen": "primary node frozen",
            "switched": "switchover",
        }.items()
    ],
)
async def test_failover_of_patroni_loses_nothing(
    cluster: Cluster, fragile: FragileServers, fault: str, tmp_path: Path, figures: Figures
) -> None:
    postgres = await cluster.start(synchronous=True)
    settings: Settings = replace(await fragile.start(), postgres=postgres)
    await migrations.up(settings.postgres)
    primary, standby = cluster.nodes
    async with chats.opened(settings, tmp_path, rooms=3) as chat:
        await chat.follower()
        await chat.sender(ENDLESS, seed=1, pause_seconds=chats.PAUSE_SECONDS)
        await chat.acknowledged(MORE)
        if fault == "frozen":
            with cluster.frozen(primary):
                await cluster.promoted(standby)
                seconds = await first_acknowledged(chat, now())
        else:
            if fault == "killed":
                cluster.kill(primary)
            else:
                cluster.switch_over(primary, standby)
            await cluster.promoted(standby)
            seconds = await first_acknowledged(chat, now())
        await sent_to_the_end(chat)
        lost = list(checker.lost(chat.sent, await stored_in(chat.settings.postgres)))
        figures.found(
            f"{len(lost)} lost of {chat.count:,} acknowledged calls, acknowledged {seconds:.2f} s after it"
        )
        assert await chat.violations() == []
        assert in_time(seconds, 1)
