"""Concurrent callers share one statement: lookups by key, and whole statements with the same arguments.

    no statement in flight:   the caller runs its own statement in its own task
    statement in flight:      the caller waits, and goes with the next statement

The next statement is sent in the turn of the loop after an answer, so that a caller that was just answered and
asks again goes with it. It is also sent when the oldest caller has waited for `STUCK_AFTER_SECONDS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from typing import Any, Final, Generic, TypeAlias, TypeVar

import msgspec

from hubbub.errors import Unavailable
from hubbub.postgres.errors import closed, deadline_passed
from hubbub.postgres.executor import Executor
from hubbub.postgres.statement import Lookup, Statement

T = TypeVar("T")

Args: TypeAlias = tuple[object, ...]

AnswerOf: TypeAlias = Callable[[Hashable], T]
"""Gives the answer for a key."""

Ask: TypeAlias = Callable[[Mapping[Hashable, Args], "float | None"], Awaitable[AnswerOf[T]]]
"""Runs one statement for the arguments of all the keys, until the deadline if there is one."""

CALLERS_PER_STATEMENT: Final = 500
"""More make a statement no cheaper per caller, and keep the event loop busy for longer at a time."""

STUCK_AFTER_SECONDS: Final = 0.05
"""How long callers wait for a statement that is not answered before another one is sent beside it. One connection
that is stuck must not stop them all. A lookup is usually answered within a few milliseconds."""

STATEMENTS_IN_FLIGHT: Final = 4
"""Per queue, so that stuck statements of one kind do not take the whole pool."""


class _Caller(msgspec.Struct, gc=False):
    """A caller that waits. Without garbage collection: every reference back to it ends with the answer."""

    key: Hashable
    args: Args
    answer: asyncio.Future[Any]
    since: float
    deadline: float


class StatementQueue(Generic[T]):
    """The callers of one kind of statement.

    A caller that comes while a statement is in flight goes with the next one, never with that one. So a caller
    that asks after a change was acknowledged sees the change, in whichever process it was made. A caller that is
    cancelled takes nothing from the others.
    """

    def __init__(
        self, title: str, ask: Ask[T], deadline_seconds: float, *, when_idle: Callable[[], object] | None = None
    ) -> None:
        """`when_idle` is called each time when no caller waits and no statement is in flight any more."""
        self._title = title
        self._ask = ask
        self._deadline_seconds = deadline_seconds
        self._when_idle = when_idle
        self._loop = asyncio.get_running_loop()  # kept: asking asyncio for it is a system call on Python 3.11
        self._waiting: list[_Caller] = []
        self._in_flight = 0
        self._callers_of: dict[asyncio.Task[AnswerOf[T]], list[_Caller]] = {}
        # Not a `OncePerTurn`: it would refer back to the queue, and a queue is made for each call of
        # `fetch_shared`.
        self._send_is_due = False
        self._watch: asyncio.TimerHandle | None = None

    async def find(self, key: Hashable, args: Args, deadline: float | None = None) -> T:
        """The answer for the arguments. Calls with equal keys ask the same.

        Raises: Unavailable (at most 50 ms after the deadline), and what the statement raises.
        """
        if self._in_flight or self._waiting or self._send_is_due:
            answer: T = await self._wait(key, args, deadline)
            return answer
        self._in_flight += 1
        try:
            return (await self._ask({key: args}, deadline))(key)
        finally:
            self._in_flight -= 1
            self._go_on(soon=bool(self._waiting))

    def _go_on(self, *, soon: bool) -> None:
        if soon:
            self._send_soon()
        elif self._when_idle is not None and not (self._in_flight or self._waiting or self._send_is_due):
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None
            self._when_idle()

    def _wait(self, key: Hashable, args: Args, deadline: float | None) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = self._loop.create_future()
        now = self._loop.time()
        deadline = now + self._deadline_seconds if deadline is None else deadline
        self._waiting.append(_Caller(key, args, answer, now, deadline))
        if self._watch is None:
            self._watch = self._loop.call_later(STUCK_AFTER_SECONDS, self._check_deadlines)
        return answer

    def _send_soon(self) -> None:
        if not self._send_is_due:
            self._send_is_due = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._send_is_due = False
        callers = [caller for caller in self._waiting if not caller.answer.done()]
        callers, self._waiting = callers[:CALLERS_PER_STATEMENT], callers[CALLERS_PER_STATEMENT:]
        if not callers:
            self._go_on(soon=False)
            return
        self._in_flight += 1
        args_of = {caller.key: caller.args for caller in callers}
        task = self._loop.create_task(self._asked(args_of), name=f"hubbub: {self._title}")
        self._callers_of[task] = callers
        task.add_done_callback(self._answered)

    async def _asked(self, args_of: Mapping[Hashable, Args]) -> AnswerOf[T]:
        return await self._ask(args_of, None)  # without a deadline: the watch sees to that of each caller

    def _answered(self, task: asyncio.Task[AnswerOf[T]]) -> None:
        self._in_flight -= 1
        callers = self._callers_of.pop(task)
        failure = closed() if task.cancelled() else task.exception()
        if failure is not None:
            _refuse(callers, failure)
        else:
            answer_of = task.result()
            for caller in callers:
                if not caller.answer.done():
                    caller.answer.set_result(answer_of(caller.key))
        self._go_on(soon=bool(self._waiting) or len(callers) > 1)  # a caller that is alone again goes on alone

    def _check_deadlines(self) -> None:
        """Refuse the callers whose deadline has passed, and send those that a stuck statement holds back."""
        now = self._loop.time()
        for callers in (*self._callers_of.values(), self._waiting):
            late = deadline_passed(self._deadline_seconds, outcome_unknown=False)
            _refuse([caller for caller in callers if caller.deadline <= now], late)
        if self._is_held_back(now):
            self._send_soon()
        watched = self._waiting or self._callers_of
        self._watch = self._loop.call_later(STUCK_AFTER_SECONDS, self._check_deadlines) if watched else None

    def _is_held_back(self, now: float) -> bool:
        if not self._waiting or self._in_flight >= STATEMENTS_IN_FLIGHT:
            return False
        return now - self._waiting[0].since >= STUCK_AFTER_SECONDS

    async def close(self) -> None:
        """Refuse the callers that wait, and let the statements in flight end."""
        if self._watch is not None:
            self._watch.cancel()
        waiting, self._waiting = self._waiting, []
        _refuse(waiting, closed())
        await asyncio.gather(*self._callers_of, return_exceptions=True)


def _refuse(callers: Iterable[_Caller], failure: BaseException) -> None:
    for caller in callers:
        if not caller.answer.done():
            own = failure.for_another() if isinstance(failure, Unavailable) else failure
            caller.answer.set_exception(own)


class SharedStatements:
    """The statements that callers of a pool share: a queue per lookup, and one per statement and arguments."""

    def __init__(self, executor: Executor, deadline_seconds: float) -> None:
        self._executor = executor
        self._deadline_seconds = deadline_seconds
        self._lookups: dict[Lookup[Any], StatementQueue[Any]] = {}
        self._statements: dict[tuple[Statement[Any], Args], StatementQueue[Any]] = {}

    def look_up(self, lookup: Lookup[T], key: Args) -> Awaitable[T | None]:
        """The row of the key, or None."""
        queue = self._lookups.get(lookup)
        if queue is None:
            ask = self._ask_by_key(lookup)
            queue = self._lookups[lookup] = StatementQueue(lookup.name, ask, self._deadline_seconds)
        return queue.find(lookup.key_of_args(*key), key)

    def _ask_by_key(self, lookup: Lookup[T]) -> Ask[T | None]:
        async def ask(args_of: Mapping[Hashable, Args], deadline: float | None) -> AnswerOf[T | None]:
            if len(args_of) == 1:
                [args] = args_of.values()
                row = await self._executor.fetch_one(lookup, *args, deadline=deadline)
                return lambda _: row
            key_of_row = lookup.key_of_row
            columns = zip(*args_of.values(), strict=True)
            rows = await self._executor.fetch_all(lookup.many, *columns, deadline=deadline)
            return {key_of_row(row): row for row in rows}.get

        return ask

    async def fetch(self, statement: Statement[T], args: Args, deadline: float | None) -> list[T]:
        """Every row. The queue goes as soon as no caller waits for these rows: there are many arguments."""
        asked = (statement, args)
        queue = self._statements.get(asked)
        if queue is None:
            queue = self._statements[asked] = StatementQueue(
                statement.name,
                self._ask_all(statement),
                self._deadline_seconds,
                when_idle=lambda: self._statements.pop(asked, None),
            )
        rows: list[T] = await queue.find(None, args, deadline)
        return rows

    def _ask_all(self, statement: Statement[T]) -> Ask[list[T]]:
        async def ask(args_of: Mapping[Hashable, Args], deadline: float | None) -> AnswerOf[list[T]]:
            [args] = args_of.values()
            rows = await self._executor.fetch_all(statement, *args, deadline=deadline)
            return lambda _: rows

        return ask

    async def close(self) -> None:
        """Refuse the callers that wait, and let the statements in flight end: the pool bounds how long they
        take."""
        for queue in (*self._lookups.values(), *self._statements.values()):
            await queue.close()
