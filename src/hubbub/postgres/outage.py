"""Coming back to a server that cannot be reached: one attempt at a time for a whole pool, with jittered pauses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final

from hubbub.errors import Unavailable
from hubbub.postgres.run import now

STEP_SECONDS: Final = 0.05
"""How much longer each pause is than the one before."""

LONGEST_PAUSE_SECONDS: Final = 2.0


class Outage:
    """From the first connection that failed to the next that succeeds.

    Hundreds of processes lose their server at the same moment. If each of their callers tried to connect, refusing
    them would keep the server from coming back: so in each process one attempt is made for all callers who wait,
    and no process pauses for as long as another.
    """

    def __init__(self, connect: Callable[[], Awaitable[None]]) -> None:
        """`connect` makes an attempt; it raises `Unavailable`, and is what tells of its outcome."""
        self._connect = connect
        self._attempts = 0
        self._not_before = 0.0
        self._next: asyncio.Task[None] | None = None
        self._is_worth_a_try = asyncio.Event()
        self.trouble: Unavailable | None = None
        """Why the last connection could not be made; None while the server can be reached."""

    def goes_on(self, trouble: Unavailable, took_seconds: float) -> None:
        """A connection failed after so long: a server that lets us wait is given as long to catch up."""
        self.trouble = trouble
        pause = min(max(self._attempts * STEP_SECONDS, took_seconds), LONGEST_PAUSE_SECONDS)
        self._not_before = now() + jittered(pause)

    def is_over(self) -> None:
        """A connection was made."""
        self.trouble = None
        self._attempts = 0

    def connection_is_back(self) -> None:
        """One that was in use is idle: the next attempt has no reason to pause."""
        if self._next is not None:
            self._is_worth_a_try.set()

    async def next_attempt(self, seconds: float) -> None:
        """Wait for the next attempt, for so long at most. What came of it is to be seen."""
        if self._next is None:
            self._attempts += 1
            self._next = asyncio.create_task(self._attempt(), name="hubbub: reach PostgreSQL again")
        await asyncio.wait([self._next], timeout=seconds)

    async def close(self) -> None:
        """Give up; those who wait see the last trouble."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait([self._next])

    async def _attempt(self) -> None:
        try:
            await self._pause()
            await self._connect()
        except Unavailable:
            pass  # it is kept as the trouble, which each of those who wait raises as his own
        finally:
            self._next = None

    async def _pause(self) -> None:
        self._is_worth_a_try.clear()
        try:
            async with asyncio.timeout_at(self._not_before):
                await self._is_worth_a_try.wait()
        except TimeoutError:
            pass  # it is over


def jittered(seconds: float) -> float:
    """A time of at most so long: the longer, the further apart are those who wait."""
    return random.uniform(0.1, 1) * seconds  # noqa: S311 - spreads load, guards nothing
