"""Three plots of a run: load, table size, and hubbub beside its peers."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.measuring import ASYNCIO, UVLOOP
from benchmarks.report import FIGURE_NAMES, subject
from benchmarks.results import Results, medians, outcomes

COLOURS = {UVLOOP: "#c2410c", ASYNCIO: "#fdba74", "hubbub": "#c2410c", "COPY": "#9ca3af"}
PEERS = ("#1d4ed8", "#0f766e", "#6d28d9", "#4d7c0f", "#be185d")
SENDERS = (20, 200, 2_000)


def draw(results: Results, folder: Path) -> list[Path]:
    """Write PNG and SVG files of each plot that has figures. Returns the files."""
    mpl.rcParams |= {
        "svg.fonttype": "none",
        "svg.hashsalt": "hubbub",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    plots = {"load": _load(results), "growth": _growth(results), "peers": _peers(results)}
    return [file for name, figure in plots.items() if figure for file in _save(figure, folder / name)]


def _save(figure: Figure, file: Path) -> list[Path]:
    files = [file.with_suffix(".png"), file.with_suffix(".svg")]
    for each in files:
        # Without a date, so that equal figures give equal files.
        figure.savefig(each, dpi=110, metadata={"Date": None} if each.suffix == ".svg" else None)
    return files


def _colour(name: str, number: int) -> str:
    return COLOURS.get(name, PEERS[number % len(PEERS)])


def _load(results: Results) -> Figure | None:
    """Throughput and p99 of durable sends over the number of senders."""
    cells = {callers: results.cell(f"sends-{callers}") for callers in SENDERS}
    found = {callers: cell for callers, cell in cells.items() if cell}
    if not found:
        return None
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    names = [name for name in next(iter(found.values())).names if all(name in c.names for c in found.values())]
    for number, name in enumerate(names):
        for axis, key in zip(axes, ("rate", "p99_ms"), strict=True):
            values = [medians(cell, name)[key] for cell in found.values()]
            axis.plot(list(found), values, marker="o", label=name, color=_colour(name, number))
    for axis, title in zip(axes, ("durable sends per second", "p99, ms"), strict=True):
        _logarithmic(axis, list(found))
        axis.set(title=title, xlabel="senders, in 1,000 rooms")
    axes[1].set_yscale("log")
    _plain(axes[1])
    axes[0].set_ylim(bottom=0)
    axes[0].legend(frameon=False)
    return figure


def _growth(results: Results) -> Figure | None:
    """Time and buffers of a newest page over the number of messages in the table."""
    cells = {"hubbub": results.cell("growth"), "the original indexes": results.cell("growth-original")}
    if not all(cells.values()):
        return None
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    all_sizes: set[int] = set()
    for number, (name, cell) in enumerate(cells.items()):
        assert cell is not None
        points = [medians(cell, one) for one in cell.names if one.startswith("quiet")]
        sizes = [int(one["messages"]) for one in points]
        all_sizes |= set(sizes)
        for axis, key in zip(axes, ("ms", "buffers"), strict=True):
            axis.plot(sizes, [one[key] for one in points], marker="o", label=name, color=_colour(name, number))
    for axis, title in zip(axes, ("newest page of a quiet room, ms", "buffers touched"), strict=True):
        _logarithmic(axis, sorted(all_sizes))
        axis.set(title=title, xlabel="messages in the table", yscale="log")
        _plain(axis)
    axes[0].legend(frameon=False)
    return figure


def _peers(results: Results) -> Figure | None:
    """The ratio of each target, with its spread and the target itself."""
    found = [
        outcome
        for outcome in outcomes(results)
        if outcome.target.against and outcome.target.figure in FIGURE_NAMES and outcome.target.of != ASYNCIO
    ]
    if not found:
        return None
    figure = Figure(figsize=(9, 0.6 + 0.32 * len(found)), layout="constrained")
    axis = figure.subplots()
    rows = range(len(found), 0, -1)
    middles = [outcome.middle for outcome in found]
    spread = [
        [max(0, outcome.middle - outcome.least) for outcome in found],
        [max(0, outcome.most - outcome.middle) for outcome in found],
    ]
    colours = [COLOURS["hubbub"] if outcome.reached else "#fdba74" for outcome in found]
    axis.barh(list(rows), middles, xerr=spread, color=colours, height=0.6, ecolor="#374151")
    wanted = [(outcome.target.at_least, row) for outcome, row in zip(found, rows, strict=True)]
    axis.scatter(
        [least for least, _ in wanted if least],
        [row for least, row in wanted if least],
        marker="|",
        s=140,
        color="black",
        zorder=3,
        label="target",
    )
    labels = [f"{one.title}\n{subject(one.target)}" for one in found]
    axis.set_yticks(list(rows), labels, fontsize=6)
    axis.set_xscale("log")
    axis.set_xticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
    axis.minorticks_off()
    axis.set_ylim(0.4, len(found) + 0.6)
    axis.axvline(1, color="#374151", linewidth=0.8)
    axis.set_title("ratio to the peer (dark: target reached, |: target, whiskers: all rounds)")
    return figure


def _logarithmic(axis: Axes, ticks: list[int]) -> None:
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()


def _plain(axis: Axes) -> None:
    """Plain numbers instead of powers, on a logarithmic axis."""
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.yaxis.set_minor_locator(NullLocator())
