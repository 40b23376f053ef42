from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from time import time_ns
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from hubbub import Conflict, Hub, Settings, Unavailable, User
from hubbub.instrumentation.opentelemetry import OpenTelemetryInstrumentation
from hubbub.postgres import Pool, Statement

SLEEP = Statement("test.sleep", str, "SELECT pg_sleep($1)::text AS slept")


def _points(reader: InMemoryMetricReader) -> dict[tuple[str, ...], Any]:
    """The data points by the name of their metric and the values of their attributes."""
    found = reader.get_metrics_data()
    assert found is not None
    return {
        (metric.name, *(str(value) for value in (point.attributes or {}).values())): point
        for resource in found.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }


def test_reports_are_counted_under_their_attributes() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    instrumentation = OpenTelemetryInstrumentation(provider)
    instrumentation.queried("users.get", 0.002, "ok")
    instrumentation.waited(0.3)
    instrumentation.connected("redis-commands")
    instrumentation.published(3)
    instrumentation.published(2, is_lost=True)
    instrumentation.delivered()
    instrumentation.fell_behind()
    instrumentation.resynced("rewound")
    instrumentation.dropped()
    points = _points(reader)
    assert points["hubbub.statement.duration", "users.get", "ok"].count == 1
    assert points["hubbub.pool.wait",].sum == 0.3
    assert points["hubbub.connections.opened", "redis-commands"].value == 1
    assert points["hubbub.announcements", "sent"].value == 3
    assert points["hubbub.announcements", "lost"].value == 2
    assert points["hubbub.events.delivered",].value == 1
    assert points["hubbub.followers.fell_behind",].value == 1
    assert points["hubbub.resyncs", "rewound"].value == 1
    assert points["hubbub.messages.dropped",].value == 1
    provider.shutdown()


async def test_pool_of_an_open_hub_is_observed(settings: Settings) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    async with Hub(settings, instrumentation=OpenTelemetryInstrumentation(provider)) as hub:
        await hub.users.find_by_username("ada")
        points = _points(reader)
        assert points["hubbub.pool.limit",].value == settings.postgres.pool_size
        assert points["hubbub.pool.waiting",].value == 0
        assert points["hubbub.pool.connections", "in_use"].value == 0
        assert points["hubbub.pool.connections", "idle"].value >= 1
    points = _points(reader)
    assert points["hubbub.statement.duration", "users.find_by_username", "ok"].count == 1
    assert points["hubbub.pool.limit",].value == 0
    provider.shutdown()


class Traces:
    """The spans of an application with tracing."""

    def __init__(self) -> None:
        self.provider = TracerProvider()
        self._exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer: Tracer = self.provider.get_tracer("the application")
        self.instrumentation = OpenTelemetryInstrumentation(tracer_provider=self.provider)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    @property
    def of_hubbub(self) -> list[ReadableSpan]:
        finished = self._exporter.get_finished_spans()
        return [span for span in finished if span.kind is SpanKind.CLIENT]


@pytest.fixture
def traces() -> Iterator[Traces]:
    traces = Traces()
    yield traces
    traces.provider.shutdown()


@pytest.fixture
async def traced(settings: Settings, traces: Traces) -> AsyncIterator[Hub]:
    async with Hub(settings, instrumentation=traces.instrumentation) as hub:
        yield hub


async def test_statement_is_a_span_in_the_trace_of_the_request(traced: Hub, traces: Traces) -> None:
    before = time_ns()
    with traces.tracer.start_as_current_span("GET /rooms") as request:
        grace = await traced.users.create("grace@example.org", "grace", "not a hash")
        await traced.rooms.create("engine-room", created_by=grace.id)
    [created] = traces.named("users.create")
    assert created.kind is SpanKind.CLIENT
    assert created.parent == request.get_span_context()
    assert created.status.status_code is StatusCode.UNSET
    assert created.start_time is not None
    assert created.end_time is not None
    assert before <= created.start_time < created.end_time <= time_ns()
    assert created.attributes == {
        "db.system.name": "postgresql",
        "db.query.summary": "users.create",
        "hubbub.outcome": "ok",
    }
    assert not re.search("grace|engine-room", "".join(span.to_json() for span in traces.of_hubbub))


async def test_refused_statement_is_not_an_error_and_a_late_one_is(
    settings: Settings, traced: Hub, traces: Traces, ada: User
) -> None:
    pool = Pool(settings.postgres, traces.instrumentation)
    await pool.open()
    with traces.tracer.start_as_current_span("POST /users"):
        with pytest.raises(Conflict):
            await traced.users.create(ada.email, "countess", "not a hash")
        with pytest.raises(Unavailable):
            await pool.fetch_all(SLEEP, 30.0, deadline=asyncio.get_running_loop().time() + 2)
    await pool.close()
    [refused] = traces.named("users.create")
    [failed] = traces.named("test.sleep")
    assert refused.status.status_code is StatusCode.UNSET
    assert (refused.attributes or {})["hubbub.outcome"] == "refused"
    assert failed.status.status_code is StatusCode.ERROR
    assert (failed.attributes or {})["error.type"] == "failed"


async def test_statement_outside_of_a_trace_has_no_span(traced: Hub, traces: Traces) -> None:
    """Otherwise each heartbeat of a follower would be a trace."""
    await traced.users.find_by_username("ada")
    with traces.tracer.start_as_current_span("GET /healthz"):
        pass
    assert traces.of_hubbub == []
