"""All processes of an application come at once: when it starts, and when PostgreSQL was started again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from commands import execute
from faults import chat as chats
from faults.chat import Chat
from faults.crowd import Plan
from faults.figures import Figures
from faults.fragile import FragileServers
from faults.history import Opened, Served, now
from faults.scale import SCALE
from faults.worker import Worker
from hubbub import Settings, migrations

POOL_SIZE = 2
MOST_CONNECTIONS = 500
SLICE_SECONDS = 0.1
RECEIVED = re.compile(r"^(\S+ \S+) \S+ \[\d+\].* connection received", re.MULTILINE)


@pytest.fixture
async def roomy(fragile_folder: Path) -> AsyncIterator[FragileServers]:
    """Servers of this test's own, that take so many connections and note each of them."""
    servers = FragileServers(fragile_folder / "roomy")
    settings = await servers.start()
    await execute(
        servers.administrator(settings.postgres),
        f"ALTER SYSTEM SET max_connections = {MOST_CONNECTIONS}",
        "ALTER SYSTEM SET log_connections = on",
    )
    await servers.shut_down("postgresql")
    await servers.start()
    yield servers
    await servers.stop()


@pytest.fixture
async def roomy_chat(roomy: FragileServers, tmp_path: Path) -> AsyncIterator[Chat]:
    settings = await roomy.start()
    await migrations.up(settings.postgres)
    async with chats.opened(settings, tmp_path, rooms=3) as chat:
        yield chat


class Crowd:
    """Many processes, and what they wrote down."""

    def __init__(self, worker: Worker, chat: Chat) -> None:
        self._worker = worker
        self._chat = chat
        self._opened: dict[int, Opened] = {}
        self._served: dict[int, int] = {}

    @classmethod
    async def gathered(cls, chat: Chat, folder: Path, through: Settings) -> Crowd:
        plan = Plan(folder / "crowd", chat.user_ids[0], SCALE.crowd)
        worker = await Worker.start("faults.crowd", plan, plan.history, through)
        chat.senders.append(worker)
        return cls(worker, chat)

    async def is_open(self) -> float:
        """Seconds from the first beginning until the last process has had an answer."""
        await self._all_served(0)
        return (max(self._served.values()) - min(opened.began for opened in self._opened.values())) / 1e9

    @property
    def tries(self) -> int:
        """How often all of them together tried to open."""
        return sum(opened.tries for opened in self._opened.values())

    async def is_served_again(self, since: int) -> float:
        """Seconds from `since` until each process has had an answer to what it asked afterwards."""
        self._served.clear()
        await self._all_served(since)
        return (max(self._served.values()) - since) / 1e9

    async def _all_served(self, since: int) -> None:
        def all_served() -> bool:
            for record in self._worker.tail.new():
                if isinstance(record, Opened):
                    self._opened[record.process] = record
                elif isinstance(record, Served) and record.began >= since:
                    self._served.setdefault(record.process, record.at)
            return len(self._served) == SCALE.crowd

        await self._chat.until(all_served)


class Attempts(NamedTuple):
    """Connections that the server was asked for: in all, and in the worst tenth of a second."""

    all: int
    most: int


def attempts(log: str) -> Attempts:
    times = [datetime.fromisoformat(time).timestamp() for time in RECEIVED.findall(log)]
    return Attempts(len(times), max(Counter(int(time / SLICE_SECONDS) for time in times).values()))


@pytest.mark.guarantee("G14", f"{SCALE.crowd} processes open at once, and PostgreSQL is shut down and started")
async def test_a_crowd_opens_and_comes_back_without_keeping_the_server_down(
    roomy: FragileServers, roomy_chat: Chat, tmp_path: Path, figures: Figures
) -> None:
    chat = roomy_chat
    through = replace(chat.settings, postgres=replace(chat.settings.postgres, pool_size=POOL_SIZE))
    before = len(roomy.log("postgresql"))
    crowd = await Crowd.gathered(chat, tmp_path, through)
    opened = await crowd.is_open()
    middle = len(roomy.log("postgresql"))
    await roomy.shut_down("postgresql")
    gone = now()
    await roomy.start()
    back = now()
    served = await crowd.is_served_again(gone) - (back - gone) / 1e9
    log = roomy.log("postgresql")
    first, second = attempts(log[before:middle]), attempts(log[middle:])
    again = crowd.tries - SCALE.crowd
    figures.found(
        f"all served after {opened:.1f} s, {again} opened again, at most {first.most} connections asked for in "
        f"0.1 s; after the restart {served:.1f} s, at most {second.most}, {second.all} in all"
    )
    # Twice as many as all of them have are no storm: some come too early, and some are answered too late.
    assert second.all <= 2 * POOL_SIZE * SCALE.crowd * SCALE.patience
