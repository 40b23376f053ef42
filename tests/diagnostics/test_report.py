from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

from hubbub.cli.doctor import show
from hubbub.diagnostics.report import CheckResult, Finding, Section, as_json, error, note, summarize, warning


def section(*findings: Finding, unseen: str | None = None, away: str | None = None) -> Section:
    result = CheckResult("redis.memory", "memory", "" if unseen else "noeviction", unseen, findings)
    return Section("redis", "Redis 7.2.4", "127.0.0.1:6379", away, (result,))


@pytest.mark.parametrize(
    ("seen", "status"),
    [
        (section(), 0),
        (section(note("It is so.", "Know it.")), 0),
        (section(unseen="INFO is not allowed"), 0),
        (section(warning("It will hurt.", "Change it.")), 1),
        (section(error("It is broken.", "Mend it.")), 1),
        (section(error("It is broken.", "Mend it."), away="no answer"), 3),
    ],
)
def test_exit_status_is_that_of_the_worst_finding(seen: Section, status: int) -> None:
    assert summarize([section(), seen]).exit_status == status


def shown(seen: Section, width: int = 80) -> list[str]:
    paper = io.StringIO()
    show(summarize([seen]), Console(file=paper, width=width))
    return [line.rstrip() for line in paper.getvalue().splitlines()]


def test_check_is_a_line_with_its_findings_below() -> None:
    assert shown(section(warning("It will hurt.", "Change it."))) == [
        "Redis 7.2.4 at 127.0.0.1:6379",
        "  warning  memory         noeviction",
        "           It will hurt.",
        "           Change it.",
        "",
        "1 warning.",
    ]


def test_last_line_counts_findings_and_skipped_checks() -> None:
    assert shown(section())[-1] == "nothing found."
    many = section(error("a", "b"), error("a", "b"), note("a", "b"))
    assert shown(many)[-1] == "2 errors, 1 note."
    assert shown(section(unseen="not allowed"))[-1] == "1 skipped check."
    assert shown(section(away="no answer"))[-1] == "out of reach: Redis 7.2.4."


def test_no_line_is_wider_than_the_terminal() -> None:
    wordy = section(error("It is broken, " * 20, "Mend it."), unseen=None)
    assert max(len(line) for line in shown(wordy, width=60)) <= 60


def test_json_has_the_same_fields_as_before() -> None:
    told = msgspec.json.decode(as_json(summarize([section(error("It is broken.", "Mend it."))])))
    assert told.keys() == {"hubbub", "exit_status", "sections"}
    [seen] = told["sections"]
    assert seen.keys() == {"kind", "name", "where", "out_of_reach", "checks"}
    [check] = seen["checks"]
    assert check == {
        "name": "redis.memory",
        "title": "memory",
        "remark": "noeviction",
        "unseen": None,
        "findings": [{"severity": "error", "meaning": "It is broken.", "remedy": "Mend it."}],
    }
