"""What nobody foresaw, where nobody waits for the outcome."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager
from types import TracebackType


def report(what: str, error: Exception) -> None:
    """Tell the event loop's exception handler, which logs it unless the application has set one of its own."""
    asyncio.get_running_loop().call_exception_handler({"message": what, "exception": error})


class Attempt(AbstractContextManager[None, bool]):
    """For a round of a background task, an action after a COMMIT, a word to the instrumentation: what is raised
    inside ends there, and `work` is reported to have failed.

    An error that ended a task would do so without a word, as nobody awaits it before the process closes, and its
    work would stay undone until the process is started anew. So whatever it is, the next round is needed. What can
    be foreseen is for the work itself to catch. Cancellation passes, and what is to end the process.
    """

    def __init__(self, work: str) -> None:
        self._work = work

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        report(f"{self._work} failed", error)
        return True
