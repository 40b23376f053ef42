"""Metrics of a hub for Prometheus.

    hubbub.open(instrumentation=PrometheusInstrumentation())

Needs `pip install 'hubbub[prometheus]'`. `examples/grafana.json` is a dashboard of these figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from hubbub.instrumentation import Line, Outcome, PoolInstrumentation, PoolUse
from hubbub.models import ResyncReason

BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds: from a lookup by key to the default deadline of a call."""


class PrometheusInstrumentation(PoolInstrumentation):
    """Keeps the figures in a registry, by default the one that `prometheus_client` exposes. One per registry.

    Any number of hubs of a process may share it. The pools of the open ones are added up. For several processes,
    set up `prometheus_client` as for any other application.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Raises: ValueError (the registry has figures of these names already)."""
        super().__init__()
        registry.register(_PoolCollector(self.pool_use))
        histogram = partial(Histogram, buckets=BUCKETS, registry=registry)
        counter = partial(Counter, registry=registry)
        text = "How long a statement took on its connection."
        self._statements = histogram("hubbub_statement_seconds", text, ("statement", "outcome"))
        # Kept, because finding a figure by its labels takes longer than changing it.
        self._figures: dict[tuple[str, Outcome], Histogram] = {}
        self._waits = histogram("hubbub_pool_wait_seconds", "How long a caller waited for a connection.")
        self._opened = counter("hubbub_connections_opened", "Connections opened, by kind.", ("line",))
        self._announcements = counter("hubbub_announcements", "Announcements to Redis, by result.", ("result",))
        self._delivered = counter("hubbub_events_delivered", "Events given to followers.")
        self._behind = counter("hubbub_followers_fell_behind", "Times that the buffer of a follower was full.")
        self._resyncs = counter("hubbub_resyncs", "Resyncs of followers, by reason.", ("reason",))
        self._dropped = counter("hubbub_messages_dropped", "Messages that slow listeners lost.")

    def queried(self, statement: str, seconds: float, outcome: Outcome) -> None:
        key = (statement, outcome)
        figure = self._figures.get(key)
        if figure is None:
            figure = self._figures[key] = self._statements.labels(statement, outcome)
        figure.observe(seconds)

    def waited(self, seconds: float) -> None:
        self._waits.observe(seconds)

    def connected(self, line: Line) -> None:
        self._opened.labels(line).inc()

    def published(self, number: int, *, is_lost: bool = False) -> None:
        self._announcements.labels("lost" if is_lost else "sent").inc(number)

    def delivered(self) -> None:
        self._delivered.inc()

    def fell_behind(self) -> None:
        self._behind.inc()

    def resynced(self, reason: ResyncReason) -> None:
        self._resyncs.labels(reason).inc()

    def dropped(self) -> None:
        self._dropped.inc()


class _PoolCollector(Collector):
    """Asks the pools when Prometheus asks."""

    def __init__(self, pool_use: Callable[[], PoolUse]) -> None:
        self._pool_use = pool_use

    def collect(self) -> Iterator[GaugeMetricFamily]:
        use = self._pool_use()
        text = "Connections to PostgreSQL, by state."
        connections = GaugeMetricFamily("hubbub_pool_connections", text, labels=("state",))
        connections.add_metric(("in_use",), use.in_use)
        connections.add_metric(("idle",), use.open - use.in_use)
        yield connections
        yield GaugeMetricFamily("hubbub_pool_limit", "Connections that may be open.", value=use.limit)
        yield GaugeMetricFamily("hubbub_pool_waiting", "Callers that wait for a connection.", value=use.waiting)
