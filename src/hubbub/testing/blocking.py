"""Running a coroutine where no event loop runs, without touching the loop that the tests use."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

R = TypeVar("R")


def run(coroutine: Coroutine[Any, Any, R]) -> R:
    """Run it to its end, in the thread of the caller.

    Not `asyncio.run`: that leaves the thread without a current loop, which plugins that have set one rely on. Not
    in another thread: servers end with the thread that started them.
    """
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(coroutine)
