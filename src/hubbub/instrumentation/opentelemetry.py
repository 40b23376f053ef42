"""Metrics of a hub for OpenTelemetry, and its statements as spans in the traces of the application.

    hubbub.open(instrumentation=OpenTelemetryInstrumentation())

Needs `pip install 'hubbub[opentelemetry]'`. The providers of the application decide where the figures go. Without
providers they go nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from time import time_ns

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter
from opentelemetry.trace import SpanKind, StatusCode, TracerProvider, get_current_span, get_tracer

from hubbub.instrumentation import Line, Outcome, PoolInstrumentation
from hubbub.models import ResyncReason


class OpenTelemetryInstrumentation(PoolInstrumentation):
    """Reports to a meter and a tracer named `hubbub` of these providers, by default those set for the process.

    Any number of hubs of a process may share it. The pools of the open ones are added up.

    A statement is a span in the trace of the task that ran it, with the name of the statement and without
    parameters. Outside of a recorded trace there is no span: statements that a hub runs by itself, such as the one
    for the heads of logs once per second, do not begin traces.
    """

    def __init__(
        self, provider: MeterProvider | None = None, *, tracer_provider: TracerProvider | None = None
    ) -> None:
        super().__init__()
        self._tracer = get_tracer("hubbub", version("hubbub"), tracer_provider)
        meter = get_meter("hubbub", version("hubbub"), provider)
        histogram, counter, gauge = meter.create_histogram, meter.create_counter, meter.create_observable_gauge
        self._statements = histogram(
            "hubbub.statement.duration", "s", "How long a statement took on its connection."
        )
        self._waits = histogram("hubbub.pool.wait", "s", "How long a caller waited for a connection.")
        self._opened = counter("hubbub.connections.opened", "{connection}", "Connections opened, by kind.")
        self._announcements = counter(
            "hubbub.announcements", "{announcement}", "Announcements to Redis, by result."
        )
        self._delivered = counter("hubbub.events.delivered", "{event}", "Events given to followers.")
        self._behind = counter(
            "hubbub.followers.fell_behind", "{time}", "Times that the buffer of a follower was full."
        )
        self._resyncs = counter("hubbub.resyncs", "{resync}", "Resyncs of followers, by reason.")
        self._dropped = counter("hubbub.messages.dropped", "{message}", "Messages that slow listeners lost.")
        gauge("hubbub.pool.connections", [self._connections], "{connection}", "Connections, by state.")
        gauge("hubbub.pool.limit", [self._number("limit")], "{connection}", "Connections that may be open.")
        gauge("hubbub.pool.waiting", [self._number("waiting")], "{caller}", "Callers that wait for a connection.")

    def queried(self, statement: str, seconds: float, outcome: Outcome) -> None:
        self._statements.record(seconds, {"statement": statement, "outcome": outcome})
        if get_current_span().is_recording():
            self._trace(statement, seconds, outcome)

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

    def _trace(self, statement: str, seconds: float, outcome: Outcome) -> None:
        """A span that ends now. A refused statement is not an error: retries of a send rely on it."""
        end = time_ns()
        attributes = {"db.system.name": "postgresql", "db.query.summary": statement, "hubbub.outcome": outcome}
        if outcome == "failed":
            attributes["error.type"] = outcome
        span = self._tracer.start_span(
            statement, kind=SpanKind.CLIENT, attributes=attributes, start_time=end - round(seconds * 1e9)
        )
        if outcome == "failed":
            span.set_status(StatusCode.ERROR)
        span.end(end)

    def _connections(self, _: CallbackOptions) -> Iterator[Observation]:
        use = self.pool_use()
        yield Observation(use.in_use, {"state": "in_use"})
        yield Observation(use.open - use.in_use, {"state": "idle"})

    def _number(self, field: str) -> Callable[[CallbackOptions], list[Observation]]:
        return lambda _: [Observation(getattr(self.pool_use(), field))]
