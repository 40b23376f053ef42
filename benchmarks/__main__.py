"""hubbub beside its peers: every cell of docs/performance.md, on servers that this run starts and stops.

python -m benchmarks [--quick] [--only CELL]... [--output DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import machine, report
from benchmarks.cells import CELLS
from benchmarks.context import started
from benchmarks.measuring import FULL, QUICK, Comparison, Pace
from benchmarks.plots import draw
from benchmarks.results import Results

RESULTS = Path(__file__).parent / "results"
WIDTH = 160
"""The width of the tables if the output is not a terminal."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="hubbub bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="run for 90 seconds, to check that it works; the figures are not reliable",
    )
    parser.add_argument("--only", action="append", choices=list(CELLS), metavar="CELL", help=", ".join(CELLS))
    parser.add_argument(
        "--output",
        type=Path,
        help="the folder for the results (default: benchmarks/results, or none with --quick or --only)",
    )
    given = parser.parse_args(arguments)
    pace = QUICK if given.quick else FULL
    results = asyncio.run(measured(given.only or list(CELLS), pace))
    terminal = Console()
    report.show(results, terminal if terminal.is_terminal else Console(width=WIDTH))
    whole = not given.quick and not given.only
    folder = given.output or (RESULTS if whole else None)
    if folder is None:
        print("No results were written: use --output DIR.")
        return
    write(results, folder)
    print(f"Written to {folder}: results.json, table.md and the plots.")


async def measured(names: list[str], pace: Pace) -> Results:
    console = Console(stderr=True)
    began = time.perf_counter()
    comparisons: list[Comparison] = []
    with console.status("starting servers") as status:
        async with started() as context:
            about = await machine.describe(context)
            for name in names:
                status.update(f"{name}: {(CELLS[name].__doc__ or '').strip()}")
                cell_began = time.perf_counter()
                comparisons += [comparison async for comparison in CELLS[name](context, pace)]
                console.print(f"{name}: {time.perf_counter() - cell_began:.0f} s")
    return Results(about, pace, round(time.perf_counter() - began, 1), comparisons)


def write(results: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    results.write(folder / "results.json")
    (folder / "table.md").write_text(report.markdown(results), encoding="utf-8")
    draw(results, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
