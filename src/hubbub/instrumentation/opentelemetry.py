"""A hub's figures as metrics of OpenTelemetry. Needs `pip install 'hubbub[opentelemetry]'`.

    hubbub.open(instrumentation=OpenTelemetryInstrumentation())

They go wherever the application has its meter provider send them, and nowhere without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter

from hubbub.instrumentation.instrumentation import Instrumentation, Line, Outcome, PoolUse
from hubbub.models import ResyncReason


class OpenTelemetryInstrumentation(Instrumentation):
    """Reports to a meter named `hubbub` of `provider`, by default the one that is set for the process.

    Any number of hubs of a process may share it; the pools are then added up.
    """

    def __init__(self, provider: MeterProvider | None = None) -> None:
        meter = get_meter("hubbub", version("hubbub"), provider)
        self._watched: list[Callable[[], PoolUse]] = []
        self._statements = meter.create_histogram(
            "hubbub.statement.duration", "s", "How long a statement took on its connection."
        )
        self._waits = meter.create_histogram(
            "hubbub.pool.wait", "s", "How long a caller waited who found no connection free."
        )
        self._opened = meter.create_counter(
            "hubbub.connections.opened", "{connection}", "Connections opened, by kind."
        )
        self._announcements = meter.create_counter(
            "hubbub.announcements", "{announcement}", "Announcements to Redis, by result."
        )
        self._delivered = meter.create_counter(
            "hubbub.events.delivered", "{event}", "Events that followers were given."
        )
        self._behind = meter.create_counter(
            "hubbub.followers.fell_behind", "{time}", "Times that a follower's buffer was full."
        )
        self._resyncs = meter.create_counter(
            "hubbub.resyncs", "{resync}", "Resyncs that followers were told of, by reason."
        )
        self._dropped = meter.create_counter(
            "hubbub.messages.dropped", "{message}", "Messages that listeners lost by being slow."
        )
        meter.create_observable_gauge(
            "hubbub.pool.connections", [self._connections], "{connection}", "Connections, by state."
        )
        meter.create_observable_gauge(
            "hubbub.pool.limit", [self._limit], "{connection}", "Connections that may be open."
        )
        meter.create_observable_gauge(
            "hubbub.pool.waiting", [self._waiting], "{caller}", "Callers that wait for a connection."
        )

    def watch(self, pool: Callable[[], PoolUse]) -> None:
        self._watched.append(pool)

    def queried(self, statement: str, seconds: float, outcome: Outcome) -> None:
        self._statements.record(seconds, {"statement": statement, "outcome": outcome})

    def waited(self, seconds: float) -> None:
        self._waits.record(seconds)

    def connected(self, line: Line) -> None:
        self._opened.add(1, {"line": line})

    def published(self, number: int, *, is_lost: bool = False) -> None:
        self._announcements.add(number, {"result": "lost" if is_lost else "sent"})

    def delivered(self) -> None:
        self._delivered.add(1)

    def fell_behind(self) -> None:
        self._behind.add(1)

    def resynced(self, reason: ResyncReason) -> None:
        self._resyncs.add(1, {"reason": reason})

    def dropped(self) -> None:
        self._dropped.add(1)

    def _connections(self, _: CallbackOptions) -> Iterator[Observation]:
        uses = [pool() for pool in self._watched]
        yield Observation(sum(use.in_use for use in uses), {"state": "in_use"})
        yield Observation(sum(use.open - use.in_use for use in uses), {"state": "idle"})

    def _limit(self, _: CallbackOptions) -> Iterator[Observation]:
        yield Observation(sum(pool().limit for pool in self._watched))

    def _waiting(self, _: CallbackOptions) -> Iterator[Observation]:
        yield Observation(sum(pool().waiting for pool in self._watched))
