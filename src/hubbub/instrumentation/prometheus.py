"""Metrics of a hub for Prometheus.

    hubbub.open(instrumentation=PrometheusInstrumentation())

Needs `pip install 'hubbub[prometheus]'`. `examples/grafana.json` is a dashboard of these figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from hubbub.instrumentation import Instrumentation, Line, Outcome, PoolUse, WatchedPools
from hubbub.models import ResyncReason

BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds: from a lookup by key to the default deadline of a call."""


class PrometheusInstrumentation(Instrumentation):
    """Keeps the figures in a registry, by default the one that `prometheus_client` exposes. One per registry.

    Any number of hubs of a process may share it. The pools of the open ones are added up. For several processes,
    set up `prometheus_client` as for any other application.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Raises: ValueError (the registry has figures of these names already)."""
        self._pools = WatchedPools()
        registry.register(_PoolCollector(self._pools))
        self._statements = Histogram(
            "hubbub_statement_seconds",
            "How long a statement took on its connection.",
            ("statement", "outcome"),
            buckets=BUCKETS,
            registry=registry,
        )
        # Kept, because finding a figure by its labels takes longer than changing it.
        self._figures: dict[tuple[str, Outcome], Histogram] = {}
        self._waits = Histogram(
            "hubbub_pool_wait_seconds",
            "How long a caller waited for a connection.",
            buckets=BUCKETS,
            registry=registry,
        )
        self._opened = Counter(
            "hubbub_connections_opened", "Connections opened, by kind.", ("line",), registry=registry
        )
        self._announcements = Counter(
            "hubbub_announcements", "Announcements to Redis, by result.", ("result",), registry=registry
        )
        self._delivered = Counter("hubbub_events_delivered", "Events given to followers.", registry=registry)
        self._behind = Counter(
            "hubbub_followers_fell_behind", "Times that the buffer of a follower was full.", registry=registry
        )
        self._resyncs = Counter(
            "hubbub_resyncs", "Resyncs of followers, by reason.", ("reason",), registry=registry
        )
        self._dropped = Counter("hubbub_messages_dropped", "Messages that slow listeners lost.", registry=registry)

    def watch(self, pool: Callable[[], PoolUse]) -> None:
        self._pools.add(pool)

    def unwatch(self, pool: Callable[[], PoolUse]) -> None:
        self._pools.remove(pool)

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

    def __init__(self, pools: WatchedPools) -> None:
        self._pools = pools

    def collect(self) -> Iterator[GaugeMetricFamily]:
        use = self._pools.use()
        connections = GaugeMetricFamily(
            "hubbub_pool_connections", "Connections to PostgreSQL, by state.", labels=("state",)
        )
        connections.add_metric(("in_use",), use.in_use)
        connections.add_metric(("idle",), use.open - use.in_use)
        yield connections
        yield GaugeMetricFamily("hubbub_pool_limit", "Connections that may be open.", value=use.limit)
        yield GaugeMetricFamily("hubbub_pool_waiting", "Callers that wait for a connection.", value=use.waiting)
