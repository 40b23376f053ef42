"""The table of guarantees: the fault, the measured figure, and whether the guarantee holds.

It is a plugin of pytest, so that any test may show a guarantee. `SCALE` sets the size of these tests.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import pytest

FIGURE = "figure"
GUARANTEE = "guarantee"


@dataclass(frozen=True, slots=True)
class Scale:
    """The size of the fault suite: small in `make test`, full with FAULTS=full (`make faults`)."""

    seeds: int
    """Kills of PostgreSQL under load, each in another chat."""
    messages: int
    """Messages of a chat in which PostgreSQL is killed, or answers are lost."""
    fault_seconds: float
    """The time that a server is down."""
    followers: int
    """Processes that follow while a server is down."""
    stalled: int
    """Messages that are sent while a follower reads nothing."""
    cancelled: int
    """Calls that are cancelled."""
    fleet: int
    """Processes that open at once."""


IS_FULL = os.environ.get("FAULTS") == "full"
SCALE = (
    Scale(
        seeds=5,
        messages=4_000,
        fault_seconds=4,
        followers=2,
        stalled=50_000,
        cancelled=1_000,
        fleet=200,
    )
    if IS_FULL
    else Scale(
        seeds=1,
        messages=500,
        fault_seconds=0.5,
        followers=1,
        stalled=6_000,
        cancelled=200,
        fleet=30,
    )
)


class Figures:
    """The figures of one test. They are kept in its report, from which the table takes them."""

    def __init__(self, node: pytest.Item) -> None:
        self._node = node
        marker = node.get_closest_marker(GUARANTEE)
        assert marker is not None, "the test does not name its guarantee"
        number, fault = marker.args
        node.user_properties.append((GUARANTEE, f"{number}\n{fault}"))

    def found(self, figure: str) -> None:
        """Add a figure before the assertions about it, so that the table also has those of broken guarantees."""
        self._node.user_properties.append((FIGURE, figure))


def in_time(seconds: float, limit: float) -> bool:
    """Whether it took no longer than promised. True in `make test`, which may run on a busy machine."""
    return seconds <= limit or not IS_FULL


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "guarantee(number, fault): the test shows a guarantee of docs/guarantees.md"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for group in ("passed", "failed", "error") for report in terminalreporter.getreports(group)]
    for line in table(reports):
        terminalreporter.write_line(line)


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """Collects the figures of a test with the marker `guarantee`."""
    return Figures(request.node)


def table(reports: Iterable[pytest.TestReport | pytest.CollectReport]) -> list[str]:
    """One line for each test that shows a guarantee, in the order of the guarantees. Empty without any."""
    rows = []
    for report in reports:
        if isinstance(report, pytest.CollectReport):
            continue  # the report of a module that cannot be read, which pytest shows itself
        properties = report.user_properties
        guarantees = [str(value) for name, value in properties if name == GUARANTEE]
        if guarantees and (report.when == "call" or report.failed):
            number, fault = guarantees[0].split("\n")
            figure = "; ".join(str(value) for name, value in properties if name == FIGURE) or "none"
            rows.append((number, fault, figure, "kept" if report.passed else "BROKEN"))
    if not rows:
        return []
    rows.sort(key=lambda row: (int(row[0][1:]), row[1]))
    return ["", *_lines([("", "fault", "found", "guarantee"), *rows])]


def _lines(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
