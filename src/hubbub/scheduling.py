"""Calls of the event loop: once per turn for all requests in it, or at the earliest of many deadlines.

Also time slices of long work, a limit of callers per turn, keys of a queue in their turn, groups of concurrent
calls, and settings of garbage collection.
"""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager
from itertools import islice
from math import inf
from time import perf_counter
from typing import Any, Final, TypeVar

T = TypeVar("T")
V = TypeVar("V")

TICK_SECONDS: Final = 0.01
"""The resolution of an `EarliestTimer`. It fires no more often, however many deadlines follow each other."""

GARBAGE_THRESHOLDS: Final = (50_000, 20, 50)
"""For the three generations of `gc.set_threshold`. The figures are in docs/decisions.md."""

SLICE_SECONDS: Final = 0.004
"""How long a piece of work runs before other tasks have their turn."""


def collect_garbage_rarely() -> None:
    """Make the garbage collector run rarely, in a process with many clients. Call it once, after the start.

    By default Python scans new objects after 700 allocations, and from time to time all objects. All callers wait
    meanwhile: 50 ms in a process with 90,000 objects. Objects that exist at the call are never scanned again. New
    ones are scanned after 50,000 allocations. hubbub does not call it, because it affects the whole process, and
    because unreachable cycles of the application then use memory for longer.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)


class TimeSlice:
    """Splits long work into time slices, between which other tasks run."""

    __slots__ = ("_due",)

    def __init__(self) -> None:
        self._due = perf_counter() + SLICE_SECONDS

    @property
    def is_due(self) -> bool:
        """Whether the time slice has ended."""
        return perf_counter() >= self._due

    async def pause_if_due(self) -> None:
        """Yield to other tasks if the time slice has ended. Call it after each step of the work."""
        if perf_counter() >= self._due:
            await asyncio.sleep(0)
            self._due = perf_counter() + SLICE_SECONDS


async def in_slices(items: Sequence[T], action: Callable[[T], object], per_slice: int) -> None:
    """Call `action` with each item. Other tasks run after each slice of `per_slice` items.

    For actions that cost more in the next turn than in this one, so that a `TimeSlice` would not notice. If the
    caller is cancelled, or an action raises, the rest is done at once: no item is left out.
    """
    left = deque(items)
    try:
        while left:
            for _ in range(min(per_slice, len(left))):
                action(left.popleft())
            if left:
                await asyncio.sleep(0)
    finally:
        with ExitStack() as rest:  # calls all of them, also after one that raises
            for item in reversed(left):
                rest.callback(action, item)


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """A group of tasks whose first error cancels the others and is raised, instead of an `ExceptionGroup`."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as failures:
        first = failures.exceptions[0]
        raise first from first.__cause__


async def gather_or_cancel(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of concurrent calls, in their order. The first error cancels the others and is raised."""
    async with task_group() as group:
        tasks = [group.create_task(call) for call in calls]
    return [task.result() for task in tasks]


def take(queue: dict[T, None], most: int) -> list[T]:
    """Remove and return the first `most` keys, or fewer if there are not as many."""
    taken = list(islice(queue, most))
    for key in taken:
        del queue[key]
    return taken


def next_in_turn(queue: dict[T, V], most: int) -> list[T]:
    """The first `most` keys, or fewer if there are not as many. They go to the end of the queue."""
    keys = list(islice(queue, most))
    for key in keys:
        queue[key] = queue.pop(key)
    return keys


class OncePerTurn:
    """Calls an action once in the next turn of the event loop, however often it is requested in this one.

    The work of several callers then becomes one statement or one write.
    """

    __slots__ = ("_action", "_handle", "is_due")

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self._handle: asyncio.Handle | None = None
        self.is_due = False
        """Whether the action was requested and has not begun. An attribute, as it is read per Redis command."""

    def request(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Have the action called in the next turn. A caller that has the loop saves asking asyncio for it."""
        if not self.is_due:
            self.is_due = True
            self._handle = (loop or asyncio.get_running_loop()).call_soon(self._call)

    def cancel(self) -> None:
        """Drop the request, if there is one."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
            self.is_due = False

    def _call(self) -> None:
        self._handle = None
        self.is_due = False
        self._action()


class Pace:
    """Lets a limited number of callers per turn of the event loop go on. The others wait, in their order.

    Thousands of tasks that are ready at once take their next step in one turn otherwise, 40 us each.
    """

    __slots__ = ("_left", "_next_turn", "_per_turn", "_waiting")

    def __init__(self, per_turn: int) -> None:
        self._per_turn = self._left = per_turn
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._next_turn = OncePerTurn(self._begin_turn)

    async def wait(self) -> None:
        """Return at once in a turn that has few callers, else in one of the next."""
        self._next_turn.request()
        if self._left and not self._waiting:
            self._left -= 1
            return
        goes_on = asyncio.get_running_loop().create_future()
        self._waiting.append(goes_on)
        await goes_on

    def _begin_turn(self) -> None:
        self._left = self._per_turn
        while self._waiting and self._left:
            goes_on = self._waiting.popleft()
            if not goes_on.done():  # else its caller was cancelled
                goes_on.set_result(None)
                self._left -= 1
        if self._waiting:
            self._next_turn.request()


class EarliestTimer:
    """One timer for many deadlines, because a timer per call would cost as much as the call.

    It fires once, at the earliest of the times requested, with the time of the event loop at that moment. The
    action requests the next time.
    """

    def __init__(self, action: Callable[[float], None]) -> None:
        self._action = action
        self._timer: asyncio.TimerHandle | None = None
        self.at = inf
        """When it will fire, in the time of the event loop."""

    def request(self, at: float, now: float) -> None:
        """Fire at that time, or `TICK_SECONDS` after now if that is later, unless it fires earlier anyway."""
        if at >= self.at:
            return
        at = max(at, now + TICK_SECONDS)
        if at >= self.at:  # else requests that follow each other within a tick would put it off for ever
            return
        self.cancel()
        self.at = at
        self._timer = asyncio.get_running_loop().call_at(at, self._fire)

    def cancel(self) -> None:
        """Drop all requested times."""
        self.at = inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self.cancel()
        self._action(asyncio.get_running_loop().time())
