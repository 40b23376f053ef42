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
    results = asyncio.run(measured(given.only or list(CELLS), pace))
    terminal = Console()
    report.show(results, terminal if terminal.is_terminal else Console(width=WIDTH))
    if folder is None:
        print("No results were written: use --output DIR.")
        return
    if given.only and (folder / "results.json").exists():
        results = results.merged_into(Results.read(folder / "results.json"))
    write(results, folder)
    print(f"Written to {folder}: results.json, table.md and the plots.")


async def measured(names: list[str], pace: Pace) -> Results:
    console = Console(stderr=True)
    comparisons: list[Comparison] = []
    with console.status("starting servers") as status:
        async with started(quick=pace.quick) as context:
            about, watch = await machine.describe(context), machine.Watch(context)
            for name in names:
                status.update(f"{name}: {(CELLS[name].__doc__ or '').strip()}")
                cell_began = time.perf_counter()
                comparisons += [comparison async for comparison in CELLS[name](context, pace)]
                console.print(f"{name}: {time.perf_counter() - cell_began:.0f} s")
            run = watch.run(names)
    return Results(about, pace, [run], comparisons)


def write(results: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    results.write(folder / "results.json")
    written = Results.read(folder / "results.json")  # with the digits that a reader of the file has
    (folder / "table.md").write_text(report.markdown(written), encoding="utf-8")
    draw(written, folder)
    if folder.resolve() == RESULTS:
        report.fill_documents(written)


if __name__ == "__main__":
    main(sys.argv[1:])
