"""The figures of a run as tables: on the terminal, as Markdown, and between the markers of the documents."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks import capacity
from benchmarks.machine import Run
from benchmarks.measuring import ASYNCIO, UVLOOP, Comparison, Figures, Pace, Target
from benchmarks.peers.node import BARE, IOREDIS, ORIGINAL, STRICT
from benchmarks.results import RESULTS, Outcome, Results, medians, outcomes

PROJECT = Path(__file__).parents[1]
DOCUMENTS = (PROJECT / "README.md", PROJECT / "docs" / "performance.md", PROJECT / "docs" / "scale.md")

TARGETS = ("cell", "ratio or figure", "target", "min", "median", "max", "ours", "theirs", "reached")
FIGURES = (
    "cell",
    "contender",
    "per second",
    "p50 ms",
    "p99 ms",
    "client us",
    "PostgreSQL us",
    "Redis us",
    "other figures",
)

PARTS = ("cpu_us", "postgres_us", "redis_us")
"""The parts of the processor time of an operation."""
IN_COLUMNS = ("rate", "p50_ms", "p99_ms", *PARTS)
FIGURE_NAMES = {"rate": "rate", "p50_ms": "p50", "p99_ms": "p99", "cpu_us": "cpu"}


class Row(NamedTuple):
    """A row of the overview, for readers who want to know how fast hubbub is."""

    text: str
    cell: str
    figure: str = "rate"


ROWS = (
    Row("durable sends, 20 senders", "sends-20"),
    Row("durable sends, 200 senders", "sends-200"),
    Row("durable sends, 200 senders in one room", "sends-one-room"),
    Row("one sender, p50 in ms", "sends-1", "p50_ms"),
    Row("newest 50 messages, 20 callers in one room", "pages-one-room"),
    Row("newest 50 messages, 20 callers in rooms of their own", "pages-own-rooms"),
    Row("look up a session, 200 callers", "sessions-200"),
    Row("publish to delivery, 200 publishers", "pubsub"),
)
COLUMNS = (
    ("hubbub, uvloop", (UVLOOP,)),
    ("hubbub, asyncio", (ASYNCIO,)),
    ("Node.js, the same work", (STRICT,)),
    ("Node.js, the original", (BARE, ORIGINAL, IOREDIS)),
    ("asyncpg, redis-py", ("asyncpg", "redis-py")),
)


def show(results: Results, console: Console) -> None:
    console.print(_table("Targets", TARGETS, target_rows(results)))
    console.print(_table("Figures: medians of the rounds, p99 over all calls", FIGURES, figure_rows(results)))
    for line in (*left_out(results), *conditions(results)):
        console.print(line)


def markdown(results: Results) -> str:
    """The tables of a run and its machine."""
    lines = [
        *conditions(results),
        "",
        _method(results.pace),
        "",
        *_markdown_table(TARGETS, target_rows(results)),
        "",
        *_markdown_table(FIGURES, figure_rows(results)),
        *(f"\n{line}" for line in left_out(results)),
    ]
    return "\n".join(lines) + "\n"


def _method(pace: Pace) -> str:
    return (
        f"{pace.rounds} rounds of {pace.seconds:g} s for contenders with a target, a third of them for others. "
        "A ratio is taken within a round, and is above 1 if hubbub is better; that of p99 is over all calls. "
        "Without a peer, the figure itself is given. Processor time is per operation."
    )


def conditions(results: Results) -> Iterator[str]:
    """The machine and its load."""
    yield f"`make bench{' ARGS=--quick' if results.pace.quick else ''}` on {results.machine.line()}."
    for run in results.runs:
        yield f"- {run.began} UTC, {run.took_seconds / 60:.0f} min: {_load(run)} ({', '.join(run.cells)})"


def _load(run: Run) -> str:
    if run.fdatasync_us is None:
        return "5 rounds of 0.8 s, all contenders in one process, conditions not recorded"
    return (
        f"fdatasync {run.fdatasync_us:.0f} us; load average {run.load_before:.1f} before, {run.load_after:.1f} "
        f"after; other programs took {run.others_cores:.2f} cores"
    )


def fill_documents(results: Results, documents: Iterable[Path] = DOCUMENTS) -> None:
    for file in documents:
        file.write_text(filled(file.read_text(encoding="utf-8"), results), encoding="utf-8")


def filled(text: str, results: Results) -> str:
    """The text of a document with the tables of these results between its markers."""
    return re.sub(
        r"(<!-- make bench writes: (\w+) -->\n).*?(?=<!-- end -->)",
        lambda found: f"{found[1]}\n{SECTIONS[found[2]](results).strip()}\n\n",
        text,
        flags=re.DOTALL,
    )


def _conditions(results: Results) -> str:
    first, *runs = conditions(results)
    return "\n".join((first, "", *runs))


def _overview(results: Results) -> str:
    """The table of the README."""
    columns = ("", *(name for name, _ in COLUMNS))
    lines = [f"On {results.machine.line()}:", "", *_markdown_table(columns, _overview_rows(results))]
    return "\n".join(lines)


def _overview_rows(results: Results) -> Iterator[tuple[str, ...]]:
    for row in ROWS:
        if found := results.cell(row.cell):
            yield row.text, *(_overview_cell(found, row.figure, names) for _, names in COLUMNS)


def _overview_cell(found: Comparison, figure: str, names: Sequence[str]) -> str:
    return next((number(medians(found, name)[figure]) for name in names if name in found.names), "")


def _reached(results: Results) -> str:
    """The table of targets, a row for each target, with hubbub on uvloop and on asyncio."""
    by_row: dict[tuple[str, str, str | None], dict[str, Outcome]] = {}
    for outcome in outcomes(results):
        target = outcome.target
        of = target.of if target.of in {UVLOOP, ASYNCIO} else UVLOOP
        subject_of = "" if target.of in {UVLOOP, ASYNCIO, "hubbub"} else f" ({target.of})"
        by_row.setdefault((outcome.title + subject_of, target.figure, target.against), {})[of] = outcome
    columns = (
        "cell",
        "figure",
        "against",
        "target",
        "reached",
        "min to max",
        "",
        "asyncio: target",
        "reached",
        "",
    )
    rows = (
        (
            title,
            FIGURE_NAMES.get(figure, figure),
            against or "",
            *_reached_cells(found.get(UVLOOP)),
            *(cell for number, cell in enumerate(_reached_cells(found.get(ASYNCIO))) if number != 2),
        )
        for (title, figure, against), found in by_row.items()
    )
    return "\n".join(_markdown_table(columns, rows))


def _reached_cells(outcome: Outcome | None) -> tuple[str, str, str, str]:
    if outcome is None:
        return "", "", "", ""
    times = " x" if outcome.target.against else ""
    return (
        _wanted(outcome),
        f"{number(outcome.middle)}{times}",
        f"{number(outcome.least)} to {number(outcome.most)}",
        "yes" if outcome.reached else "**no**",
    )


def _machines(results: Results) -> str:
    """The ratios of these results beside those of other machines, each of which has a folder below the results."""
    machines = [results, *(Results.read(file) for file in sorted(RESULTS.glob("*/results.json")))]
    ratios = [
        {
            (outcome.title, outcome.target.figure, against): f"{number(outcome.middle)} x"
            for outcome in outcomes(one)
            if outcome.target.of == UVLOOP and (against := outcome.target.against)
        }
        for one in machines
    ]
    names = [f"{one.machine.processor}, fdatasync {one.runs[0].fdatasync_us:.0f} us" for one in machines]
    rows = (
        (title, FIGURE_NAMES.get(figure, figure), against, *(of_one[title, figure, against] for of_one in ratios))
        for title, figure, against in ratios[0]
        if all((title, figure, against) in of_one for of_one in ratios)
    )
    return "\n".join(_markdown_table(("cell", "figure", "against", *names), rows))


def _processor_time(results: Results) -> str:
    """The table of the processor time per operation, and of the busy cores."""
    columns = (
        "cell",
        "client",
        "PostgreSQL",
        "Redis",
        "cores busy",
        "against",
        "client",
        "PostgreSQL",
        "Redis",
        "cores busy",
        "less processor time",
    )
    return "\n".join(_markdown_table(columns, _processor_rows(results)))


def _processor_rows(results: Results) -> Iterator[tuple[str, ...]]:
    for found in results.comparisons:
        for peer in dict.fromkeys(target.against for target in found.targets if target.of == UVLOOP):
            ours, theirs = medians(found, UVLOOP), medians(found, peer) if peer else {}
            if theirs.keys() >= {"rate", *PARTS} <= ours.keys():
                ratio = _processor_us(theirs) / _processor_us(ours)
                cells = (*_processor_cells(ours), str(peer), *_processor_cells(theirs), f"{number(ratio)} x")
                yield found.title, *cells


def _processor_cells(figures: Figures) -> tuple[str, ...]:
    cores = figures["rate"] * _processor_us(figures) / 1_000_000
    return (*(number(figures[part]) for part in PARTS), number(cores))


def _processor_us(figures: Figures) -> float:
    return sum(figures[part] for part in PARTS)


def _replica(results: Results) -> str:
    """The table of pages by the server that reads them, with the cost for the primary and its replica."""
    columns = (
        "20 callers",
        "read on",
        "pages per second",
        "sends per second",
        "primary, us a page",
        "replica, us a page",
    )
    return "\n".join(_markdown_table(columns, _replica_rows(results)))


def _replica_rows(results: Results) -> Iterator[tuple[str, ...]]:
    for cell, text in (("pages-replica", "alone"), ("pages-replica-sends", "beside 20 senders")):
        found = results.cell(cell)
        if found is None:
            continue
        for name in found.names:
            figures = medians(found, name)
            yield (
                text,
                "primary" if name == UVLOOP else "replica",
                number(figures["rate"]),
                number(figures["sends per second"]) if "sends per second" in figures else "",
                number(figures["postgres_us"]),
                number(figures["standby_us"]),
            )


SECTIONS: dict[str, Callable[[Results], str]] = {
    "overview": _overview,
    "conditions": _conditions,
    "targets": _reached,
    "machines": _machines,
    "processor": _processor_time,
    "capacity": capacity.markdown,
    "steps": capacity.steps,
    "replica": _replica,
}


def target_rows(results: Results) -> Iterator[tuple[str, ...]]:
    for outcome in outcomes(results):
        yield (
            outcome.title,
            subject(outcome.target),
            _wanted(outcome),
            *(number(value) for value in (outcome.least, outcome.middle, outcome.most, outcome.ours)),
            "" if outcome.theirs is None else number(outcome.theirs),
            "yes" if outcome.reached else "no",
        )


def subject(target: Target) -> str:
    """The ratio or figure of a target."""
    names = " / ".join(name for name in (target.of, target.against) if name)
    return f"{names}: {FIGURE_NAMES.get(target.figure, target.figure)}"


def _wanted(outcome: Outcome) -> str:
    target = outcome.target
    times = "" if target.against is None else " x"
    if target.at_most is not None:
        return f"at most {number(target.at_most)}{times}"
    return "" if target.at_least is None else f"at least {number(target.at_least)}{times}"


def figure_rows(results: Results) -> Iterator[tuple[str, ...]]:
    for found in results.comparisons:
        for name in found.names:
            figures = medians(found, name)
            yield (
                found.title,
                name,
                *(number(figures[figure]) if figure in figures else "" for figure in IN_COLUMNS),
                _others(figures),
            )


def _others(figures: Figures) -> str:
    others = (f"{number(value)} {name}" for name, value in figures.items() if name not in IN_COLUMNS)
    return ", ".join(others)


def left_out(results: Results) -> list[str]:
    reasons = {f"{name}: {reason}": None for found in results.comparisons for name, reason in _skipped(found)}
    return [f"Left out - {reason}." for reason in reasons]


def _skipped(found: Comparison) -> Iterator[tuple[str, str]]:
    for name, reason in found.skipped.items():
        yield f"{found.title}, {name}", reason


def number(value: float) -> str:
    """Three significant digits."""
    if value == 0 or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def _table(name: str, columns: Sequence[str], rows: Iterator[tuple[str, ...]]) -> Table:
    table = Table(*columns, title=name, title_justify="left")
    before = ""
    for title, *rest in rows:
        table.add_row("" if title == before else title, *rest)
        before = title
    return table


def _markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield _markdown_row(columns)
    yield _markdown_row(["---"] * len(columns))
    for row in rows:
        yield _markdown_row(row)


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
