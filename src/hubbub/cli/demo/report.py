"""The report of the demo: sections of figures and checks, as a table for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Awaitable
from math import ceil
from textwrap import shorten
from time import perf_counter
from typing import TypeVar

import msgspec
from rich.console import Console
from rich.text import Text

T = TypeVar("T")


class Check(msgspec.Struct):
    """A guarantee: how many times it was compared, and the first failures."""

    what: str
    count: int = 0
    wrong: list[str] = []
    ok: bool = True


class Figure(msgspec.Struct):
    """Something that was done `count` times, with the rate of all or the times of single calls."""

    what: str
    count: int
    seconds: float | None = None
    per_second: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None


class Section:
    """The result of one step, which times its calls and makes its checks here."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.seconds = 0.0
        self.notes: list[str] = []
        self.calls = 0
        self.checks: dict[str, Check] = {}
        self._totals: list[Figure] = []
        self._times: dict[str, list[float]] = {}

    async def time(self, what: str, call: Awaitable[T]) -> T:
        """The result of the call, which is timed. A call that raises is not counted."""
        begin = perf_counter()
        result = await call
        self.record(what, perf_counter() - begin)
        self.calls += 1
        return result

    def record(self, what: str, seconds: float) -> None:
        self._times.setdefault(what, []).append(seconds)

    def total(self, what: str, count: int, seconds: float | None = None) -> None:
        rates = (round(seconds, 3), round(count / seconds, 3)) if seconds else ()
        self._totals.append(Figure(what, count, *rates))

    def expect(self, check: str, what: str, found: object, wanted: object = True) -> None:
        """Count a comparison for the check of this label. `what` describes the value that was found."""
        one = self.checks.setdefault(check, Check(check))
        one.count += 1
        if found != wanted and len(one.wrong) < 3:
            one.wrong.append(shorten(f"{what}: {found} instead of {wanted}", 300, placeholder=" ..."))
            one.ok = False

    async def expect_refusal(self, check: str, call: Awaitable[object], error: type[Exception]) -> None:
        found: object = "no error"
        try:
            await call
        except error:
            found = error
        self.expect(check, "outcome of a call", found, error)

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
    return round(sorted(seconds)[ceil(share * len(seconds)) - 1] * 1000, 3)


class Result:
    """All that the demo found. `seconds` is from before the servers start until after they have stopped."""

    def __init__(
        self, servers: dict[str, str], log: dict[str, object], sections: list[Section], seconds: float
    ) -> None:
        self.servers, self.log, self.sections, self.seconds = servers, log, sections, seconds
        self.checks = [check for section in sections for check in section.checks.values()]
        self.ok = all(check.ok for check in self.checks)


def show(result: Result, console: Console) -> None:
    """Print figures and checks, the notes about the log, the failures, and the verdict as the last line."""
    servers = " and ".join(f"{name} {version}" for name, version in result.servers.items())
    console.print(Text(f"hubbub on {servers}, started for this run", style="bold"))
    console.print(Text("Each change is on disk before it is acknowledged.", style="dim"))
    for section in result.sections:
        console.print(Text(f"\n{section.title} ({section.seconds:.1f} s)", style="bold"))
        if section is result.sections[0]:
            console.print(_row("", "count", "/second", "p50", "p99"), style="dim")
        for figure in section.figures:
            rate = "" if figure.per_second is None else f"{figure.per_second:,.0f}"
            cells = f"{figure.count:,}", rate, duration(figure.p50_ms), duration(figure.p99_ms)
            console.print(_row(figure.what, *cells))
        for check in section.checks.values():
            state = ("ok", "green") if check.ok else ("FAILED", "bold red")
            console.print(_row(check.what, f"{check.count:,}", "", "", "").append(*state))
    console.print()
    for note in (note for section in result.sections for note in section.notes):
        console.print(Text(note))
    for check in result.checks:
        for wrong in check.wrong:
            console.print(Text(f"FAILED: {check.what}: {wrong}", style="bold red"))
    passed = sum(check.ok for check in result.checks)
    verdict = f"{passed} of {len(result.checks)} checks passed in {result.seconds:.1f} s."
    console.print(Text("The servers are stopped and their files deleted.", style="dim"))
    console.print(Text(verdict, style="bold green" if result.ok else "bold red"))


def _row(what: str, *cells: str) -> Text:
    """A line of the table, which ends at column 80 with the state of a check."""
    return Text(f"  {what:39}{''.join(f'{cell:>8}' for cell in cells)} ")


def duration(milliseconds: float | None) -> str:
    """With its unit, and no more digits than a reader has use for."""
    if milliseconds is None:
        return ""
    digits = 2 if milliseconds < 1 else 1 if milliseconds < 10 else 0
    return f"{milliseconds:.{digits}f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def as_json(result: Result) -> str:
    """One object with every figure of the table. Times of single calls are in milliseconds."""
    steps = [
        {"title": one.title, "seconds": one.seconds, "figures": one.figures, "checks": [*one.checks.values()]}
        for one in result.sections
    ]
    servers = {name.lower(): version for name, version in result.servers.items()}
    report = {"ok": result.ok, "seconds": result.seconds, "servers": servers, "log": result.log}
    return msgspec.json.format(msgspec.json.encode(report | {"steps": steps}), indent=2).decode()
