from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from hubbub import Hub, Settings
from hubbub.instrumentation.opentelemetry import OpenTelemetryInstrumentation


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


def test_what_is_told_is_counted_under_its_attributes() -> None:
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


async def test_of_a_hub_at_work_it_gives_the_pool(settings: Settings) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    async with Hub(settings, instrumentation=OpenTelemetryInstrumentation(provider)) as hub:
        await hub.users.find_by_username("ada")
        points = _points(reader)
        assert points["hubbub.pool.limit",].value == settings.postgres.pool_size
        assert points["hubbub.pool.waiting",].value == 0
        assert points["hubbub.pool.connections", "in_use"].value == 0
        assert points["hubbub.pool.connections", "idle"].value >= 1
    assert _points(reader)["hubbub.statement.duration", "users.find_by_username", "ok"].count == 1
    provider.shutdown()
