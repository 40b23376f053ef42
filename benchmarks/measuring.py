"""A closed loop of callers, and rounds in which every contender runs once."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import msgspec

# By name: `rate` in operations a second, `p50_ms` and `p99_ms`, `cpu_us` of the client's processor for an
# operation, and whatever else a cell counts. Of all but `rate` less is better.
Figures = dict[str, float]

# One operation of a caller. The number is another one each time, and says whose turn it is.
Step = Callable[[int], Awaitable[object]]

# A load for so many seconds.
Load = Callable[[float], Awaitable[Figures]]


# So that each of 20 connections has prepared its statements, and Node.js has compiled, before it counts.
LEAST_WARM_UP_SECONDS = 0.1


class Pace(msgspec.Struct, frozen=True):
    """How often and how long, and the size of the large table."""

    rounds: int
    seconds: float
    messages: int
    quick: bool


FULL = Pace(rounds=5, seconds=0.8, messages=5_000_000, quick=False)
QUICK = Pace(rounds=2, seconds=0.1, messages=200_000, quick=True)


class Target(NamedTuple):
    """What a cell is to reach: against a peer a ratio, above 1 where hubbub is better; else a plain figure."""

    figure: str
    at_least: float | None = None
    against: str | None = None
    at_most: float | None = None
    of: str = "hubbub"


class Comparison(msgspec.Struct):
    """The figures of all contenders in one cell, by round and name."""

    cell: str
    title: str
    rounds: list[dict[str, Figures]]
    targets: list[Target] = []
    skipped: dict[str, str] = {}
    """What was left out, and why."""

    def ratios(self, figure: str, of: str, against: str) -> list[float]:
        """One a round; above 1 it speaks for `of`."""
        pairs = [(one[of][figure], one[against][figure]) for one in self.rounds]
        return [ours / theirs if figure == "rate" else theirs / ours for ours, theirs in pairs]

    def values(self, figure: str, of: str) -> list[float]:
        return [one[of][figure] for one in self.rounds]


async def compare(
    cell: str,
    title: str,
    contenders: Mapping[str, Load],
    pace: Pace,
    *,
    targets: list[Target],
    skipped: dict[str, str] | None = None,
    warm_up: bool = True,
) -> Comparison:
    """Warm everybody up, then let each run once a round, so that a noisy moment hits all of them.

    Every other round goes the other way around, so that nobody always runs after the same neighbour.
    """
    for load in contenders.values() if warm_up else ():
        await load(max(LEAST_WARM_UP_SECONDS, pace.seconds / 2))
    found: list[dict[str, Figures]] = []
    with _left_out_of_collections():
        for number in range(pace.rounds):
            order = list(contenders) if number % 2 == 0 else list(contenders)[::-1]
            figures = {name: await contenders[name](pace.seconds) for name in order}
            found.append({name: figures[name] for name in contenders})
    present = [target for target in targets if {target.of, target.against or target.of} <= contenders.keys()]
    return Comparison(cell, title, found, present, skipped or {})


@contextmanager
def _left_out_of_collections() -> Iterator[None]:
    """What is there by now. All contenders in Python share this process: each would have the collector look
    through the modules of all the others, 50 ms at a time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def closed_loop(step: Step, callers: int, seconds: float) -> Figures:
    """Each caller does one thing after another, at least one, and never two at a time."""
    latencies: list[float] = []
    cpu_began, began = time.process_time(), time.perf_counter()
    until = began + seconds

    async def caller(number: int) -> None:
        ended = time.perf_counter()
        while True:
            started = ended
            await step(number)
            ended = time.perf_counter()
            latencies.append(ended - started)
            if ended >= until:
                return
            number += callers

    await asyncio.gather(*(caller(number) for number in range(callers)))
    elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    return summary(latencies, elapsed, cpu)


def loop_of(step: Step, callers: int) -> Load:
    return lambda seconds: closed_loop(step, callers, seconds)


def summary(latencies: list[float], elapsed: float, cpu: float) -> Figures:
    """Of latencies and times in seconds."""
    done = len(latencies)
    latencies.sort()
    return {
        "rate": done / elapsed,
        "p50_ms": latencies[done // 2] * 1_000,
        "p99_ms": latencies[int(done * 0.99)] * 1_000,
        "cpu_us": cpu * 1_000_000 / done,
    }
