from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

from hubbub.cli._doctor.examination import Section
from hubbub.cli._doctor.findings import Finding, Outcome, error, note, warning
from hubbub.cli._doctor.report import as_json, report, show


def section(*findings: Finding, unseen: str | None = None, away: str | None = None) -> Section:
    outcome = Outcome("redis.memory", "memory", "" if unseen else "noeviction", unseen, findings)
    return Section("redis", "Redis 7.2.4", "127.0.0.1:6379", away, (outcome,))


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
def test_the_exit_status_says_the_worst(seen: Section, status: int) -> None:
    assert report([section(), seen]).exit_status == status


def shown(seen: Section, width: int = 80) -> list[str]:
    paper = io.StringIO()
    show(report([seen]), Console(file=paper, width=width))
    return [line.rstrip() for line in paper.getvalue().splitlines()]


def test_a_check_is_a_line_and_what_it_found_stands_below() -> None:
    assert shown(section(warning("It will hurt.", "Change it."))) == [
        "Redis 7.2.4 at 127.0.0.1:6379",
        "  warning  memory         noeviction",
        "           It will hurt.",
        "           Change it.",
        "",
        "1 warning.",
    ]


def test_it_ends_with_how_much_there_is_of_what() -> None:
    assert shown(section())[-1] == "nothing found."
    many = section(error("a", "b"), error("a", "b"), note("a", "b"))
    assert shown(many)[-1] == "2 errors, 1 note."
    assert shown(section(unseen="not allowed"))[-1] == "1 check could not look."
    assert shown(section(away="no answer"))[-1] == "out of reach: Redis 7.2.4."


def test_no_line_is_wider_than_the_terminal() -> None:
    wordy = section(error("It is broken, " * 20, "Mend it."), unseen=None)
    assert max(len(line) for line in shown(wordy, width=60)) <= 60


def test_for_programs_it_is_json_with_the_same_in_it() -> None:
    told = msgspec.json.decode(as_json(report([section(error("It is broken.", "Mend it."))])))
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
