"""Looking rows up by their key: callers that ask at the same time share one statement."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

from hubbub.errors import Unavailable
from hubbub.postgres.statement import Statement

if TYPE_CHECKING:
    from hubbub.postgres.executor import Executor

T = TypeVar("T")

Key: TypeAlias = tuple[object, ...]

MOST_TOGETHER: Final = 500
"""Keys in one statement. More make it no cheaper for each, and keep the event loop busy for longer at a time."""

PATIENCE_SECONDS: Final = 0.05
"""How long a statement that is not answered holds the next one back: one stuck connection must not stop all."""

MOST_UNDER_WAY: Final = 4
"""Statements of one lookup at a time, so that stuck ones cannot take the whole pool."""


class Lookup(Statement[T]):
    """A statement that finds the row of one key, with another, `many`, that finds the rows of many keys.

    The placeholders of the statement make up the key. `many` has as many, and each is an array: the n-th items of
    all of them are the n-th key. `key` says what the placeholders are for a row.
    """

    __slots__ = ("key", "many")

    def __init__(
        self, name: str, model: Callable[..., T], sql: str, *, many: Statement[T], key: Callable[[T], Key]
    ) -> None:
        super().__init__(name, model, sql)
        self.many = many
        self.key = key


class Lookups:
    """The lookups of a pool: those of one kind that wait go out together.

    Who comes while no lookup of the kind is under way is served at once, by the statement for one key. Who comes
    meanwhile shares the next statement, never the one under way: so whoever asks after a change was acknowledged
    sees the change, in whatever process it was made. A caller that is cancelled takes nothing from the others.
    """

    def __init__(self, executor: Executor, deadline_seconds: float) -> None:
        self._executor = executor
        self._deadline_seconds = deadline_seconds
        self._queues: dict[Lookup[Any], Queue[Any]] = {}

    def find(self, lookup: Lookup[T], key: Key) -> Awaitable[T | None]:
        """The row of the key, or None. Raises `Unavailable`, by the deadline at the latest."""
        queue = self._queues.get(lookup)
        if queue is None:
            queue = self._queues[lookup] = Queue(self._executor, lookup, self._deadline_seconds)
        return queue.find(key)

    async def close(self) -> None:
        """Refuse those who wait, and let those who are under way arrive: the pool sees to it that they do."""
        for queue in self._queues.values():
            await queue.close()


class _Caller(NamedTuple):
    key: Key
    answer: asyncio.Future[Any]
    deadline: float


class Queue(Generic[T]):
    """Those who wait for one kind of lookup."""

    def __init__(self, executor: Executor, lookup: Lookup[T], deadline_seconds: float) -> None:
        self._executor = executor
        self._lookup = lookup
        self._deadline_seconds = deadline_seconds
        # Kept, because asking asyncio for it is a system call on Python 3.11.
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_Caller] = []
        self._under_way = 0
        self._together: dict[asyncio.Task[list[T]], list[_Caller]] = {}
        self._send_is_due = False
        self._watch: asyncio.TimerHandle | None = None

    async def find(self, key: Key) -> T | None:
        if self._under_way or self._waiting or self._send_is_due:
            return await self._wait(key)
        self._under_way += 1
        try:
            return await self._executor.fetch_one(self._lookup, *key)
        finally:
            self._under_way -= 1
            if self._waiting:
                self._send_soon()

    def _wait(self, key: Key) -> asyncio.Future[T | None]:
        answer: asyncio.Future[T | None] = self._loop.create_future()
        self._waiting.append(_Caller(key, answer, self._loop.time() + self._deadline_seconds))
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
            return
        self._under_way += 1
        keys = list({caller.key: None for caller in callers})
        task = self._loop.create_task(self._fetch(keys), name=f"hubbub: {self._lookup.name}")
        self._together[task] = callers
        task.add_done_callback(self._arrived)

    async def _fetch(self, keys: list[Key]) -> list[T]:
        if len(keys) > 1:
            return await self._executor.fetch_all(self._lookup.many, *zip(*keys, strict=True))
        row = await self._executor.fetch_one(self._lookup, *keys[0])
        return [] if row is None else [row]

    def _arrived(self, task: asyncio.Task[list[T]]) -> None:
        self._under_way -= 1
        callers = self._together.pop(task)
        failure = _closed() if task.cancelled() else task.exception()
        if failure is not None:
            _refuse(callers, failure)
        else:
            key_of = self._lookup.key
            found = {key_of(row): row for row in task.result()}
            for key, answer, _ in callers:
                if not answer.done():
                    answer.set_result(found.get(key))
        if self._waiting or len(callers) > 1:  # one who is alone again goes on alone
            self._send_soon()

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
        waited = now - (self._waiting[0].deadline - self._deadline_seconds)
        return waited >= PATIENCE_SECONDS

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        waiting, self._waiting = self._waiting, []
        _refuse(waiting, _closed())
        await asyncio.gather(*self._together, return_exceptions=True)


def _refuse(callers: Iterable[_Caller], failure: BaseException) -> None:
    for caller in callers:
        if not caller.answer.done():
            own = failure.for_another() if isinstance(failure, Unavailable) else failure
            caller.answer.set_exception(own)


def _closed() -> Unavailable:
    return Unavailable("hub", "it is closed", retryable=False)
