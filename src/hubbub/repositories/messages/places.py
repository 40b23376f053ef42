"""How many may wait at a time, and until when."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from hubbub.repositories.messages.queues import Waiting


class Places:
    """A bounded number of places. Who finds none waits for one, first come first served.

    As `asyncio.Semaphore`, of which taking a free place costs a twentieth of a whole send (docs/decisions.md).
    """

    def __init__(self, number: int) -> None:
        self._free = number
        self._line: deque[asyncio.Future[None]] = deque()
        self._called = 0  # those who were given a place and have not woken yet

    def take(self) -> bool:
        """A place, if one is free and nobody stands in line for it."""
        if self._free and not self._called and not self._line:
            self._free -= 1
            return True
        return False

    async def wait(self, until: float) -> None:
        """A place, as soon as there is one. Raises `TimeoutError` at that time of the event loop."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        self._call()  # one may have become free while others were on their way to theirs
        try:
            async with asyncio.timeout_at(until):
                await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._called -= 1
                self.give_back()  # it came at the same moment
            raise
        self._called -= 1

    def give_back(self) -> None:
        """To whoever has waited longest for it."""
        self._free += 1
        self._call()

    def _call(self) -> None:
        while self._line and self._free:
            turn = self._line.popleft()
            if not turn.done():
                self._free -= 1
                self._called += 1
                turn.set_result(None)


class Deadlines:
    """One timer for all who wait: a timer each would cost more than their place in the queue.

    Everybody waits for the same time, so the deadlines come in the order in which they were added.
    """

    def __init__(self, expire: Callable[[Waiting], None], *, grace_seconds: float) -> None:
        """`expire` is called for each who has no answer `grace_seconds` after the deadline."""
        self._expire = expire
        self._grace_seconds = grace_seconds
        self._order: deque[Waiting] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, waiting: Waiting) -> None:
        self._forget_answered()
        self._order.append(waiting)
        if self._timer is None:
            self._wake_for(waiting)

    def _forget_answered(self) -> None:
        order = self._order
        while order and order[0].answer.done():
            order.popleft()

    def _wake_for(self, waiting: Waiting) -> None:
        at = waiting.deadline + self._grace_seconds
        self._timer = asyncio.get_running_loop().call_at(at, self._wake)

    def _wake(self) -> None:
        self._timer = None
        limit = asyncio.get_running_loop().time() - self._grace_seconds
        while self._order and self._order[0].deadline <= limit:
            waiting = self._order.popleft()
            if not waiting.answer.done():
                self._expire(waiting)
        self._forget_answered()
        if self._order:
            self._wake_for(self._order[0])
