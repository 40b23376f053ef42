"""How many machines a chat needs, on paper, from what one operation costs.

    python -m benchmarks.capacity [RESULTS]

It takes the rates of a run, by default those of benchmarks/results/results.json. Client and servers had all cores
of one small machine together: so `cores / rate` is what an operation costs in core seconds of all of them. What
people do is an assumption, and stands in the table.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.measuring import Comparison
from benchmarks.results import Results

DAILY_USERS = (1_000_000, 100_000_000)

DAY_SECONDS = 86_400
PEAK = 3
"""The busiest hour over the mean of the day."""
HEADROOM = 0.5
"""No core is planned to be busier than this at the peak."""
CORES = 16
"""Of a machine."""
ONLINE_AT_PEAK = 0.1
"""Of the daily users, each with one follower."""
FOLLOWER_KIB = 8
"""What hubbub promises of an idle follower, without the socket of the application."""


class Doing(NamedTuple):
    """What a daily user does, how often a day, and where its cost was measured."""

    what: str
    a_day: float
    cell: str
    contender: str | None
    """None: that with the largest table."""


USE = (
    Doing("sends a message", 40, "sends-200", "hubbub"),
    Doing("receives a message while online", 40 * 15, "followers", "hubbub, in 100 rooms"),
    Doing("opens a room: a page", 30, "pages", "hubbub, own rooms"),
    Doing("opens the app: unread counts of 100 rooms", 10, "unread", None),
    Doing("is looked up, as author or member", 400, "lookups-user", "hubbub"),
    Doing("makes a request with a session", 300, "sessions-200", "hubbub"),
    Doing("types, connects or disconnects: one publish", 60, "pubsub", "hubbub"),
)


class Cost(NamedTuple):
    doing: Doing
    a_second: float
    core_us: float

    @property
    def cores(self) -> float:
        return self.a_second * self.core_us / 1_000_000


def costs(results: Results, daily_users: int) -> Iterator[Cost]:
    """At the peak. What the run has not measured is left out."""
    for doing in USE:
        cell = results.cell(doing.cell)
        if cell is None:
            continue
        contender = doing.contender or _largest(cell)
        rate = median(cell.values("rate", contender))
        a_second = daily_users * doing.a_day * PEAK / DAY_SECONDS
        yield Cost(doing, a_second, results.machine.cores / rate * 1_000_000)


def _largest(cell: Comparison) -> str:
    return list(cell.rounds[0])[-1]


def markdown(results: Results) -> str:
    lines = [
        "| a daily user | a day | core us each |"
        + "".join(f" cores at the peak, {users:,} users |" for users in DAILY_USERS),
        f"| --- | --- | --- |{' --- |' * len(DAILY_USERS)}",
    ]
    by_users = {users: list(costs(results, users)) for users in DAILY_USERS}
    for each in zip(*by_users.values(), strict=True):
        doing = each[0].doing
        cores = " | ".join(f"{cost.cores:,.1f}" for cost in each)
        lines.append(f"| {doing.what} | {doing.a_day:,g} | {each[0].core_us:,.0f} | {cores} |")
    sums = {users: sum(cost.cores for cost in found) for users, found in by_users.items()}
    lines.append(f"| total | | | {' | '.join(f'{cores:,.1f}' for cores in sums.values())} |")
    lines.append("")
    unread = results.cell("unread")
    message_bytes = median(unread.values("bytes a message", _largest(unread))) if unread else None
    lines += [_machines(users, cores, message_bytes) for users, cores in sums.items()]
    return "\n".join(lines) + "\n"


def _machines(users: int, cores: float, message_bytes: float | None) -> str:
    machines = math.ceil(cores / HEADROOM / CORES)
    noun = "machine" if machines == 1 else "machines"
    followers = users * ONLINE_AT_PEAK
    memory = followers * FOLLOWER_KIB / 2**20
    line = (
        f"- {users:,} daily users: {machines:,} {noun} of {CORES} cores for application, PostgreSQL and Redis "
        f"together; {memory:,.1f} GiB for {followers:,.0f} followers, at most {FOLLOWER_KIB} KiB each"
    )
    if message_bytes is None:
        return f"{line}."
    disk = users * USE[0].a_day * 365 * message_bytes / 10**12
    return f"{line}; {disk:,.1f} TB of messages a year, at {message_bytes:,.0f} bytes each with their indexes."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).parent / "results" / "results.json"
    parser.add_argument("results", type=Path, nargs="?", default=default)
    print(markdown(Results.read(parser.parse_args().results)))


if __name__ == "__main__":
    main()
