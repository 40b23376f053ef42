"""Asking one server again and again, whether it answers or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Generic, NamedTuple, TypeVar

from hubbub.errors import HubbubError
from hubbub.redis import ReplyError

T = TypeVar("T")


class Reading(NamedTuple, Generic[T]):
    """What a server said, and when: in seconds of a clock that only goes on."""

    value: T
    at: float


class Watched(Generic[T]):
    """A server that is asked by `ask`, its latest answer and the one before, or what kept it from answering.

    What it said before it fell silent is forgotten: old figures would pass for new ones, and a server that was
    started anew counts from zero again.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._before: Reading[T] | None = None
        self._latest: Reading[T] | None = None
        self.trouble: HubbubError | ReplyError | None = None

    @property
    def now(self) -> T | None:
        """The latest answer; None before the first and while there is trouble."""
        return None if self._latest is None else self._latest.value

    def grown(self, figure: Callable[[T], int], since: Callable[[T], int] | None = None) -> int | None:
        """By how much a figure grew between the last two answers; None without two, or if it fell.

        `since` gives the figure of the earlier one, where it is another.
        """
        if self._latest is None or self._before is None:
            return None
        growth = figure(self._latest.value) - (since or figure)(self._before.value)
        return growth if growth >= 0 else None

    def per_second(self, figure: Callable[[T], int], since: Callable[[T], int] | None = None) -> float | None:
        """As `grown`, for each second between the two answers."""
        growth = self.grown(figure, since)
        if growth is None or self._latest is None or self._before is None:
            return None
        return growth / max(self._latest.at - self._before.at, 0.001)

    async def look(self) -> None:
        """Ask once. Does not raise for a server that cannot answer."""
        try:
            value = await self._ask()
        except (HubbubError, ReplyError) as error:
            self._before = self._latest = None
            self.trouble = error
        else:
            self._before, self._latest = self._latest, Reading(value, monotonic())
            self.trouble = None

    async def keep_looking(self, every_seconds: float, changed: Callable[[], None]) -> None:
        """Ask at this pace for ever, and tell of each answer or trouble. A late answer delays the next."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + every_seconds
            await self.look()
            changed()
            await asyncio.sleep(max(due - loop.time(), 0))
