from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from hubbub.cli._demo import report
from hubbub.cli._demo.chatlog import Refusal
from hubbub.cli._demo.figures import Check, Figure, Section
from hubbub.cli._demo.run import Result
from hubbub.history import Renamed


def result(*checks: Check) -> Result:
    figures = (
        Figure(what="calls in all", count=12_345, seconds=10.0),
        Figure(what="send a message", count=2_000, p50_ms=0.1234, p99_ms=1_234.5),
    )
    section = Section(
        title="Talk", seconds=1.25, figures=figures, checks=checks, notes=("[bold]a nickname[/bold]",)
    )
    return Result(
        servers={"PostgreSQL": "18.1", "Valkey": "9.0"},
        log="chat.jsonl",
        sections=(section,),
        renamed=(Renamed("Mez", "Mez-2", "taken"),),
        refused_lines=1,
        first_refused=(Refusal(7, "not JSON"),),
        seconds=12.34,
    )


GOOD = Check(what="nothing is lost", count=5_000)
BAD = Check(what="nothing is twice", count=3, wrong=("[red]message 4[/red] is there twice",))


def shown(result: Result, width: int) -> str:
    out = io.StringIO()
    report.show(result, Console(file=out, width=width))
    return out.getvalue()


def test_the_table_says_what_ran_how_many_how_fast_and_whether_it_held() -> None:
    text = shown(result(GOOD), 80)
    rows = {line.split("  ")[1]: line.split()[-4:] for line in text.splitlines() if line.startswith("  ")}
    assert rows["calls in all"][-2:] == ["12,345", "1,234"]
    assert rows["send a message"] == ["0.12", "ms", "1.2", "s"]
    assert rows["nothing is lost"][-2:] == ["5,000", "ok"]
    assert "PostgreSQL 18.1 and Valkey 9.0" in text
    assert "All 1 checks hold. 12.3 s in all" in text


def test_numbers_stand_in_line() -> None:
    text = shown(result(GOOD), 80)
    ends = set()
    for number in ("12,345", "2,000", "5,000"):
        [line] = [line for line in text.splitlines() if f" {number} " in line]
        ends.add(line.index(number) + len(number))
    assert len(ends) == 1


@pytest.mark.parametrize("width", [80, 120, 40])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert max(len(line.rstrip()) for line in shown(result(GOOD, BAD), width).splitlines()) <= width


def test_a_check_that_does_not_hold_is_explained_below_the_table() -> None:
    text = shown(result(GOOD, BAD), 80)
    assert "NOT OK: nothing is twice: [red]message 4[/red] is there twice" in text
    assert "1 of 2 checks do NOT hold" in text


def test_what_a_log_says_is_not_taken_for_markup() -> None:
    assert "[bold]a nickname[/bold]" in shown(result(GOOD), 80)


def test_json_has_the_same_figures() -> None:
    told = json.loads(report.as_json(result(GOOD, BAD)))
    assert told["ok"] is False
    assert told["servers"] == {"postgresql": "18.1", "valkey": "9.0"}
    assert told["log"]["first_refused"] == [{"line": 7, "reason": "not JSON"}]
    assert told["log"]["renamed"] == [{"nickname": "Mez", "username": "Mez-2", "reason": "taken"}]
    [step] = told["steps"]
    assert step["figures"][0]["per_second"] == 1234.5
    assert step["figures"][1] == {
        "what": "send a message",
        "count": 2000,
        "seconds": None,
        "per_second": None,
        "p50_ms": 0.123,
        "p99_ms": 1234.5,
    }
    assert [check["ok"] for check in step["checks"]] == [True, False]
