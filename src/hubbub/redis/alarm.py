"""One timer for the deadlines of all calls: a timer a call would cost as much as the call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from typing import Final

TICK_SECONDS: Final = 0.01
"""How finely deadlines are kept: however many calls expire one after another, it rings no more often."""


class Alarm:
    """Rings at the earliest of the times it was asked for, with the time of the loop at that moment."""

    def __init__(self, ring: Callable[[float], None]) -> None:
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        self.at = inf
        """When it will ring."""

    def ring_by(self, at: float, now: float) -> None:
        """Ring then if it would not ring earlier. Times are those of the event loop."""
        if at >= self.at:
            return
        self.stop()
        self.at = max(at, now + TICK_SECONDS)
        self._timer = asyncio.get_running_loop().call_at(self.at, self._wake)

    def stop(self) -> None:
        """Forget all times."""
        self.at = inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        self.stop()
        self._ring(asyncio.get_running_loop().time())
