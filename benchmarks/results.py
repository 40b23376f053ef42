"""The results of a run, as one JSON file, and the outcome of each target."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.machine import Machine, Run
from benchmarks.measuring import Comparison, Figures, Pace, Target

RESULTS = Path(__file__).parent / "results"


class Results(msgspec.Struct):
    machine: Machine
    pace: Pace
    runs: list[Run]
    """One run, or one for each part that was measured separately."""
    comparisons: list[Comparison]

    def merged_into(self, before: Results) -> Results:
        """`before`, with these cells in place of its own. Both need the same machine, versions and pace."""
        if (self.machine, self.pace) != (before.machine, before.pace):
            raise ValueError("the results there are of another machine, other versions or another pace")
        measured = {cell for run in self.runs for cell in run.cells}
        kept = [
            msgspec.structs.replace(run, cells=[c for c in run.cells if c not in measured]) for run in before.runs
        ]
        comparisons = {found.cell: found for found in (*before.comparisons, *self.comparisons)}
        return Results(
            self.machine, self.pace, [run for run in kept if run.cells] + self.runs, list(comparisons.values())
        )

    def write(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(msgspec.json.format(msgspec.json.encode(_rounded(self)), indent=1) + b"\n")

    @staticmethod
    def read(file: Path) -> Results:
        return msgspec.json.decode(file.read_bytes(), type=Results)

    def cell(self, name: str) -> Comparison | None:
        return next((found for found in self.comparisons if found.cell == name), None)


class Outcome(NamedTuple):
    """A target, with the minimum, median and maximum of all rounds. The middle of p99 is that of all calls."""

    title: str
    target: Target
    least: float
    middle: float
    most: float
    ours: float
    theirs: float | None

    @property
    def reached(self) -> bool:
        if self.target.at_most is not None:
            return self.middle <= self.target.at_most
        return self.target.at_least is None or self.middle >= self.target.at_least


def outcomes(results: Results) -> Iterator[Outcome]:
    for found in results.comparisons:
        for target in found.targets:
            ours = found.values(target.figure, target.of)
            if target.against is None:
                yield Outcome(found.title, target, *spread(ours), statistics.median(ours), None)
            else:
                theirs = statistics.median(found.values(target.figure, target.against))
                least, middle, most = spread(found.ratios(target.figure, target.of, target.against))
                pooled = found.pooled_ratio(target.figure, target.of, target.against)
                if target.figure == "p99_ms" and pooled is not None:
                    middle = pooled
                yield Outcome(found.title, target, least, middle, most, statistics.median(ours), theirs)


def spread(values: list[float]) -> tuple[float, float, float]:
    return min(values), statistics.median(values), max(values)


def medians(found: Comparison, name: str) -> Figures:
    """The median of each figure of a contender, and p99 over all its calls."""
    figures = next(one[name] for one in found.rounds if name in one)
    middles = {figure: statistics.median(found.values(figure, name)) for figure in figures}
    return middles | {name: value for name, value in found.pooled.get(name, {}).items() if name == "p99_ms"}


def _rounded(results: Results) -> Results:
    """Four significant digits, to keep the file small."""
    comparisons = [
        msgspec.structs.replace(
            found, rounds=[_rounded_figures(one) for one in found.rounds], pooled=_rounded_figures(found.pooled)
        )
        for found in results.comparisons
    ]
    return msgspec.structs.replace(results, comparisons=comparisons)


def _rounded_figures(by_name: dict[str, Figures]) -> dict[str, Figures]:
    return {
        name: {figure: float(f"{value:.4g}") for figure, value in figures.items()}
        for name, figures in by_name.items()
    }
