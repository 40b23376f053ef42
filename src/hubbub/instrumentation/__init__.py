"""The metrics that a hub reports to the application.

The adapters `hubbub.instrumentation.prometheus` and `hubbub.instrumentation.opentelemetry` are described in
docs/operations.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from math import log
from typing import Final, Literal, TypeAlias

from hubbub.background import ReportErrors
from hubbub.models import ResyncReason, Value

__all__ = ["SILENT", "Instrumentation", "Line", "Outcome", "PoolUse", "ResyncReason"]

Outcome: TypeAlias = Literal["ok", "refused", "cancelled", "failed"]
"""Of a statement. `refused`: it broke a rule of the schema, as a retry of a send does on purpose. `failed`: the
server refused to serve or did not answer."""

Line: TypeAlias = Literal["postgresql", "redis-commands", "redis-subscriptions"]
"""The kind of a connection. A hub has many of the first, and one at a time of each other."""


class PoolUse(Value, frozen=True):
    """The connections to PostgreSQL at a moment. More than `limit` are never open."""

    limit: int
    open: int
    in_use: int
    waiting: int
    """Callers that wait for a connection."""


class Instrumentation:
    """Override the methods you need. The others do nothing, and neither will methods that are added later.

    The event loop calls them from the code that they report on, so they must be quick. Exceptions are reported to
    the event loop's exception handler, and change nothing. No argument names a room, a user or content, so each
    can be a label.
    """

    def watch(self, pool: Callable[[], PoolUse]) -> None:
        """A hub has started. `pool` gives the use of its pool at any time, also once the hub is closed."""

    def unwatch(self, pool: Callable[[], PoolUse]) -> None:
        """The hub that came with this `pool` closes. Stop counting and keeping it."""

    def queried(self, statement: str, seconds: float, outcome: Outcome) -> None:
        """A statement was run once. It took `seconds` on its connection and has just ended.

        `statement` is its name, such as `messages.page`. BEGIN, COMMIT and the like have their first word. One
        statement may serve several concurrent callers. The task that ran it calls this method, so that a trace
        finds its context.
        """

    def waited(self, seconds: float) -> None:
        """A caller waited for a connection to PostgreSQL, and got one or not. Not called if one was free."""

    def connected(self, line: Line) -> None:
        """A connection was opened. To Redis, each but the first replaces one that was lost."""

    def published(self, number: int, *, is_lost: bool = False) -> None:
        """`number` messages were published in Redis: announcements of changed logs, or messages of `hub.realtime`.

        With `is_lost`, Redis did not confirm them.
        """

    def delivered(self) -> None:
        """A follower got an event."""

    def fell_behind(self) -> None:
        """A follower did not read its events in time. It reads the next ones from PostgreSQL."""

    def resynced(self, reason: ResyncReason) -> None:
        """A follower got a `Resync`: it cannot continue from its position."""

    def dropped(self) -> None:
        """A listener of `hub.realtime` did not read in time and lost a message. It gets a `Gap` for it."""


MIN_SECONDS: Final = 1e-4
"""Durations up to this one share a bucket."""
BUCKET: Final = 1.1
"""Each bucket ends 10 % above the one before: 140 of them up to a minute."""


class LatencyHistogram:
    """A histogram of durations. It costs 0.4 us per duration."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        self.counts[max(int(log(seconds / MIN_SECONDS, BUCKET)) + 1, 0) if seconds > 0 else 0] += 1


def percentile(counts: Mapping[int, int], share: float) -> float | None:
    """The duration in seconds within which this share of them ended; None without any."""
    total = sum(counts.values())
    if not total:
        return None
    left = share * total
    for bucket in sorted(counts):
        left -= counts[bucket]
        if left <= 0:
            return float(MIN_SECONDS * BUCKET**bucket)
    return None


SILENT: Final = Instrumentation()
"""Measures nothing."""


def guarded(inner: Instrumentation) -> Instrumentation:
    """The same, but an exception is reported instead of raised. `SILENT` stays itself."""
    return inner if inner is SILENT else _Guarded(inner)


class _Guarded(Instrumentation):
    def __init__(self, inner: Instrumentation) -> None:
        for name in vars(Instrumentation):
            if not name.startswith("_"):
                setattr(self, name, partial(_report_errors, getattr(inner, name)))


def _report_errors(method: Callable[..., None], *args: object, **kwargs: object) -> None:
    with ReportErrors("the instrumentation"):
        method(*args, **kwargs)


class PoolInstrumentation(Instrumentation):
    """Keeps the pools of the open hubs, for adapters whose figures are read at any time, from any thread."""

    def __init__(self) -> None:
        self._pools: list[Callable[[], PoolUse]] = []

    def watch(self, pool: Callable[[], PoolUse]) -> None:
        self._pools.append(pool)

    def unwatch(self, pool: Callable[[], PoolUse]) -> None:
        self._pools.remove(pool)

    def pool_use(self) -> PoolUse:
        """The use of all pools, added up."""
        uses = [pool() for pool in tuple(self._pools)]  # a copy: a thread reads while hubs come and go
        return PoolUse(
            limit=sum(use.limit for use in uses),
            open=sum(use.open for use in uses),
            in_use=sum(use.in_use for use in uses),
            waiting=sum(use.waiting for use in uses),
        )
