"""The report, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Final

import msgspec
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hubbub.cli._doctor.examination import Section
from hubbub.cli._doctor.findings import Finding, Outcome, Severity

WIDTH: Final = 100
"""Sentences that are wider are tiresome to read."""

FINDING: Final = 1
OUT_OF_REACH: Final = 3

STYLES: Final = {"ok": "green", "error": "bold red", "warning": "yellow", "note": "cyan", "unseen": "dim"}


class Report(msgspec.Struct, frozen=True):
    """All that was seen. `exit_status` is 0 without findings, 1 with one, 3 with a server out of reach."""

    hubbub: str
    exit_status: int
    sections: tuple[Section, ...]


def report(sections: Sequence[Section]) -> Report:
    """What the sections come to."""
    status = 0
    if any(section.findings for section in sections):
        status = FINDING
    if any(section.out_of_reach for section in sections):
        status = OUT_OF_REACH
    return Report(version("hubbub"), status, tuple(sections))


def as_json(told: Report) -> str:
    """The fields of `Report`, `Section`, `Outcome` and `Finding`, by their names."""
    return msgspec.json.format(msgspec.json.encode(told), indent=2).decode()


def show(told: Report, console: Console) -> None:
    """A line a check, and below it what was found."""
    width = min(console.width, WIDTH)
    for section in told.sections:
        console.print(_section(section), width=width)
        console.print()
    console.print(_sum(told), width=width)


def _section(section: Section) -> RenderableType:
    where = f" at {section.where}" if section.where else ""
    lines: list[RenderableType] = [Text(f"{section.name}{where}", style="bold")]
    for outcome in section.checks:
        lines.append(_line(_state(outcome), outcome.title, outcome.remark or outcome.unseen or ""))
        lines += [_finding(finding) for finding in outcome.findings]
    if section.out_of_reach:
        lines.append(_line("error", "out of reach", section.out_of_reach))
    return Group(*lines)


def _line(state: str, title: str, text: str) -> RenderableType:
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_column(width=9)
    line.add_column(width=13)
    line.add_column(overflow="fold")
    if state == "unseen":
        text = f"could not look: {text}"
    line.add_row(Text(f"  {state}", style=STYLES[state]), Text(title), Text(text, style="dim"))
    return line


def _finding(finding: Finding) -> RenderableType:
    said = Text(f"{finding.meaning}\n")
    said.append(finding.remedy, style="bold")
    return Padding(said, (0, 0, 0, 11), expand=False)


def _state(outcome: Outcome) -> str:
    """The worst of what was found."""
    if outcome.unseen is not None:
        return "unseen"
    found = {finding.severity for finding in outcome.findings}
    return next((severity.value for severity in Severity if severity in found), "ok")


def _sum(told: Report) -> Text:
    findings = [finding for section in told.sections for check in section.checks for finding in check.findings]
    counts = [
        _count(sum(1 for finding in findings if finding.severity is severity), severity.value)
        for severity in Severity
    ]
    unseen = sum(check.unseen is not None for section in told.sections for check in section.checks)
    said = list(_without_none(counts))
    if unseen:
        said.append(f"{_count(unseen, 'check')} could not look")
    away = [section.name for section in told.sections if section.out_of_reach]
    if away:
        said.append(f"out of reach: {', '.join(away)}")
    return Text(f"{', '.join(said) or 'nothing found'}.", style="bold")


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}" if number else ""


def _without_none(counts: Iterable[str]) -> Iterator[str]:
    return (count for count in counts if count)
