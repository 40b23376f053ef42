"""What the demo found, as a table for people and as JSON for programs."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hubbub.cli._demo.figures import Check, Figure, Section
from hubbub.cli._demo.run import Result

WIDEST = 96
"""Wider than this, the eye loses the line between a name and its numbers."""


def show(result: Result, console: Console) -> None:
    """Print the table, what was odd about the log, what is wrong, and the verdict in one line."""
    servers = " and ".join(f"{name} {version}" for name, version in result.servers.items())
    console.print(Text(f"hubbub on {servers}, started for this run", style="bold"))
    console.print(Text("Each change is on disk before it is acknowledged.", style="dim"))
    for place, section in enumerate(result.sections):
        console.print()
        console.print(Text(f"{section.title} ({section.seconds:.1f} s)", style="bold"))
        console.print(_table(section, console.width, show_header=place == 0))
    console.print()
    for note in (note for section in result.sections for note in section.notes):
        console.print(Text(note))
    for check in result.checks:
        for wrong in check.wrong[:3]:
            console.print(Text(f"NOT OK: {check.what}: {wrong}", style="bold red"))
    console.print(Text(_verdict(result), style="bold green" if result.ok else "bold red"))


def _table(section: Section, width: int, *, show_header: bool) -> Table:
    """Widths are fixed, so that the numbers of all sections stand in line."""
    table = Table(
        box=None,
        padding=(0, 0, 0, 1),
        pad_edge=False,
        show_header=show_header,
        header_style="dim",
        width=min(width, WIDEST),
    )
    table.add_column("", ratio=1)
    for heading, column_width in (("how\nmany", 7), ("per\nsecond", 6), ("half\nwithin", 7), ("99 %\nwithin", 7)):
        table.add_column(heading, justify="right", vertical="bottom", width=column_width)
    table.add_column("", width=6)
    for figure in section.figures:
        table.add_row(Text(f"  {figure.what}"), f"{figure.count:,}", *_speed(figure))
    for check in section.checks:
        mark = Text("ok", style="green") if check.ok else Text("NOT OK", style="bold red")
        table.add_row(Text(f"  {check.what}"), f"{check.count:,}", "", "", "", mark)
    return table


def _speed(figure: Figure) -> tuple[str, str, str]:
    if figure.p50_ms is not None and figure.p99_ms is not None:
        return "", duration(figure.p50_ms), duration(figure.p99_ms)
    if figure.per_second is None:
        return "", "", ""
    return f"{figure.per_second:,.0f}", "", ""


def duration(milliseconds: float) -> str:
    """With its unit, and no more digits than a reader has use for."""
    if milliseconds < 1:
        return f"{milliseconds:.2f} ms"
    if milliseconds < 10:
        return f"{milliseconds:.1f} ms"
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    return f"{milliseconds / 1000:.1f} s"


def _verdict(result: Result) -> str:
    good = sum(check.ok for check in result.checks)
    took = f"{result.seconds:.1f} s in all; the servers are stopped and their files deleted."
    if result.ok:
        return f"All {good} checks hold. {took}"
    return f"{len(result.checks) - good} of {len(result.checks)} checks do NOT hold. {took}"


def as_json(result: Result) -> str:
    """One object with every figure of the table. Times of single calls are in milliseconds."""
    return json.dumps(
        {
            "ok": result.ok,
            "seconds": round(result.seconds, 3),
            "servers": {name.lower(): version for name, version in result.servers.items()},
            "log": {
                "name": result.log,
                "refused_lines": result.refused_lines,
                "first_refused": [one._asdict() for one in result.first_refused],
                "renamed": [one._asdict() for one in result.renamed],
            },
            "steps": [_section(section) for section in result.sections],
        },
        indent=2,
    )


def _section(section: Section) -> dict[str, object]:
    return {
        "title": section.title,
        "seconds": _rounded(section.seconds),
        "figures": [_figure(figure) for figure in section.figures],
        "checks": [_check(check) for check in section.checks],
    }


def _figure(figure: Figure) -> dict[str, object]:
    return {
        "what": figure.what,
        "count": figure.count,
        "seconds": _rounded(figure.seconds),
        "per_second": _rounded(figure.per_second),
        "p50_ms": _rounded(figure.p50_ms),
        "p99_ms": _rounded(figure.p99_ms),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _check(check: Check) -> dict[str, object]:
    return {"what": check.what, "count": check.count, "ok": check.ok, "wrong": list(check.wrong)}
