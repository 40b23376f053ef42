"""The results of a run, as one JSON file, and the outcome of each target."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.machine import Machine
from benchmarks.measuring import Comparison, Figures, Pace, Target


class Results(msgspec.Struct):
    machine: Machine
    pace: Pace
    took_seconds: float
    comparisons: list[Comparison]

    def write(self, file: Path) -> None:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(_rounded(self)), indent=1) + b"\n")

    @staticmethod
    def read(file: Path) -> Results:
        return msgspec.json.decode(file.read_bytes(), type=Results)

    def cell(self, name: str) -> Comparison | None:
        return next((found for found in self.comparisons if found.cell == name), None)


class Outcome(NamedTuple):
    """A target, with the minimum, the median and the maximum of all rounds."""

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
                ratios = found.ratios(target.figure, target.of, target.against)
                yield Outcome(found.title, target, *spread(ratios), statistics.median(ours), theirs)


def spread(values: list[float]) -> tuple[float, float, float]:
    return min(values), statistics.median(values), max(values)


def medians(found: Comparison, name: str) -> Figures:
    """The median of each figure of a contender."""
    return {figure: statistics.median(found.values(figure, name)) for figure in found.rounds[0][name]}


def _rounded(results: Results) -> Results:
    """Four significant digits, to keep the file small."""
    comparisons = [
        msgspec.structs.replace(
            found,
            rounds=[
                {
                    name: {figure: float(f"{value:.4g}") for figure, value in figures.items()}
                    for name, figures in one.items()
                }
                for one in found.rounds
            ],
        )
        for found in results.comparisons
    ]
    return msgspec.structs.replace(results, comparisons=comparisons)
