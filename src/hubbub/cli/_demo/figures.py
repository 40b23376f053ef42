"""What a step of the demo hands over: how often it did what and how fast, and what it found to hold or not."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Something that was done `count` times: in `seconds` altogether, and how long a single one took.

    What ran side by side with other things has no time altogether of its own, and `seconds` is None.
    """

    what: str
    count: int
    seconds: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None

    @property
    def per_second(self) -> float | None:
        return self.count / self.seconds if self.seconds else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A claim about the chat: how many things it was compared on, and what did not hold, empty when all did."""

    what: str
    count: int
    wrong: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The result of one step. `seconds` is how long it took; whoever runs the step fills it in."""

    title: str
    seconds: float = 0.0
    figures: tuple[Figure, ...] = ()
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()


class Scene(NamedTuple):
    """A part of a step that plays beside others."""

    checks: tuple[Check, ...]
    figures: tuple[Figure, ...] = ()


class Stopwatch:
    """Times calls by what they do."""

    def __init__(self) -> None:
        self._begin = perf_counter()
        self._taken: dict[str, array[float]] = {}

    @contextmanager
    def time(self, what: str) -> Iterator[None]:
        """A call that raises is not counted."""
        start = perf_counter()
        yield
        self.note(what, perf_counter() - start)

    def note(self, what: str, seconds: float) -> None:
        """Something that took so long and is no call."""
        self._taken.setdefault(what, array("d")).append(seconds)

    def figures(self) -> tuple[Figure, ...]:
        """One figure a kind of call, the most frequent first."""
        figures = (_figure(what, sorted(taken)) for what, taken in self._taken.items())
        return tuple(sorted(figures, key=lambda figure: -figure.count))

    def all_in_all(self, what: str, count: int) -> Figure:
        """So many of something in the time since the watch was made."""
        return Figure(what=what, count=count, seconds=perf_counter() - self._begin)

    @property
    def calls(self) -> int:
        return sum(len(taken) for taken in self._taken.values())


def _figure(what: str, ordered: list[float]) -> Figure:
    p50, p99 = at_share(ordered, 0.50), at_share(ordered, 0.99)
    return Figure(what=what, count=len(ordered), p50_ms=p50 * 1000, p99_ms=p99 * 1000)


def at_share(ordered: list[float], share: float) -> float:
    """The smallest value that at least this share of the values, which are sorted, does not exceed."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


@dataclass(slots=True)
class Claim:
    """A check that is made again and again while others talk. Only the first breaches are kept."""

    what: str
    count: int = 0
    breaches: list[str] = field(default_factory=list)

    def holds(self, true: bool, otherwise: str) -> None:
        self.count += 1
        if not true and len(self.breaches) < 10:
            self.breaches.append(otherwise)

    def check(self) -> Check:
        return Check(what=self.what, count=self.count, wrong=tuple(self.breaches))
