"""A closed loop of callers, and rounds in which each contender runs once."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import msgspec

# By name: `rate` in operations per second, `p50_ms` and `p99_ms`, `cpu_us` of the client's processor per
# operation, and figures of a single cell. Less is better, except for `rate`.
Figures = dict[str, float]

# One operation of a caller. The number differs each time, and selects the user and the room.
Step = Callable[[int], Awaitable[object]]

# A load that runs for this many seconds.
Load = Callable[[float], Awaitable[Figures]]
LEAST_WARM_UP_SECONDS = 0.1
"""Enough for 20 connections to prepare their statements, and for Node.js to compile."""


class Pace(msgspec.Struct, frozen=True):
    """Number and length of the rounds, and the size of the large table."""

    rounds: int
    seconds: float
    messages: int
    quick: bool


FULL = Pace(rounds=5, seconds=0.8, messages=5_000_000, quick=False)
QUICK = Pace(rounds=2, seconds=0.1, messages=200_000, quick=True)


class Target(NamedTuple):
    """The aim of a cell: a ratio to a peer, above 1 if hubbub is better, or else a figure."""

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
    """The contenders that were left out, with the reasons."""

    def ratios(self, figure: str, of: str, against: str) -> list[float]:
        """One ratio per round, above 1 if `of` is better."""
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
    """Warm all contenders up, then run each once per round, so that a noisy moment affects all of them.

    Every other round has the reverse order, so that no contender always runs after the same other one.
    """
    for load in contenders.values() if warm_up else ():
        await load(max(LEAST_WARM_UP_SECONDS, pace.seconds / 2))
    found: list[dict[str, Figures]] = []
    with _frozen_heap():
        for number in range(pace.rounds):
            order = list(contenders) if number % 2 == 0 else list(contenders)[::-1]
            figures = {name: await contenders[name](pace.seconds) for name in order}
            found.append({name: figures[name] for name in contenders})
    present = [target for target in targets if {target.of, target.against or target.of} <= contenders.keys()]
    return Comparison(cell, title, found, present, skipped or {})


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """Exclude all present objects from garbage collection. All contenders in Python share this process, so each
    collection would traverse the modules of the others, 50 ms at a time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def closed_loop(step: Step, callers: int, seconds: float) -> Figures:
    """Each caller runs one operation after another, at least one, and never two at a time."""
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
    """The figures of a run. Latencies and times are in seconds."""
    done = len(latencies)
    latencies.sort()
    return {
        "rate": done / elapsed,
        "p50_ms": latencies[done // 2] * 1_000,
        "p99_ms": latencies[int(done * 0.99)] * 1_000,
        "cpu_us": cpu * 1_000_000 / done,
    }
