"""The report of the demo: sections of figures and checks, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Mapping
from dataclasses import asdict, dataclass, field
from time import perf_counter
from types import MappingProxyType
from typing import Final, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hubbub.history import Refusals, Renamed

T = TypeVar("T")

WIDEST: Final = 96
"""Columns. In a wider table the eye loses the line between a name and its numbers."""

EXAMPLES_KEPT: Final = 10
EXAMPLES_SHOWN: Final = 3


@dataclass(slots=True)
class Check:
    """A guarantee: how many times it was compared, and the first failures."""

    what: str
    count: int = 0
    wrong: list[str] = field(default_factory=list)

    def expect(self, holds: bool, otherwise: str) -> None:
        self.count += 1
        if not holds and len(self.wrong) < EXAMPLES_KEPT:
            self.wrong.append(otherwise)

    @property
    def ok(self) -> bool:
        return not self.wrong


@dataclass(frozen=True, slots=True)
class Figure:
    """Something that was done `count` times, with the rate of all or the times of single calls."""

    what: str
    count: int
    seconds: float | None = None
    per_second: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None


class Section:
    """The result of one step, which times its calls and makes its checks here."""

    def __init__(self, title: str, checks: Mapping[str, str] = MappingProxyType({})) -> None:
        """`checks` are the guarantees, by the names under which `expect` knows them."""
        self.title = title
        self.seconds = 0.0
        self.checks = {name: Check(what) for name, what in checks.items()}
        self.notes: list[str] = []
        self._begin = perf_counter()
        self._totals: list[Figure] = []
        self._times: dict[str, list[float]] = {}

    async def time(self, what: str, call: Awaitable[T]) -> T:
        """The result of the call, which is timed. A call that raises is not counted."""
        begin = perf_counter()
        result = await call
        self.record(what, perf_counter() - begin)
        return result

    def record(self, what: str, seconds: float) -> None:
        self._times.setdefault(what, []).append(seconds)

    def expect(self, check: str, holds: bool, otherwise: str) -> None:
        """Count a comparison. `otherwise` describes what was found if it does not hold."""
        self.checks[check].expect(holds, otherwise)

    def total(self, what: str, count: int, seconds: float | None = None) -> None:
        rate = round(count / seconds, 3) if seconds else None
        self._totals.append(Figure(what, count, seconds and round(seconds, 3), rate))

    def total_calls(self) -> None:
        """The calls so far, in the time since the section began."""
        self.total("calls", sum(map(len, self._times.values())), perf_counter() - self._begin)

    def end(self) -> None:
        self.seconds = perf_counter() - self._begin

    @property
    def figures(self) -> list[Figure]:
        """The most frequent first."""
        timed = [
            Figure(what, len(times), p50_ms=percentile(times, 0.50), p99_ms=percentile(times, 0.99))
            for what, times in self._times.items()
        ]
        return sorted([*self._totals, *timed], key=lambda figure: -figure.count)


def percentile(seconds: list[float], share: float) -> float:
    """In milliseconds: the smallest of the values that at least this share of them does not exceed."""
    return round(sorted(seconds)[max(0, -int(-share * len(seconds) // 1) - 1)] * 1000, 3)


@dataclass(frozen=True, slots=True)
class Result:
    """All that the demo found. `seconds` is from before the servers start until after they have stopped."""

    servers: dict[str, str]
    log: str
    refusals: Refusals
    renamed: list[Renamed]
    sections: list[Section]
    seconds: float

    @property
    def checks(self) -> list[Check]:
        return [check for section in self.sections for check in section.checks.values()]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)


def show(result: Result, console: Console) -> None:
    """Print the table, the notes about the log, the failures, and the verdict as the last line."""
    servers = " and ".join(f"{name} {version}" for name, version in result.servers.items())
    console.print(Text(f"hubbub on {servers}, started for this run", style="bold"))
    console.print(Text("Each change is on disk before it is acknowledged.", style="dim"))
    for section in result.sections:
        console.print()
        console.print(Text(f"{section.title} ({section.seconds:.1f} s)", style="bold"))
        console.print(_table(section, console.width, show_header=section is result.sections[0]))
    console.print()
    for note in (note for section in result.sections for note in section.notes):
        console.print(Text(note))
    for check in result.checks:
        for wrong in check.wrong[:EXAMPLES_SHOWN]:
            console.print(Text(f"FAILED: {check.what}: {wrong}", style="bold red"))
    passed = sum(check.ok for check in result.checks)
    verdict = f"{passed} of {len(result.checks)} checks passed in {result.seconds:.1f} s."
    console.print(Text("The servers are stopped and their files deleted.", style="dim"))
    console.print(Text(verdict, style="bold green" if result.ok else "bold red"))


def _table(section: Section, width: int, *, show_header: bool) -> Table:
    """Widths are fixed, so that the numbers of all sections stand in line."""
    table = Table(box=None, padding=(0, 0, 0, 1), pad_edge=False, show_header=show_header, header_style="dim")
    table.width = min(width, WIDEST)
    table.add_column("", ratio=1)
    for heading in ("count", "per\nsecond", "p50", "p99"):
        table.add_column(heading, justify="right", vertical="bottom", width=7)
    table.add_column("", width=6, vertical="bottom")
    for figure in section.figures:
        rate = "" if figure.per_second is None else f"{figure.per_second:,.0f}"
        times = duration(figure.p50_ms), duration(figure.p99_ms)
        table.add_row(Text(f"  {figure.what}"), f"{figure.count:,}", rate, *times)
    for check in section.checks.values():
        state = Text("ok", style="green") if check.ok else Text("FAILED", style="bold red")
        table.add_row(Text(f"  {check.what}"), f"{check.count:,}", "", "", "", state)
    return table


def duration(milliseconds: float | None) -> str:
    """With its unit, and no more digits than a reader has use for."""
    if milliseconds is None:
        return ""
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.1f} s"
    digits = 2 if milliseconds < 1 else 1 if milliseconds < 10 else 0
    return f"{milliseconds:.{digits}f} ms"


def as_json(result: Result) -> str:
    """One object with every figure of the table. Times of single calls are in milliseconds."""
    report = {
        "ok": result.ok,
        "seconds": round(result.seconds, 3),
        "servers": {name.lower(): version for name, version in result.servers.items()},
        "log": {
            "name": result.log,
            "refused_lines": result.refusals.count,
            "first_refused": [refusal._asdict() for refusal in result.refusals.first],
            "renamed": [renamed._asdict() for renamed in result.renamed],
        },
        "steps": [
            {
                "title": section.title,
                "seconds": round(section.seconds, 3),
                "figures": [asdict(figure) for figure in section.figures],
                "checks": [asdict(check) | {"ok": check.ok} for check in section.checks.values()],
            }
            for section in result.sections
        ],
    }
    return json.dumps(report, indent=2)
