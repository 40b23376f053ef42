"""All processes of an application connect at once, at its start and after a restart of PostgreSQL."""

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
from faults.figures import IS_FULL, SCALE, Figures
from faults.fleet import Plan
from faults.fragile import FragileServers
from faults.history import Opened, Served, now
from faults.worker import Worker
from hubbub import Settings, migrations

POOL_SIZE = 2
MAX_CONNECTIONS = 500
SLICE_SECONDS = 0.1
RECEIVED = re.compile(r"^(\S+ \S+) \S+ \[\d+\].* connection received", re.MULTILINE)


@pytest.fixture
async def roomy(fragile_folder: Path, fragile_servers: FragileServers) -> AsyncIterator[FragileServers]:
    """Servers for this test alone that accept as many connections and log each of them."""
    del fragile_servers  # started first, because they begin in an empty folder
    servers = FragileServers(fragile_folder / "roomy")
    settings = await servers.start()
    await execute(
        servers.administrator(settings.postgres),
        f"ALTER SYSTEM SET max_connections = {MAX_CONNECTIONS}",
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


class Fleet:
    """Many processes, and the records of their histories."""

    def __init__(self, worker: Worker, chat: Chat) -> None:
        self._worker = worker
        self._chat = chat
        self._opened: dict[int, Opened] = {}
        self._served: dict[int, int] = {}

    @classmethod
    async def start(cls, chat: Chat, folder: Path, through: Settings) -> Fleet:
        plan = Plan(folder / "fleet", chat.user_ids[0], SCALE.fleet)
        worker = await Worker.start("faults.fleet", plan, plan.history, through)
        chat.senders.append(worker)
        return cls(worker, chat)

    async def is_open(self) -> float:
        """Seconds from the first process's start until the last process has had an answer."""
        await self._all_served(0)
        return (max(self._served.values()) - min(opened.began for opened in self._opened.values())) / 1e9

    @property
    def tries(self) -> int:
        """The number of attempts to open a hub in all processes."""
        return sum(opened.tries for opened in self._opened.values())

    async def is_served_again(self, since: int) -> float:
        """Seconds from `since` until each process has had an answer to a call that it made afterwards."""
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
            return len(self._served) == SCALE.fleet

        await self._chat.until(all_served)


class Attempts(NamedTuple):
    """Attempts to connect: in all, and in the worst tenth of a second."""

    all: int
    most: int


def attempts(log: str) -> Attempts:
    times = [datetime.fromisoformat(time).timestamp() for time in RECEIVED.findall(log)]
    return Attempts(len(times), max(Counter(int(time / SLICE_SECONDS) for time in times).values()))


@pytest.mark.guarantee("G14", f"{SCALE.fleet} processes open at once, and PostgreSQL is shut down and started")
async def test_many_processes_open_and_reconnect_without_overrunning_the_server(
    roomy: FragileServers, roomy_chat: Chat, tmp_path: Path, figures: Figures
) -> None:
    chat = roomy_chat
    through = replace(chat.settings, postgres=replace(chat.settings.postgres, pool_size=POOL_SIZE))
    before = len(roomy.log("postgresql"))
    fleet = await Fleet.start(chat, tmp_path, through)
    opened = await fleet.is_open()
    middle = len(roomy.log("postgresql"))
    await roomy.shut_down("postgresql")
    gone = now()
    await roomy.start()
    back = now()
    served = await fleet.is_served_again(gone) - (back - gone) / 1e9
    log = roomy.log("postgresql")
    first, second = attempts(log[before:middle]), attempts(log[middle:])
    again = fleet.tries - SCALE.fleet
    figures.found(
        f"all served after {opened:.1f} s, {again} opened again, at most {first.most} connection attempts in "
        f"0.1 s; after the restart {served:.1f} s, at most {second.most}, {second.all} in all"
    )
    # Twice the size of the pools is acceptable: some attempts are too early, and some get a late answer. On a busy
    # machine the server is down for longer, and gets more attempts.
    assert not IS_FULL or second.all <= 2 * POOL_SIZE * SCALE.fleet
