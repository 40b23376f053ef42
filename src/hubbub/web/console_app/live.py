"""The figures of the page, queried once for all viewers."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from functools import partial
from time import time
from typing import Final

import msgspec

from hubbub.diagnostics.doctor import check_servers
from hubbub.diagnostics.figures import (
    BusyRoom,
    Poller,
    SlowStatement,
    Typing,
    ask_postgres,
    ask_redis,
    block_hits,
    commands_per_second,
    commits_per_second,
    key_hits,
    messages_per_second,
    slowest,
)
from hubbub.diagnostics.report import Report
from hubbub.hub import Hub
from hubbub.instrumentation import PoolUse, percentile
from hubbub.services.feed.announcements import ProcessFigures

POLL_SECONDS: Final = 0.9
"""The figures are asked again if they are older. The page asks every second."""
STATEMENTS_SECONDS: Final = 5.0
"""The view of the extension reads all that it keeps, up to 5,000 statements by default."""
REPORT_SECONDS: Final = 60.0
"""A report hashes a password, which takes a core a quarter of a second."""
SENDS_POLLS: Final = 10
"""The percentiles cover the sends of the last ten polls (ten seconds)."""
KEPT: Final = 300
"""Points of the plots: five minutes."""


class Server(msgspec.Struct, frozen=True):
    """`error` is the reason without an answer. `state` has figures by name, those that are unknown as None."""

    name: str
    where: str
    error: str | None
    state: dict[str, float | None]


class Point(msgspec.Struct, frozen=True, array_like=True):
    """The rates at a time, in seconds since 1970."""

    at: float
    messages: float | None
    commands: float | None


class Processes(msgspec.Struct, frozen=True):
    """All processes of the chat together: those that have followers or sent something. Durations in seconds."""

    number: int
    followers: int
    sends_p50: float | None
    sends_p99: float | None


class Figures(msgspec.Struct, frozen=True):
    """`pool` is that of this process, `typing` None without an answer of Redis."""

    postgresql: Server
    redis: Server
    pool: PoolUse
    processes: Processes
    typing: Typing | None
    is_estimate: bool
    rooms: list[BusyRoom]
    statements: list[SlowStatement] | None
    points: list[Point]


class Monitor:
    """Asks both servers of a hub, while pages ask for the figures."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._stored = Poller(partial(ask_postgres, hub._pool))
        self._live = Poller(partial(ask_redis, hub._connection))
        self._statements: Poller[list[SlowStatement] | None] = Poller(partial(slowest, hub._pool))
        self._points: deque[Point] = deque(maxlen=KEPT)
        self._asked: deque[dict[str, ProcessFigures]] = deque(maxlen=SENDS_POLLS + 1)
        self._due = self._statements_due = self._report_due = 0.0
        self._polling, self._reporting = asyncio.Lock(), asyncio.Lock()
        self._report: Report | None = None

    async def figures(self) -> Figures:
        """The figures, of the last second. Does not raise for a server."""
        async with self._polling:
            now = asyncio.get_running_loop().time()
            if now >= self._due:
                if now >= self._due + SENDS_POLLS * POLL_SECONDS:  # no page has asked for a while
                    self._asked.clear()
                polls = [self._stored.poll(), self._live.poll()]
                if now >= self._statements_due:
                    polls.append(self._statements.poll())
                    self._statements_due = now + STATEMENTS_SECONDS
                await asyncio.gather(*polls)
                self._due = now + POLL_SECONDS
                self._asked.append(self.hub._feed.figures())
                self.hub._feed.ask_for_figures()
                rates = messages_per_second(self._stored), commands_per_second(self._live)
                self._points.append(Point(time(), *rates))
            return self._figures()

    async def report(self) -> Report:
        """The findings of `hubbub doctor`, of the last minute."""
        async with self._reporting:
            now = asyncio.get_running_loop().time()
            if self._report is None or now >= self._report_due:
                self._report = await check_servers(self.hub.settings, processes=1)
                self._report_due = now + REPORT_SECONDS
            return self._report

    def _figures(self) -> Figures:
        live = self._live.latest
        return Figures(
            postgresql=self._postgresql(),
            redis=self._redis(),
            pool=self.hub._pool.use,
            processes=self._processes(),
            typing=live and live.typing,
            is_estimate=live is not None and not live.sessions.is_exact,
            rooms=[] if self._stored.latest is None else self._stored.latest.busiest,
            statements=self._statements.latest,
            points=list(self._points),
        )

    def _processes(self) -> Processes:
        """The sends are those since the oldest answer of each process that is kept here."""
        now, sends = self._asked[-1], Counter[int]()
        for name, figures in now.items():
            sends.update(figures.sends)
            sends.subtract(next(asked[name].sends for asked in self._asked if name in asked))
        return Processes(
            sum(bool(one.followers or one.sends) for one in now.values()),
            sum(one.followers for one in now.values()),
            percentile(sends, 0.5),
            percentile(sends, 0.99),
        )

    def _postgresql(self) -> Server:
        settings, stored = self.hub.settings.postgres, self._stored.latest
        where = f"{settings.where}/{settings.database}"
        if stored is None:
            return Server("PostgreSQL", where, self._stored.reason, {})
        server = stored.server
        state: dict[str, float | None] = {
            **{name: row.rows for name, row in stored.rows.items()},
            "connections": server.connections,
            "max_connections": server.max_connections,
            "pooled": server.pooled,
            "active": server.active,
            "waiting": server.waiting,
            "longest_seconds": server.longest_seconds,
            "commits_per_second": commits_per_second(self._stored),
            "hits": block_hits(self._stored),
        }
        return Server(f"PostgreSQL {server.version}", where, None, state)

    def _redis(self) -> Server:
        where, live = self.hub.settings.redis.where, self._live.latest
        if live is None:
            return Server("Redis", where, self._live.reason, {})
        number = live.server.number
        state: dict[str, float | None] = {
            "online": live.online,
            "sessions": live.sessions.number,
            "channels": number("pubsub_channels"),
            "clients": number("connected_clients"),
            "memory": number("used_memory"),
            "maxmemory": number("maxmemory"),
            "evicted": number("evicted_keys"),
            "commands_per_second": commands_per_second(self._live),
            "hits": key_hits(self._live),
        }
        return Server(f"{live.server.name} {live.server.version}", where, None, state)
