"""The distribution of rooms of very different sizes over shards, and the cost of a message by size of the room.

    python -m benchmarks.simulate [RESULTS]

The room of rank r has a share of the messages that is proportional to 1 / r ** EXPONENT. The exponent 0.77 fits
the authors of ranks 3 to 1,000 in a real channel (../shared/data: 27,826 messages of 2,683 authors). 1.0 is more
uneven. The hash of a room's id, which is random, selects its shard. A room has members in proportion to its
messages. Costs are those of a run, by default of benchmarks/results/results.json, in core seconds of client and
servers.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks import capacity
from benchmarks.results import Results

ROOMS = 1_000_000
EXPONENTS = (0.77, 1.0)
SHARDS = (32, 128)
RUNS = 5
"""The number of runs, each with other ids."""

LARGEST = 20_000
"""The members of the largest room."""
ONLINE = 0.1
"""The share of members with a follower."""
CLASSES = (10, 100, 1_000, 10_000, LARGEST + 1)


class Spread(NamedTuple):
    """The fullest shard as a multiple of the mean, by the median of all runs."""

    exponent: float
    shards: int
    rooms: float
    messages: float
    largest_room: float
    """The largest room's share of all messages, as a multiple of the mean of a shard."""


class SizeClass(NamedTuple):
    """Rooms with fewer members than `below`, and too many for the class before."""

    below: int
    rooms: float
    messages: float
    deliveries: float
    """Shares of the total. A delivery is a message to one member who is online."""
    message_us: float
    """The core time of a message and its deliveries, in a room of the mean size of this class."""


def shares(exponent: float) -> list[float]:
    """Each room's share of all messages, the largest first."""
    weights = [rank**-exponent for rank in range(1, ROOMS + 1)]
    total = sum(weights)
    return [weight / total for weight in weights]


def spread(exponent: float, shards: int) -> Spread:
    messages = shares(exponent)
    fullest: list[tuple[float, float]] = []
    for run in range(RUNS):
        chosen = random.Random(run).choices(range(shards), k=ROOMS)
        rooms, sent = [0] * shards, [0.0] * shards
        for shard, share in zip(chosen, messages, strict=True):
            rooms[shard] += 1
            sent[shard] += share
        fullest.append((max(rooms) * shards / ROOMS, max(sent) * shards))
    of_rooms, of_messages = (median(values) for values in zip(*fullest, strict=True))
    return Spread(exponent, shards, of_rooms, of_messages, messages[0] * shards)


def size_classes(send_us: float, delivery_us: float) -> Iterator[SizeClass]:
    """The classes of a chat whose rooms have the sizes of the first exponent."""
    messages = shares(EXPONENTS[0])
    members = [max(round(LARGEST * share / messages[0]), 2) for share in messages]
    deliveries = [share * ONLINE * size for share, size in zip(messages, members, strict=True)]
    sent, delivered = list(accumulate(messages, initial=0.0)), list(accumulate(deliveries, initial=0.0))
    first = ROOMS  # rooms are sorted from the largest, so a class ends where the next smaller one begins
    for below in CLASSES:
        start = next((rank for rank, size in enumerate(members) if size < below), ROOMS)
        share, fan_out = sent[first] - sent[start], delivered[first] - delivered[start]
        if first > start:
            message_us = send_us + delivery_us * fan_out / share
            yield SizeClass(below, (first - start) / ROOMS, share, fan_out / delivered[-1], message_us)
        first = start


def markdown(results: Results) -> str:
    lines = [
        "| exponent | shards | fullest shard: rooms | fullest shard: messages | the largest room alone |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {one.exponent} | {one.shards} | {one.rooms:.3f} | {one.messages:.2f} | {one.largest_room:.2f} |"
        for one in (spread(exponent, shards) for exponent in EXPONENTS for shards in SHARDS)
    ]
    lines += [
        "",
        "| members | rooms | messages | deliveries | core us per message |",
        "| --- | --- | --- | --- | --- |",
    ]
    costs = {cost.activity.cell: cost.core_us for cost in capacity.costs(results, daily_users=1)}
    former = 2
    for one in size_classes(costs["sends-200"], costs["followers-100"]):
        lines.append(
            f"| {former:,} to {one.below - 1:,} | {one.rooms:.4%} | {one.messages:.1%} | {one.deliveries:.1%} "
            f"| {one.message_us:,.0f} |"
        )
        former = one.below
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).parent / "results" / "results.json"
    parser.add_argument("results", type=Path, nargs="?", default=default)
    print(markdown(Results.read(parser.parse_args().results)))


if __name__ == "__main__":
    main()
