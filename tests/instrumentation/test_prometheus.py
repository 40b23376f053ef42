from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from hubbub import Hub, Settings
from hubbub.instrumentation.prometheus import PrometheusInstrumentation
from waiting import until

PROJECT = Path(__file__).parents[2]
DASHBOARD = PROJECT / "examples" / "grafana.json"


def _tell_all(instrumentation: PrometheusInstrumentation) -> None:
    instrumentation.queried("users.get", 0.002, "ok")
    instrumentation.waited(0.3)
    instrumentation.connected("redis-commands")
    instrumentation.published(3)
    instrumentation.published(2, is_lost=True)
    instrumentation.delivered()
    instrumentation.fell_behind()
    instrumentation.resynced("rewound")
    instrumentation.dropped()


def test_reports_are_counted_under_their_labels() -> None:
    registry = CollectorRegistry()
    _tell_all(PrometheusInstrumentation(registry))
    values = {
        ("hubbub_statement_seconds_count", "statement", "users.get", "outcome", "ok"): 1,
        ("hubbub_pool_wait_seconds_sum",): 0.3,
        ("hubbub_connections_opened_total", "line", "redis-commands"): 1,
        ("hubbub_announcements_total", "result", "sent"): 3,
        ("hubbub_announcements_total", "result", "lost"): 2,
        ("hubbub_events_delivered_total",): 1,
        ("hubbub_followers_fell_behind_total",): 1,
        ("hubbub_resyncs_total", "reason", "rewound"): 1,
        ("hubbub_messages_dropped_total",): 1,
    }
    for (name, *labels), value in values.items():
        assert registry.get_sample_value(name, dict(zip(labels[::2], labels[1::2], strict=True))) == value, name


async def test_pools_of_open_hubs_are_added_up(settings: Settings) -> None:
    registry = CollectorRegistry()
    instrumentation = PrometheusInstrumentation(registry)
    async with (
        Hub(settings, instrumentation=instrumentation) as hub,
        Hub(settings, instrumentation=instrumentation),
    ):
        await hub.users.find_by_username("ada")
        assert registry.get_sample_value("hubbub_pool_limit") == 2 * settings.postgres.pool_size
        assert registry.get_sample_value("hubbub_pool_waiting") == 0
        # A hub may run a background statement at this moment.
        await until(lambda: registry.get_sample_value("hubbub_pool_connections", {"state": "in_use"}) == 0)
        idle = registry.get_sample_value("hubbub_pool_connections", {"state": "idle"})
        assert idle is not None
        assert idle >= 2
    assert registry.get_sample_value("hubbub_pool_limit") == 0
    labels = {"statement": "users.find_by_username", "outcome": "ok"}
    assert registry.get_sample_value("hubbub_statement_seconds_count", labels) == 1


def test_every_figure_is_documented() -> None:
    registry = CollectorRegistry()
    _tell_all(PrometheusInstrumentation(registry))
    there_are = set(re.findall(r"^# TYPE (hubbub_\w+)", generate_latest(registry).decode(), re.MULTILINE))
    documented = set(re.findall(r"`(hubbub_\w+)`", (PROJECT / "docs" / "reference" / "metrics.md").read_text()))
    assert {name for name in there_are if not name.endswith("_created")} == documented


def test_dashboard_queries_existing_figures() -> None:
    registry = CollectorRegistry()
    _tell_all(PrometheusInstrumentation(registry))
    there_are = set(re.findall(r"^(hubbub_\w+)", generate_latest(registry).decode(), re.MULTILINE))
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    asked_for = {name for expression in expressions for name in re.findall(r"hubbub_\w+", expression)}
    assert asked_for <= there_are
    assert len(asked_for) > 8
