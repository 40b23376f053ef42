"""Background tasks: work that no caller awaits. What it raises is reported, and the work goes on.

    new --start--> running --close--> closed

A task that ended with an exception would stay silent until the process closes, and its work undone until the
process is restarted. So a round that fails is followed by another. Errors that can be foreseen are for the round
itself to catch.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final

RETRY_SECONDS: Final = 1.0
"""The pause after a round that failed: long enough that a fault which stays costs nothing and does not flood the
log, short enough that a user hardly notices one that passes."""


class BackgroundTask:
    """Repeats a round of work from `start` until `close`. A round that waits for work pauses by itself."""

    def __init__(
        self, name: str, work: Callable[[], Awaitable[None]], *, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        """`work` is one round. `name` is that of the asyncio task, and stands in the report of a failed round."""
        self._name = name
        self._work = work
        self._retry_seconds = retry_seconds
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def is_running(self) -> bool:
        """Whether it was started and not closed."""
        return self._task is not None and not self._closed

    def start(self) -> None:
        """Begin the first round in the next turn of the loop. Does nothing once started or closed."""
        if self._task is None and not self._closed:
            self._task = asyncio.create_task(self._repeat(), name=f"hubbub: {self._name}")

    async def close(self) -> None:
        """Cancel the round, and return once it has ended. Idempotent, also while another close waits."""
        if not self._closed:
            self._closed = True
            if self._task is not None:
                self._task.cancel()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _repeat(self) -> None:
        while True:
            with ReportErrors(self._name) as round_:
                await self._work()
            if round_.failed:
                await asyncio.sleep(jittered(self._retry_seconds))


class ReportErrors(AbstractContextManager["ReportErrors", bool]):
    """Reports what the block raises, and goes on after it. Cancellation and `SystemExit` pass.

    For a round of a background task, an action after a COMMIT, a call of the application's instrumentation.
    """

    def __init__(self, work: str) -> None:
        """`work` names what failed in the report."""
        self._work = work
        self.failed = False

    def __enter__(self) -> ReportErrors:
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self.failed = True
        report(f"{self._work} failed", error)
        return True


def report(message: str, error: Exception) -> None:
    """Call the event loop's exception handler, which logs the error unless the application has set its own."""
    asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})


def jittered(seconds: float, *, at_least: float = 0.5) -> float:
    """A random share of `seconds`, from `at_least` to all of it: processes that lost a server together then do not
    return to it together."""
    return seconds * random.uniform(at_least, 1)  # noqa: S311 - spreads load, guards nothing
