"""An estimate of the machines that a chat needs, from the cost of each operation.

    python -m benchmarks.capacity [RESULTS]

It takes the rates of a run, by default those of benchmarks/results/results.json. Client and servers shared all
cores of one machine, so `cores / rate` is the cost of an operation in core seconds of all of them. The processor
time of the client is measured by itself; the rest is that of the server. The behaviour of the users is an
assumption, given in the table.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.measuring import ASYNCIO, UVLOOP, Comparison
from benchmarks.results import Results

DAILY_USERS = (1_000_000, 100_000_000)
STEPS = (10_000, 1_000_000, 10_000_000, 100_000_000)
"""Numbers of daily users for which the parts are computed."""

DISTRIBUTED_FROM = 100_000_000
"""Daily users from which on rooms are distributed over several nodes by Citus."""

DAY_SECONDS = 86_400
PEAK = 3
"""The rate in the busiest hour, as a multiple of the daily mean."""
HEADROOM = 0.5
"""The planned load of each core at the peak."""
CORES_PER_MACHINE = 16
ONLINE_AT_PEAK = 0.1
"""The share of the daily users, each with one follower."""
FOLLOWER_KIB = 8
"""The limit for an idle follower in hubbub, without the socket of the application."""


PRIMARY, REPLICAS, BY_USER, REDIS = "PostgreSQL: changes", "PostgreSQL: pages", "PostgreSQL: by user", "Redis"
"""The parts of the servers. Changes are divided among shards, and pages among replicas or shards. Reads by user
touch all shards. A node of Redis has one core."""


class Activity(NamedTuple):
    """An operation of a daily user, how often it occurs per day, the cell that measured it, and its server."""

    name: str
    per_day: float
    cell: str
    contender: str | None
    """None for the contender with the largest table."""
    server: str
    on_citus: float = 1
    """The factor of PostgreSQL's processor time where rooms are distributed (docs/scale.md)."""


ACTIVITIES = (
    Activity("sends a message", 40, "sends-200", UVLOOP, PRIMARY, on_citus=16),
    Activity("receives a message while online", 40 * 15, "followers-100", UVLOOP, REDIS),
    Activity("opens a room: a page", 30, "pages-own-rooms", UVLOOP, REPLICAS, on_citus=3.2),
    Activity("opens the app: unread counts of 100 rooms", 10, "unread", None, BY_USER, on_citus=6.2),
    Activity("is looked up, as author or member", 400, "lookups-user", UVLOOP, BY_USER, on_citus=1.3),
    Activity("makes a request with a session", 300, "sessions-200", UVLOOP, REDIS),
    Activity("types, connects or disconnects: one publish", 60, "pubsub", UVLOOP, REDIS),
)


class Cost(NamedTuple):
    activity: Activity
    per_second: float
    core_us: float
    client_us: float
    """The client's share of the processor time."""

    @property
    def cores(self) -> float:
        return self.per_second * self.core_us / 1_000_000

    @property
    def client_cores(self) -> float:
        return self.per_second * self.client_us / 1_000_000


def costs(results: Results, daily_users: int) -> Iterator[Cost]:
    """The cost of each activity at the peak, except those that the run has not measured."""
    for activity in ACTIVITIES:
        cell = results.cell(activity.cell)
        if cell is None:
            continue
        contender = activity.contender or _largest(cell)
        if contender not in cell.rounds[0]:  # a run without uvloop
            contender = ASYNCIO
        rate = median(cell.values("rate", contender))
        per_second = daily_users * activity.per_day * PEAK / DAY_SECONDS
        core_us = results.machine.cores / rate * 1_000_000
        client_us = median(cell.values("cpu_us", contender)) if "cpu_us" in cell.rounds[0][contender] else 0.0
        client_us = min(client_us, core_us)
        if daily_users >= DISTRIBUTED_FROM:
            core_us = client_us + (core_us - client_us) * activity.on_citus
        yield Cost(activity, per_second, core_us, client_us)


def parts(found: Iterable[Cost]) -> dict[str, float]:
    """Cores at the peak by part: the application, and each part of the servers."""
    cores = dict.fromkeys(("application", PRIMARY, REPLICAS, BY_USER, REDIS), 0.0)
    for cost in found:
        cores["application"] += cost.client_cores
        cores[cost.activity.server] += cost.cores - cost.client_cores
    return cores


def _largest(cell: Comparison) -> str:
    return list(cell.rounds[0])[-1]


def markdown(results: Results) -> str:
    lines = [
        "| a daily user | per day | core us each |"
        + "".join(f" cores at the peak, {users:,} users |" for users in DAILY_USERS),
        f"| --- | --- | --- |{' --- |' * len(DAILY_USERS)}",
    ]
    by_users = {users: list(costs(results, users)) for users in DAILY_USERS}
    for each in zip(*by_users.values(), strict=True):
        activity = each[0].activity
        cores = " | ".join(f"{cost.cores:,.1f}" for cost in each)
        lines.append(f"| {activity.name} | {activity.per_day:,g} | {each[0].core_us:,.0f} | {cores} |")
    sums = {users: sum(cost.cores for cost in found) for users, found in by_users.items()}
    lines.append(f"| total | | | {' | '.join(f'{cores:,.1f}' for cores in sums.values())} |")
    lines.append("")
    unread = results.cell("unread")
    message_bytes = median(unread.values("bytes a message", _largest(unread))) if unread else None
    lines += [_machines(users, cores, message_bytes) for users, cores in sums.items()]
    lines += [
        "",
        f"| part |{''.join(f' cores, {users:,} users |' for users in STEPS)}",
        f"| --- |{' --- |' * len(STEPS)}",
    ]
    by_step = {users: parts(costs(results, users)) for users in STEPS}
    for part in by_step[STEPS[0]]:
        lines.append(f"| {part} | {' | '.join(f'{cores[part]:,.2f}' for cores in by_step.values())} |")
    return "\n".join(lines) + "\n"


def steps(results: Results) -> str:
    """The servers of each kind for each number of users, none of them busier than planned."""
    columns = (
        "daily users",
        "cores",
        "application, cores",
        "PostgreSQL, machines",
        "more for pages",
        "Redis, servers",
    )
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    per_machine = HEADROOM * CORES_PER_MACHINE
    for users in STEPS:
        cores = parts(costs(results, users))
        postgres, pages = cores[PRIMARY] + cores[BY_USER], cores[REPLICAS]
        replicas = 0 if postgres + pages <= per_machine else math.ceil(pages / per_machine)
        nodes, processes = (math.ceil(cores[part] / HEADROOM) for part in (REDIS, "application"))
        lines.append(
            f"| {users:,} | {sum(cores.values()):,.2f} | {processes:,} | {math.ceil(postgres / per_machine):,} | "
            f"{replicas:,} | {nodes:,} |"
        )
    return "\n".join(lines) + "\n"


def _machines(users: int, cores: float, message_bytes: float | None) -> str:
    machines = math.ceil(cores / HEADROOM / CORES_PER_MACHINE)
    noun = "machine" if machines == 1 else "machines"
    followers = users * ONLINE_AT_PEAK
    memory = followers * FOLLOWER_KIB / 2**20
    line = (
        f"- {users:,} daily users: {machines:,} {noun} of {CORES_PER_MACHINE} cores for application, PostgreSQL "
        f"and Redis together; {memory:,.1f} GiB for {followers:,.0f} followers, at most {FOLLOWER_KIB} KiB each"
    )
    if message_bytes is None:
        return f"{line}."
    disk = users * ACTIVITIES[0].per_day * 365 * message_bytes / 10**12
    return f"{line}; {disk:,.1f} TB of messages a year, at {message_bytes:,.0f} bytes each with their indexes."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).parent / "results" / "results.json"
    parser.add_argument("results", type=Path, nargs="?", default=default)
    results = Results.read(parser.parse_args().results)
    print(markdown(results))
    print(steps(results))


if __name__ == "__main__":
    main()
