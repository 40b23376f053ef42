"""`hubbub doctor` and `hubbub maintain`: the problems of the servers, and deletions that were interrupted."""

from __future__ import annotations

import asyncio
from typing import Final

import click
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from hubbub.cli import in_hub, unreported
from hubbub.diagnostics.doctor import check_servers
from hubbub.diagnostics.report import Report, Section, Severity, as_json
from hubbub.hub import find_settings

WIDEST: Final = 100
"""Columns. Longer lines of prose are tiring to read."""

UNFINISHED: Final = 3

STYLES: Final = {"ok": "green", "error": "bold red", "warning": "yellow", "note": "cyan", "skipped": "dim"}


@click.command()
@click.option("--json", "in_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of processes of the application, each with its own pool.",
)
@click.pass_context
def doctor(context: click.Context, processes: int, *, in_json: bool) -> None:
    """Check the servers and their settings, and suggest fixes.

    Checks the servers of DATABASE_URL and REDIS_URL, or of DB_* and REDIS_*. Without these variables it checks
    the servers that `hubbub up` started in this folder. Run it where the application runs, with its settings.

    It changes nothing. A check is skipped if the login lacks the right for it.

    The exit status is 0 without findings, 1 with an error or a warning, and 3 if a server cannot be reached.
    Notes do not count.
    """
    with unreported():
        report = asyncio.run(check_servers(find_settings(), processes))
    if in_json:
        click.echo(as_json(report))
    else:
        show(report, Console())
    context.exit(report.exit_status)


def show(report: Report, console: Console) -> None:
    """Print a line per check and the findings below it, then the number of findings."""
    width = min(console.width, WIDEST)
    for section in report.sections:
        console.print(_section(section), width=width)
        console.print()
    console.print(Text(_totals(report), style="bold"), width=width)


def _section(section: Section) -> RenderableType:
    where = f" at {section.where}" if section.where else ""
    lines: list[RenderableType] = [Text(f"{section.name}{where}", style="bold")]
    for check in section.checks:
        severities = {finding.severity for finding in check.findings}
        worst = next((severity.value for severity in Severity if severity in severities), "ok")
        lines.append(_line("skipped" if check.skipped else worst, check.title, check.skipped or check.summary))
        for finding in check.findings:
            text = Text.assemble(f"{finding.meaning}\n", (finding.remedy, "bold"))
            lines.append(Padding(text, (0, 0, 0, 11), expand=False))
    if section.out_of_reach:
        lines.append(_line("error", "out of reach", section.out_of_reach))
    return Group(*lines)


def _line(state: str, title: str, text: str) -> RenderableType:
    line = Table.grid(Column(width=9), Column(width=13), Column(overflow="fold"), padding=(0, 2, 0, 0))
    line.add_row(Text(f"  {state}", style=STYLES[state]), Text(title), Text(text, style="dim"))
    return line


def _totals(report: Report) -> str:
    checks = [check for section in report.sections for check in section.checks]
    counts = {
        severity.value: sum(finding.severity is severity for check in checks for finding in check.findings)
        for severity in Severity
    }
    counts["skipped check"] = sum(check.skipped is not None for check in checks)
    parts = [f"{count} {noun}{'' if count == 1 else 's'}" for noun, count in counts.items() if count]
    if away := [section.name for section in report.sections if section.out_of_reach]:
        parts.append(f"out of reach: {', '.join(away)}")
    return f"{', '.join(parts) or 'nothing found'}."


@click.command()
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=600, show_default=True)
@click.pass_context
def maintain(context: click.Context, seconds: float) -> None:
    """Finish interrupted deletions, and delete durable sessions that have ended.

    A deadline or a crash may have interrupted them. These accounts and rooms are already hidden. Several processes
    may run the command at once.

    Exit status: 0 if no deletion is left. 3 if some are, because --seconds have passed or another process works
    on them.
    """
    done = in_hub(lambda chat: chat.maintain(deadline_seconds=seconds))
    click.echo(f"deleted {done.accounts} accounts and {done.rooms} rooms, {done.unfinished} left")
    if done.unfinished:
        context.exit(UNFINISHED)
