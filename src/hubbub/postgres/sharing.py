"""Callers that ask at the same time share one statement."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from typing import Any, Final, Generic, TypeAlias, TypeVar

import msgspec

from hubbub.errors import Unavailable

T = TypeVar("T")

Key: TypeAlias = tuple[object, ...]

Answers: TypeAlias = Callable[[Hashable], T]
"""The answer for each name of a key."""

Ask: TypeAlias = Callable[[Mapping[Hashable, Key], "float | None"], Awaitable[Answers[T]]]
"""Runs one statement for all the keys, each of which has a name, by the deadline if there is one."""

MOST_TOGETHER: Final = 500
"""Callers of one statement. More make it no cheaper for each, and keep the event loop busy for longer."""

PATIENCE_SECONDS: Final = 0.05
"""How long a statement that is not answered holds the next one back: one stuck connection must not stop all."""

MOST_UNDER_WAY: Final = 4
"""Statements of one queue at a time, so that stuck ones cannot take the whole pool."""


class _Caller(msgspec.Struct, gc=False):
    """One who waits. Not the garbage collector's business: whatever leads back to it ends with the answer."""

    name: Hashable
    key: Key
    answer: asyncio.Future[Any]
    since: float
    deadline: float


class Queue(Generic[T]):
    """Those who ask questions of one kind: those who wait go out together.

    Who comes while no statement of the queue is under way is served at once. Who comes meanwhile shares the next
    one, never the one under way: so whoever asks after a change was acknowledged sees the change, in whatever
    process it was made. A caller that is cancelled takes nothing from the others.
    """

    def __init__(
        self, title: str, ask: Ask[T], deadline_seconds: float, *, when_idle: Callable[[], object] | None = None
    ) -> None:
        """`when_idle` is called each time when nobody waits and nothing is under way any more."""
        self._title = title
        self._ask = ask
        self._deadline_seconds = deadline_seconds
        self._when_idle = when_idle
        # Kept, because asking asyncio for it is a system call on Python 3.11.
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_Caller] = []
        self._under_way = 0
        self._together: dict[asyncio.Task[Answers[T]], list[_Caller]] = {}
        self._send_is_due = False
        self._watch: asyncio.TimerHandle | None = None

    async def find(self, name: Hashable, key: Key, deadline: float | None = None) -> T:
        """The answer for the key. Keys with one name are the same question.

        Raises `Unavailable`, at most 50 ms after the deadline, and what the statement raises.
        """
        if self._under_way or self._waiting or self._send_is_due:
            answer: T = await self._wait(name, key, deadline)
            return answer
        self._under_way += 1
        try:
            return (await self._ask({name: key}, deadline))(name)
        finally:
            self._under_way -= 1
            self._go_on(soon=bool(self._waiting))

    def _go_on(self, *, soon: bool) -> None:
        if soon:
            self._send_soon()
        elif self._when_idle is not None and not (self._under_way or self._waiting or self._send_is_due):
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None
            self._when_idle()

    def _wait(self, name: Hashable, key: Key, deadline: float | None) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = self._loop.create_future()
        now = self._loop.time()
        deadline = now + self._deadline_seconds if deadline is None else deadline
        self._waiting.append(_Caller(name, key, answer, now, deadline))
        if self._watch is None:
            self._watch = self._loop.call_later(PATIENCE_SECONDS, self._look_after_the_late)
        return answer

    def _send_soon(self) -> None:
        """In the next turn of the loop: whoever has just been answered and asks again comes along."""
        if not self._send_is_due:
            self._send_is_due = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._send_is_due = False
        callers = [caller for caller in self._waiting if not caller.answer.done()]
        callers, self._waiting = callers[:MOST_TOGETHER], callers[MOST_TOGETHER:]
        if not callers:
            self._go_on(soon=False)
            return
        self._under_way += 1
        keys = {caller.name: caller.key for caller in callers}
        task = self._loop.create_task(self._asked(keys), name=f"hubbub: {self._title}")
        self._together[task] = callers
        task.add_done_callback(self._arrived)

    async def _asked(self, keys: Mapping[Hashable, Key]) -> Answers[T]:
        return await self._ask(keys, None)  # each has a deadline of its own, which the watch sees to

    def _arrived(self, task: asyncio.Task[Answers[T]]) -> None:
        self._under_way -= 1
        callers = self._together.pop(task)
        failure = closed() if task.cancelled() else task.exception()
        if failure is not None:
            _refuse(callers, failure)
        else:
            answer_to = task.result()
            for caller in callers:
                answer = caller.answer
                if not answer.done():
                    answer.set_result(answer_to(caller.name))
        self._go_on(soon=bool(self._waiting) or len(callers) > 1)  # one who is alone again goes on alone

    def _look_after_the_late(self) -> None:
        """Refuse those whose time is over, and send those off whom a stuck statement holds back."""
        now = self._loop.time()
        for callers in (*self._together.values(), self._waiting):
            late = Unavailable("postgresql", f"no answer within {self._deadline_seconds:g} s")
            _refuse([caller for caller in callers if caller.deadline <= now], late)
        if self._is_held_back(now):
            self._send_soon()
        waits = self._waiting or self._together
        self._watch = self._loop.call_later(PATIENCE_SECONDS, self._look_after_the_late) if waits else None

    def _is_held_back(self, now: float) -> bool:
        if not self._waiting or self._under_way >= MOST_UNDER_WAY:
            return False
        return now - self._waiting[0].since >= PATIENCE_SECONDS

    async def close(self) -> None:
        """Refuse those who wait, and let those who are under way arrive."""
        if self._watch is not None:
            self._watch.cancel()
        waiting, self._waiting = self._waiting, []
        _refuse(waiting, closed())
        await asyncio.gather(*self._together, return_exceptions=True)


def _refuse(callers: Iterable[_Caller], failure: BaseException) -> None:
    for caller in callers:
        if not caller.answer.done():
            own = failure.for_another() if isinstance(failure, Unavailable) else failure
            caller.answer.set_exception(own)


def closed() -> Unavailable:
    return Unavailable("hub", "it is closed", retryable=False)
