"""Background tasks: work that no caller awaits. Its exceptions are reported, and the work goes on.

    new --start--> running: round, pause, round, ... --close--> finishing --> closed
     |                                                                          ^
     +---------------------------------- close ---------------------------------+

A task that ended with an exception would not be noticed until the process closes, and its work would stay undone
until a restart. So a round that fails is followed by another. A round catches the errors that it can foresee.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from math import inf
from types import TracebackType
from typing import Final

from hubbub.errors import Unavailable
from hubbub.forks import abandon_in_child, forked

RETRY_SECONDS: Final = 1.0
"""The pause after a round that failed. It is long enough that a lasting fault costs nothing and does not flood the
log, and short enough that a user hardly notices a passing one."""


class BackgroundTask:
    """Repeats a round of work from `start` until `close`.

    A round returns the seconds to pause before the next one, and `wake` ends the pause: `inf` pauses until then,
    None does not pause. A round that waits for its work by itself returns None.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], Awaitable[float | None]],
        *,
        finish: Callable[[], Awaitable[None]] | None = None,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """`work` is one round. `close` calls `finish` after the last round, if the task was started.

        `name` is the name of the asyncio task, and stands in the report of a round that failed.
        """
        self._name = name
        self._work = work
        self._finish = finish
        self._retry_seconds = retry_seconds
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._closed = False
        self._abandoned = False
        abandon_in_child(self.abandon)

    @property
    def is_running(self) -> bool:
        """Whether it was started and not closed."""
        return self._task is not None and not self._closed

    def check(self, what: str) -> None:
        """Raises: Unavailable (it is not running, or not in this process and event loop)."""
        if self._abandoned:
            raise forked()
        if self._task is None or self._closed:
            raise Unavailable("hub", f"{what} is not running", retryable=False)
        if self._task.get_loop() is not asyncio.get_running_loop():
            raise wrong_event_loop()

    def abandon(self) -> None:
        """In a child process no round runs. Does nothing before the start."""
        if self._task is not None:
            self._abandoned = self._closed = True

    def start(self) -> None:
        """Begin the first round in the next turn of the loop. Does nothing once started or closed."""
        if self._task is None and not self._closed:
            self._task = asyncio.create_task(self._repeat(), name=f"hubbub: {self._name}")

    def wake(self) -> None:
        """There is work: end the pause, or skip the one after the round in progress."""
        self._woken.set()

    async def close(self) -> None:
        """Cancel the round, and return once it has ended and `finish` is done.

        Idempotent, also while another close waits and after one that was cancelled: `finish` runs once.
        """
        self._closed = True
        if self._task is None or self._abandoned:
            return
        if self._ending is None:
            self._task.cancel()
            self._ending = asyncio.create_task(self._end(self._task), name=f"hubbub: close {self._name}")
        await asyncio.wait([self._ending])

    async def _repeat(self) -> None:
        while not self._closed:
            self._woken.clear()
            pause_seconds = None
            with ReportErrors(self._name) as round_:
                pause_seconds = await self._work()
            if round_.failed:
                await asyncio.sleep(jittered(self._retry_seconds))
            elif pause_seconds:
                await wait_at_most(self._woken, pause_seconds)

    async def _end(self, task: asyncio.Task[None]) -> None:
        await asyncio.wait([task])
        if self._finish is not None:
            with ReportErrors(self._name):
                await self._finish()


class ReportErrors(AbstractContextManager["ReportErrors", bool]):
    """Reports an exception of the block, and continues after it. Cancellation and `SystemExit` pass.

    For a round of a background task, an action after a COMMIT, a call of the application's own code.
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


def wrong_event_loop() -> Unavailable:
    """The error of a call that comes from another event loop than the calls before."""
    reason = (
        "it is used in another event loop than before: call it from one loop only, such as by "
        "asyncio.run_coroutine_threadsafe, or open a hub in each loop"
    )
    return Unavailable("hub", reason, retryable=False)


async def wait_at_most(event: asyncio.Event, seconds: float) -> None:
    """Return once the event is set, or after `seconds`, which may be `inf`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(None if seconds == inf else seconds):
            await event.wait()


def jittered(seconds: float, *, at_least: float = 0.5) -> float:
    """A random share of `seconds`, from `at_least` to all of it.

    Processes that lost a server together then do not return to it together.
    """
    return seconds * random.uniform(at_least, 1)  # noqa: S311 - spreads load, guards nothing
