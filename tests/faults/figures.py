"""The table of guarantees: what was done to the chat, what was found, and whether the promise was kept.

A plugin of pytest's, so that a test may show a guarantee wherever it stands.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

FIGURE = "figure"
GUARANTEE = "guarantee"


class Figures:
    """What one test has found. It is kept with the report of the test, where the table finds it."""

    def __init__(self, node: pytest.Item) -> None:
        self._node = node
        marker = node.get_closest_marker(GUARANTEE)
        assert marker is not None, "the test does not say which guarantee it shows"
        number, fault = marker.args
        node.user_properties.append((GUARANTEE, f"{number}\n{fault}"))

    def found(self, figure: str) -> None:
        """Say it before asserting anything of it, so that the table has the figure of a broken promise too."""
        self._node.user_properties.append((FIGURE, figure))


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
    """Where a test with the marker `guarantee` says what it found."""
    return Figures(request.node)


def table(reports: Iterable[pytest.TestReport | pytest.CollectReport]) -> list[str]:
    """One line for each test that shows a guarantee, in the order of the guarantees. Empty without any."""
    rows = []
    for report in reports:
        if isinstance(report, pytest.CollectReport):
            continue  # of a module that cannot be read; pytest says so itself
        properties = report.user_properties
        guarantees = [str(value) for name, value in properties if name == GUARANTEE]
        if guarantees and (report.when == "call" or report.failed):
            number, fault = guarantees[0].split("\n")
            figure = "; ".join(str(value) for name, value in properties if name == FIGURE) or "none"
            rows.append((number, fault, figure, "kept" if report.passed else "BROKEN"))
    if not rows:
        return []
    rows.sort(key=lambda row: (int(row[0][1:]), row[1]))
    return ["", *_lines([("", "what was done", "what was found", "promise"), *rows])]


def _lines(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
