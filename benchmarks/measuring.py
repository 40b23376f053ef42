"""Windows of load, and rounds in which the contenders of a cell take turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec

# By name: `rate` in operations per second, `p50_ms`, `p99_ms`, and processor time per operation as `cpu_us` of the
# client, `postgres_us` and `redis_us`. A cell may have others. Less is better, except for `rate`.
Figures = dict[str, float]

# One operation of a caller. The number differs each time, and selects the user and the room.
Step = Callable[[int], Awaitable[object]]

# A contender in the process that measures: it works for this many seconds.
Load = Callable[[float], Awaitable[Figures]]

UVLOOP, ASYNCIO = "hubbub, uvloop", "hubbub, asyncio"
ASYNCIO_SHARE = 0.85
"""The share of each target, which is for uvloop, that plain asyncio has to reach."""
SELDOM = 3
"""Contenders without a target, and hubbub on asyncio, run in every third round."""
MIN_WARM_UP_SECONDS = 0.1
"""Enough seconds for 20 connections to prepare their statements."""


@runtime_checkable
class Pooling(Protocol):
    """A load in a process that keeps the latencies of all its rounds."""

    async def warm_up(self, seconds: float) -> None: ...
    async def pooled(self) -> Figures: ...


class Pace(msgspec.Struct, frozen=True):
    """The number and length of the rounds, and the size of the large table."""

    rounds: int
    seconds: float
    messages: int
    quick: bool

    @property
    def seldom(self) -> Pace:
        """The pace of a cell without a peer, whose figure is not a ratio."""
        return msgspec.structs.replace(self, rounds=-(-self.rounds // SELDOM))


FULL = Pace(rounds=9, seconds=2.0, messages=2_000_000, quick=False)
QUICK = Pace(rounds=1, seconds=0.1, messages=200_000, quick=True)


class Target(NamedTuple):
    """The aim of a cell: a ratio to a peer, above 1 if hubbub is better, or else a figure."""

    figure: str
    at_least: float | None = None
    against: str | None = None
    at_most: float | None = None
    of: str = "hubbub"


def aims(*found: tuple[str, float, str]) -> list[Target]:
    """The targets for hubbub on uvloop, by figure, ratio and peer, and 0.85 of each on asyncio."""
    return [
        Target(figure, round(share * at_least, 4), against, of=of)
        for figure, at_least, against in found
        for of, share in ((UVLOOP, 1.0), (ASYNCIO, ASYNCIO_SHARE))
    ]


class Comparison(msgspec.Struct):
    """The figures of the contenders in one cell, by round and name. Some contenders do not run in each round."""

    cell: str
    title: str
    rounds: list[dict[str, Figures]]
    targets: list[Target] = []
    skipped: dict[str, str] = {}
    """The omitted contenders, with the reasons."""
    pooled: dict[str, Figures] = {}
    """p50 and p99 of the calls of all rounds together."""

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(name for one in self.rounds for name in one))

    def ratios(self, figure: str, of: str, against: str) -> list[float]:
        """One ratio per round with both contenders. It is above 1 if `of` is better."""
        pairs = [(one[of][figure], one[against][figure]) for one in self.rounds if {of, against} <= one.keys()]
        return [_ratio(figure, *pair) for pair in pairs]

    def pooled_ratio(self, figure: str, of: str, against: str) -> float | None:
        pair = [self.pooled.get(name, {}).get(figure) for name in (of, against)]
        return None if pair[0] is None or pair[1] is None else _ratio(figure, pair[0], pair[1])

    def values(self, figure: str, of: str) -> list[float]:
        return [one[of][figure] for one in self.rounds if figure in one.get(of, {})]


def _ratio(figure: str, ours: float, theirs: float) -> float:
    return ours / theirs if figure == "rate" else theirs / ours


async def compare(
    cell: str,
    title: str,
    contenders: Mapping[str, Load],
    pace: Pace,
    *,
    targets: list[Target],
    skipped: dict[str, str] | None = None,
    warm_up: bool = True,
    seldom: Collection[str] = (),
) -> Comparison:
    """Warm all contenders up, then run each once per round, so that a noisy moment affects all of them.

    Every other round has the reverse order, so that no contender always runs after the same other one. Contenders
    in `seldom` run in every third round.
    """
    for load in contenders.values() if warm_up else ():
        seconds = max(MIN_WARM_UP_SECONDS, pace.seconds / 4)
        await (load.warm_up(seconds) if isinstance(load, Pooling) else load(seconds))
    found: list[dict[str, Figures]] = []
    for number in range(pace.rounds):
        due = [name for name in contenders if name not in seldom or number % SELDOM == 0]
        figures = {name: await contenders[name](pace.seconds) for name in (due if number % 2 == 0 else due[::-1])}
        found.append({name: figures[name] for name in due})
    pooled = {name: await _pooled(load) for name, load in contenders.items()}
    present = [target for target in targets if {target.of, target.against or target.of} <= contenders.keys()]
    return Comparison(cell, title, found, present, skipped or {}, {n: one for n, one in pooled.items() if one})


async def _pooled(load: object) -> Figures:
    return await load.pooled() if isinstance(load, Pooling) else {}


class Done(NamedTuple):
    """The result of a window of load. Latencies are in seconds, and `cpu_seconds` is that of the client."""

    operations: int
    seconds: float
    cpu_seconds: float
    latencies: list[float] = []  # noqa: RUF012 - nothing adds to it
    more: Figures = {}  # noqa: RUF012


async def closed_loop(step: Step, callers: int, seconds: float) -> Done:
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
    return Done(len(latencies), elapsed, cpu, latencies)


def summary(done: Done) -> Figures:
    return {
        "rate": done.operations / done.seconds,
        **quantiles(done.latencies),
        "cpu_us": done.cpu_seconds * 1_000_000 / done.operations,
        **done.more,
    }


def quantiles(latencies: Collection[float]) -> Figures:
    """p50 and p99 in milliseconds. None without latencies."""
    if not latencies:
        return {}
    ordered = sorted(latencies)
    return {
        "p50_ms": ordered[len(ordered) // 2] * 1_000,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1_000,
    }
