"""The figures of a run as tables: on the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Comparison, Figures, Target
from benchmarks.results import Outcome, Results, medians, outcomes

TARGETS = ("cell", "ratio or figure", "target", "min", "median", "max", "ours", "theirs", "reached")
FIGURES = ("cell", "contender", "per second", "p50 ms", "p99 ms", "cpu us", "other figures")

IN_COLUMNS = ("rate", "p50_ms", "p99_ms", "cpu_us")
FIGURE_NAMES = {"rate": "rate", "p50_ms": "p50", "p99_ms": "p99", "cpu_us": "cpu"}


def show(results: Results, console: Console) -> None:
    console.print(_table("Targets", TARGETS, target_rows(results)))
    console.print(_table("Figures: medians of the rounds", FIGURES, figure_rows(results)))
    for line in left_out(results):
        console.print(line)
    console.print(f"{results.machine.line()}; {results.took_seconds:.0f} s")


def markdown(results: Results) -> str:
    """The tables of a run, with its machine."""
    pace = results.pace
    about = (
        f"Measured by `make bench{' ARGS=--quick' if pace.quick else ''}` on {results.machine.line()}. "
        f"{pace.rounds} rounds, one of pages by the original indexes. "
        "A ratio is taken within a round, and is above 1 if hubbub is better. "
        "Without a peer, the figure itself is given."
    )
    lines = [
        about,
        "",
        *_markdown_table(TARGETS, target_rows(results)),
        "",
        *_markdown_table(FIGURES, figure_rows(results)),
        *(f"\n{line}" for line in left_out(results)),
    ]
    return "\n".join(lines) + "\n"


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
        for name in found.rounds[0]:
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


def _markdown_table(columns: Sequence[str], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield _markdown_row(columns)
    yield _markdown_row(["---"] * len(columns))
    for row in rows:
        yield _markdown_row(row)


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
