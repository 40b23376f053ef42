"""An instrumentation that records all reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from hubbub.instrumentation import Instrumentation, Line, Outcome, PoolUse, ResyncReason


class Query(NamedTuple):
    statement: str
    seconds: float
    outcome: Outcome


class Recording(Instrumentation):
    def __init__(self) -> None:
        self.pools: list[Callable[[], PoolUse]] = []
        self.queries: list[Query] = []
        self.waits: list[float] = []
        self.lines: Counter[Line] = Counter()
        self.announced = 0
        self.lost = 0
        self.delivered_events = 0
        self.times_behind = 0
        self.resyncs: list[ResyncReason] = []
        self.drops = 0

    def outcomes(self, statement: str) -> list[Outcome]:
        return [query.outcome for query in self.queries if query.statement == statement]

    def watch(self, pool: Callable[[], PoolUse]) -> None:
        self.pools.append(pool)

    def unwatch(self, pool: Callable[[], PoolUse]) -> None:
        self.pools.remove(pool)

    def queried(self, statement: str, seconds: float, outcome: Outcome) -> None:
        self.queries.append(Query(statement, seconds, outcome))

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def connected(self, line: Line) -> None:
        self.lines[line] += 1

    def published(self, number: int, *, is_lost: bool = False) -> None:
        self.lost += number if is_lost else 0
        self.announced += 0 if is_lost else number

    def delivered(self) -> None:
        self.delivered_events += 1

    def fell_behind(self) -> None:
        self.times_behind += 1

    def resynced(self, reason: ResyncReason) -> None:
        self.resyncs.append(reason)

    def dropped(self) -> None:
        self.drops += 1
