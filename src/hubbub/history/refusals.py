"""Lines that cannot be taken, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

# So many lines that cannot be used are remembered; the others are only counted.
REMEMBERED: Final = 100


class Refusal(NamedTuple):
    """A line that cannot be used, counted from 1, and why."""

    line: int
    reason: str


@dataclass(slots=True)
class Refusals:
    """How many lines could not be used, and the first of them. `tell` hears of every one."""

    count: int = 0
    first: list[Refusal] = field(default_factory=list)
    tell: Callable[[Refusal], None] | None = None

    def add(self, line: int, reason: str) -> None:
        self.count += 1
        refusal = Refusal(line, reason)
        if len(self.first) < REMEMBERED:
            self.first.append(refusal)
        if self.tell is not None:
            self.tell(refusal)
