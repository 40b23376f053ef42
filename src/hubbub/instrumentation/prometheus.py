"""A hub's figures for Prometheus. Needs `pip install 'hubbub[prometheus]'`.

    hubbub.open(instrumentation=PrometheusInstrumentation())

`examples/grafana.json` is a dashboard of these figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from hubbub.instrumentation.instrumentation import Instrumentation, Line, Outcome, PoolUse
from hubbub.models import ResyncReason

BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds. From a lookup by key to the default deadline of a call."""


class PrometheusInstrumentation(Instrumentation):
    """Keeps the figures in a registry, by default that which `prometheus_client` exposes. One a registry.

    Any number of hubs of a process may share it; the pools of those that are open are then added up. Hubs in
    several event loops or processes are Prometheus' own matter, as with any other application.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Raises `ValueError` for a registry that has figures of these names already."""
        self._pools = _Pools()
        registry.register(self._pools)
        self._statements = Histogram(
            "hubbub_statement_seconds",
            "How long a statement took on its connection.",
            ("statement", "outcome"),
            buckets=BUCKETS,
            registry=registry,
        )
        # Kept, because to ask for a figure by its labels takes longer than to change it.
        self._of: dict[tuple[str, Outcome], Histogram] = {}
        self._waits = Histogram(
            "hubbub_pool_wait_seconds",
            "How long a caller waited who found no connection free.",
            buckets=BUCKETS,
            registry=registry,
        )
        self._opened = Counter(
            "hubbub_connections_opened", "Connections opened, by kind.", ("line",), registry=registry
        )
        self._announcements = Counter(
            "hubbub_announcements", "Announcements to Redis, by result.", ("result",), registry=registry
        )
        self._delivered = Counter(
            "hubbub_events_delivered", "Events that followers were given.", registry=registry
        )
        self._behind = Counter(
            "hubbub_followers_fell_behind", "Times that a follower's buffer was full.", registry=registry
        )
        self._resyncs = Counter(
            "hubbub_resyncs", "Resyncs that followers were told of, by reason.", ("reason",), registry=registry
        )
        self._dropped = Counter(
            "hubbub_messages_dropped", "Messages that listeners lost by being slow.", registry=registry
        )

    def watch(self, pool: Callable[[], PoolUse]) -> None:
        self._pools.watch(pool)

    def unwatch(self, pool: Callable[[], PoolUse]) -> None:
        self._pools.unwatch(pool)

    def queried(self, statement: str, seconds: float, outcome: Outcome) -> None:
        key = (statement, outcome)
        figure = self._of.get(key)
        if figure is None:
            figure = self._of[key] = self._statements.labels(statement, outcome)
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


class _Pools(Collector):
    """Asks the pools when Prometheus asks."""

    def __init__(self) -> None:
        self._watched: list[Callable[[], PoolUse]] = []

    def watch(self, pool: Callable[[], PoolUse]) -> None:
        self._watched.append(pool)

    def unwatch(self, pool: Callable[[], PoolUse]) -> None:
        self._watched.remove(pool)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        uses = [pool() for pool in tuple(self._watched)]  # a copy: a scrape is a thread, and hubs come and go
        connections = GaugeMetricFamily(
            "hubbub_pool_connections", "Connections to PostgreSQL, by state.", labels=("state",)
        )
        connections.add_metric(("in_use",), sum(use.in_use for use in uses))
        connections.add_metric(("idle",), sum(use.open - use.in_use for use in uses))
        yield connections
        limit = sum(use.limit for use in uses)
        yield GaugeMetricFamily("hubbub_pool_limit", "Connections that may be open.", value=limit)
        waiting = sum(use.waiting for use in uses)
        yield GaugeMetricFamily("hubbub_pool_waiting", "Callers that wait for one.", value=waiting)
