from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from hubbub.cli.demo import report
from hubbub.cli.demo.report import Check, Result, Section, percentile


def result(*checks: Check) -> Result:
    section = Section("Talk")
    section.total("calls", 12_345, 10.0)
    for milliseconds in [0.1234] * 1_979 + [1_234.5] * 21:
        section.record("messages sent", milliseconds / 1_000)
    section.checks = {check.what: check for check in checks}
    section.notes = ["[bold]a nickname[/bold]"]
    section.seconds = 1.25
    log: dict[str, object] = {"name": "chat.jsonl", "refused_lines": 7}
    return Result({"PostgreSQL": "18.1", "Valkey": "9.0"}, log, [section], seconds=12.34)


GOOD = Check("no message lost", 5_000)
BAD = Check("no message doubled", 3, ["[red]message 4[/red] is there twice"], ok=False)


def shown(result: Result, width: int) -> str:
    out = io.StringIO()
    report.show(result, Console(file=out, width=width))
    return out.getvalue()


def test_table_shows_counts_rates_times_and_states() -> None:
    text = shown(result(GOOD), 80)
    rows = {line.split("  ")[1]: line.split()[-4:] for line in text.splitlines() if line.startswith("  ")}
    assert rows["calls"][-2:] == ["12,345", "1,234"]
    assert rows["messages sent"] == ["0.12", "ms", "1.2", "s"]
    assert rows["no message lost"][-2:] == ["5,000", "ok"]
    assert text.splitlines()[4].split() == ["count", "/second", "p50", "p99"]
    assert "PostgreSQL 18.1 and Valkey 9.0" in text
    assert text.splitlines()[-1] == "1 of 1 checks passed in 12.3 s."


def test_numbers_are_aligned() -> None:
    text = shown(result(GOOD), 80)
    ends = set()
    for number in ("12,345", "2,000", "5,000"):
        [line] = [line for line in text.splitlines() if f" {number} " in line]
        ends.add(line.index(number) + len(number))
    assert len(ends) == 1


@pytest.mark.parametrize("width", [80, 120, 40])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert max(len(line.rstrip()) for line in shown(result(GOOD, BAD), width).splitlines()) <= width


def test_failed_check_is_explained_below_the_table() -> None:
    text = shown(result(GOOD, BAD), 80)
    assert "FAILED: no message doubled: [red]message 4[/red] is there twice" in text
    assert text.splitlines()[-1] == "1 of 2 checks passed in 12.3 s."


def test_markup_in_a_log_is_printed_as_it_is() -> None:
    assert "[bold]a nickname[/bold]" in shown(result(GOOD), 80)


def test_json_has_the_same_figures() -> None:
    output = json.loads(report.as_json(result(GOOD, BAD)))
    assert output["ok"] is False
    assert output["servers"] == {"postgresql": "18.1", "valkey": "9.0"}
    assert output["log"] == {"name": "chat.jsonl", "refused_lines": 7}
    [step] = output["steps"]
    assert step["figures"][0]["per_second"] == 1234.5
    assert step["figures"][1] == {
        "what": "messages sent",
        "count": 2000,
        "seconds": None,
        "per_second": None,
        "p50_ms": 0.123,
        "p99_ms": 1234.5,
    }
    assert [check["ok"] for check in step["checks"]] == [True, False]


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_percentile_is_not_exceeded_by_its_share_of_the_values(share: float, value: float) -> None:
    assert percentile([n / 1_000 for n in range(100, 0, -1)], share) == value


def test_percentile_of_one_value_is_that_value() -> None:
    assert percentile([0.007], 0.5) == percentile([0.007], 0.99) == 7.0


async def test_call_that_raises_is_not_counted() -> None:
    async def call(error: Exception | None = None) -> None:
        if error is not None:
            raise error

    section = Section("calls")
    with pytest.raises(KeyError):
        await section.time("read", call(KeyError()))
    await section.time("read", call())
    for _ in range(2):
        await section.time("send", call())
    section.record("received", 0.1)
    assert section.calls == 3
    assert [(figure.what, figure.count) for figure in section.figures] == [
        ("send", 2),
        ("read", 1),
        ("received", 1),
    ]


def test_check_keeps_the_first_failures_and_counts_all_comparisons() -> None:
    section = Section("checks")
    section.expect("all is well", "number", 1, 1)
    check = section.checks["all is well"]
    assert (check.ok, check.wrong) == (True, [])
    for number in range(50):
        section.expect("all is well", "number", number, "a " + "long " * 100)
    assert (check.ok, check.count, len(check.wrong)) == (False, 51, 3)
    assert check.wrong[0].startswith("number: 0 instead of a long long")
    assert len(check.wrong[0]) <= 300


@pytest.mark.parametrize(("error", "ok"), [(KeyError, True), (None, False)])
async def test_call_that_has_to_be_refused_fails_the_check_when_it_is_not(
    error: type[Exception] | None, ok: bool
) -> None:
    async def call() -> None:
        if error is not None:
            raise error

    section = Section("refusals")
    await section.expect_refusal("refused", call(), KeyError)
    assert section.checks["refused"].ok == ok


async def test_other_error_than_the_refusal_is_raised() -> None:
    async def call() -> None:
        raise ValueError("another")

    with pytest.raises(ValueError, match="another"):
        await Section("refusals").expect_refusal("refused", call(), KeyError)
