"""A plugin that starts the longest test files first. A worker runs whole files, and the last one may run alone.

Each whole run measures its files for the next run. A file that was not measured is long if it is in `LONG`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pytest

MEASURED = "hubbub/seconds_of_files"
"""The key in pytest's cache."""

LONG_SECONDS = 10
"""Files that take less stay in random order."""

A_DAY = 86_400
"""More seconds than any file takes: a file that was not measured may be the longest."""

LONG = (
    "faults/",
    "docs/",
    "browser/",
    "english/",
    "test_deletions",
    "cli/",
    "embedded/",
    "injection/",
    "performance/",
    "redis/test_cluster",
    "redis/test_sentinel",
    "history/test_crashes",
    "migrations/test_crashes",
    "services/test_accounts",
    "services/test_presence_faults",
    "services/test_idle",
    "web/test_documents",
    "test_permissions",
    "history/test_import",
    "repositories/test_room_changes",
    "backup/",
    "examples/",
    "tls/",
    "secrecy/",
    "javascript/",
    "sql/",
    "services/test_changes",
    "services/feed/test_outages",
    "services/feed/test_state_machine",
    "services/feed/test_real_log",
    "test_transactions",
    "test_on_connection",
    "repositories/test_read_receipts",
    "test_testing",
)
"""The beginnings of the paths of files that no run has measured, in the order of their durations."""


def rank(file: str, seconds: Mapping[str, float]) -> float:
    """The files of the lowest rank start first. `seconds` are those that files have taken."""
    if file not in seconds:
        path = file.removeprefix("tests/")
        places = [place for place, beginning in enumerate(LONG) if path.startswith(beginning)]
        return places[0] - A_DAY if places else 0
    return -seconds[file] if seconds[file] >= LONG_SECONDS else 0


class FileOrder:
    """Measures the durations of the files of this run, and keeps those of the last one."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._measured = defaultdict[str, float](float)
        # A worker gets them from the process that started it: all workers need the same order.
        workerinput = getattr(config, "workerinput", None)
        cache = getattr(config, "cache", None)
        self._is_worker = workerinput is not None
        self._known: dict[str, float] = {}
        if workerinput is not None:
            self._known = workerinput[MEASURED]
        elif cache is not None:
            self._known = cache.get(MEASURED, {})

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:  # noqa: ANN401 - xdist has no types
        node.workerinput[MEASURED] = self._known

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: rank(_file_of(item.nodeid), self._known))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._measured[_file_of(report.nodeid)] += report.duration

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        chosen = self._config.option
        is_whole = (
            self._config.args_source is pytest.Config.ArgsSource.TESTPATHS
            and not (chosen.markexpr or chosen.keyword)
            and exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}
        )
        if is_whole and not self._is_worker and self._config.cache is not None:
            self._config.cache.set(MEASURED, {file: round(seconds, 1) for file, seconds in self._measured.items()})


def _file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(FileOrder(config))
