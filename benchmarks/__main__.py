"""hubbub beside its peers: every cell of docs/performance.md, on servers that this run starts and stops.

python -m benchmarks [--quick] [--only CELL]... [--output DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import machine, report
from benchmarks.cells import CELLS, LONG
from benchmarks.context import started
from benchmarks.measuring import FULL, QUICK, Comparison, Pace
from benchmarks.plots import draw
from benchmarks.results import RESULTS, Results

WIDTH = 160
"""The width of the tables if the output is not a terminal."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="hubbub bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="run for less than 2 minutes, to check that it works; the figures are not reliable",
    )
    parser.add_argument("--only", action="append", choices=list(CELLS), metavar="CELL", help=", ".join(CELLS))
    parser.add_argument(
        "--output",
        type=Path,
        help="the folder for the results (default: benchmarks/results, or none with --quick or --only). "
        "With --only, the cells replace those of results.json there. From benchmarks/results the tables of the "
        "README and of docs/performance.md are written, too",
    )
    given = parser.parse_args(arguments)
    pace = QUICK if given.quick else FULL
    folder = given.output or (None if given.quick or given.only else RESULTS)
    names = given.only or [name for name in CELLS if name not in LONG]
    there = folder / "results.json" if folder else None
    before = Results.read(there) if there and given.only and there.exists() else None

    def whole(results: Results) -> Results:
        return results.merged_into(before) if before else results

    results = asyncio.run(measured(names, pace, lambda so_far: there and whole(so_far).write(there)))
    terminal = Console()
    report.show(results, terminal if terminal.is_terminal else Console(width=WIDTH))
    if folder is None:
        print("No results were written: use --output DIR.")
        return
    write(whole(results), folder)
    print(f"Written to {folder}: results.json, table.md and the plots.")


async def measured(names: list[str], pace: Pace, keep: Callable[[Results], object]) -> Results:
    """The results of the cells. `keep` is called after each cell, so that an interrupted run is not lost."""
    console = Console(stderr=True)
    comparisons: list[Comparison] = []
    with console.status("starting servers") as status:
        async with started(quick=pace.quick) as context:
            about, watch = await machine.describe(context), machine.Watch(context)
            for number, name in enumerate(names, 1):
                status.update(f"{name}: {(CELLS[name].__doc__ or '').strip()}")
                cell_began = time.perf_counter()
                comparisons += [comparison async for comparison in CELLS[name](context, pace)]
                results = Results(about, pace, [watch.run(names[:number])], comparisons)
                keep(results)
                console.print(f"{name}: {time.perf_counter() - cell_began:.0f} s")
    return results


def write(results: Results, folder: Path) -> None:
    results.write(folder / "results.json")
    written = Results.read(folder / "results.json")  # with the digits in the file
    (folder / "table.md").write_text(report.markdown(written), encoding="utf-8")
    draw(written, folder)
    if folder.resolve() == RESULTS:
        report.fill_documents(written)


if __name__ == "__main__":
    main(sys.argv[1:])
