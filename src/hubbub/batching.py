"""Callers share statements: requests that wait while a statement is in flight go together in the next.

A request:

    call --nothing in flight--> direct --------------------------> answered
      |                                                              ^
      +--> waiting --a worker takes its batch--> in flight ----------+
              ^                                      |
              +---------- put back (key locked) -----+

Workers, each of which runs one batch after another until nothing is left to take:

    none --a request waits--> one --`load` requests--> `workers`, each of which takes its part of all
                               |
                               +--a statement unanswered for 50 ms--> one more per such statement, to MAX_WORKERS

A request that finds nothing in flight runs a statement of its own at once, in the task of its caller. A cancelled
caller then cancels the statement, which may have been committed. So a change that must not run twice always has a
worker. No timer delays anything. A request that a caller has abandoned takes nothing from the others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from enum import Enum
from functools import partial
from itertools import chain
from math import inf
from operator import attrgetter
from threading import get_ident
from typing import Any, Final, Generic, TypeAlias, TypeVar

import msgspec

from hubbub.background import ReportErrors, wrong_event_loop
from hubbub.errors import Unavailable
from hubbub.forks import abandon_in_child, forked
from hubbub.scheduling import EarliestTimer

Item = TypeVar("Item")
Result = TypeVar("Result")

ALLOW_ANOTHER_WORKER_AFTER_SECONDS: Final = 0.05
"""How long an unanswered statement holds back the next one. A statement takes 1 to 20 ms, so 50 ms mean a locked
row or a server that hangs, which must not stop all callers."""

MAX_WORKERS: Final = 4
"""Statements in flight at a time, including unanswered ones, so that these cannot take the whole pool of 20. Twice
as many as `workers`, if that is more, and `DISTRIBUTED_WORKERS` where rooms are distributed."""

WORKERS: Final = 2
"""Writing statements in flight with `LOAD` requests. One writes while the results of the other are handled."""

DISTRIBUTED_WORKERS: Final = 8
"""Statements in flight where rooms are distributed, each for one room. More were no faster on two nodes."""

LOAD: Final = 50
"""Requests that wait or are in flight. With fewer, two statements cost more than they gain (docs/decisions.md)."""

MAX_WAITING: Final = 10_000
"""Bounds the memory of requests that wait. Further callers wait for a slot until their deadline."""

ANSWERS_PER_TURN: Final = 50
"""Results passed to `committed` before other tasks run. Notifying the followers of 50 messages takes some
milliseconds."""

OUTCOME_GRACE_SECONDS: Final = 0.1
"""A writing statement has the same deadline, and its own error is the most precise about the outcome. Its callers
get a less certain error only if it does not end within this time."""


class PutBack(Enum):
    """The outcome of a request whose key is locked: nothing was done, and the request waits again."""

    PUT_BACK = "put back"


PUT_BACK: Final = PutBack.PUT_BACK

_NO_RESULT: Final = (Exception, PutBack)

BatchOutcome: TypeAlias = Result | Exception | PutBack
RunOne: TypeAlias = Callable[[Item, float], Awaitable[Result]]
RunMany: TypeAlias = Callable[[list[Item], float], Awaitable[Sequence[BatchOutcome[Result]]]]


class PendingCall(msgspec.Struct, Generic[Item], eq=False, gc=False):
    """A request and its caller. `gc=False` is safe, because all references to it end with the answer."""

    item: Item
    answer: asyncio.Future[Any]
    deadline: float
    """In the time of the event loop."""
    key: Hashable = None
    id: Hashable = None
    is_in_flight: bool = False
    """Kept by a `KeyedQueue`."""


class PlainQueue(deque[PendingCall[Item]]):
    """Requests in the order in which they came, for statements between which order does not matter, as lookups."""

    in_flight = 0

    add = deque.append

    @property
    def ready(self) -> deque[PendingCall[Item]]:
        return self

    def take(self, most: int, parts: int = 1) -> list[PendingCall[Item]]:
        """The next batch, up to `most`. With `parts`, it is at most that part of all requests."""
        most = min(most, -(-(len(self) + self.in_flight) // parts))
        batch: list[PendingCall[Item]] = []
        while self and len(batch) < most:
            if len(self) <= most - len(batch):
                calls = list(self)
                self.clear()
            else:
                calls = [self.popleft() for _ in range(most - len(batch))]
            batch += [call for call in calls if not call.answer.done()]
        self.in_flight += len(batch)
        return batch

    def occupy(self, key: Hashable) -> None:
        """Nothing: a key holds no other request back."""

    free = occupy

    def end(self, batch: Sequence[PendingCall[Item]], put_back: Sequence[PendingCall[Item]]) -> None:
        self.in_flight -= len(batch)
        self.extendleft(call for call in reversed(put_back) if not call.answer.done())

    def withdraw(self, call: PendingCall[Item]) -> None:
        """Nothing: `take` skips a request that has been answered or cancelled."""


class KeyedQueue(Generic[Item]):
    """Requests by key, each key in the order in which they came.

    A key with a request in flight is passed over until that has ended, so that nothing overtakes it.
    """

    def __init__(self, keys_per_batch: int | None = None) -> None:
        """`keys_per_batch` bounds the keys of a batch. None: only its requests are bounded."""
        self._keys_per_batch = keys_per_batch
        self._queues: dict[Hashable, deque[PendingCall[Item]]] = {}
        self.ready: deque[Hashable] = deque()
        """Keys with requests waiting and none in flight."""
        self._busy: set[Hashable] = set()  # keys with requests in flight
        self._locked: set[Hashable] = set()  # keys whose requests were put back
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[PendingCall[Item]]:
        return (call for queue in self._queues.values() for call in queue)

    def add(self, call: PendingCall[Item]) -> None:
        key = call.key
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = deque()
            if key not in self._busy:
                self.ready.append(key)
        queue.append(call)
        self._length += 1

    def occupy(self, key: Hashable) -> None:
        """Hold back the requests for the key, until `free`: one that did not wait here is in flight."""
        self._busy.add(key)

    def take(self, most: int, parts: int = 1) -> list[PendingCall[Item]]:
        """The next batch: the requests of each free key, up to `most`, with each id only once.

        With `parts`, it has at most that part of all keys. A key whose requests were put back gets a batch of its
        own.
        """
        batch: list[PendingCall[Item]] = []
        ids: set[Hashable] = set()
        keys = self._keys_per_batch or -(-(len(self.ready) + len(self._busy)) // parts)
        for _ in range(min(len(self.ready), keys)):
            if len(batch) >= most:
                break
            key = self.ready.popleft()
            goes_alone = key in self._locked
            if (goes_alone and batch) or not self._take_from(key, batch, ids, most):
                self.ready.append(key)
            elif goes_alone:
                break
        self._length -= len(batch)
        return batch

    def _take_from(self, key: Hashable, batch: list[PendingCall[Item]], ids: set[Hashable], most: int) -> bool:
        queue = self._queues[key]
        before = len(batch)
        while queue and len(batch) < most:
            call = queue[0]
            if call.id is not None:
                if call.id in ids:
                    break
                ids.add(call.id)
            queue.popleft()
            call.is_in_flight = True
            batch.append(call)
        if not queue:
            del self._queues[key]
        if len(batch) == before:
            return False
        self._busy.add(key)
        return True

    def end(self, batch: Sequence[PendingCall[Item]], put_back: Sequence[PendingCall[Item]]) -> None:
        """The batch has ended. The requests that are put back are the first of their keys to go next time."""
        for call in reversed(put_back):
            self.put_back(call)
        still_locked = {call.key for call in put_back}
        for key in {call.key for call in batch}:
            self.free(key)
            if key in still_locked and key in self._queues:
                self._locked.add(key)

    def put_back(self, call: PendingCall[Item]) -> None:
        """It goes first once its key is free, also if its caller was cancelled, because it has been in flight.

        A request that was answered, because its deadline passed, is dropped.
        """
        if call.answer.done() and not call.answer.cancelled():
            return
        call.is_in_flight = False
        self._queues.setdefault(call.key, deque()).appendleft(call)
        self._length += 1

    def free(self, key: Hashable) -> None:
        if key not in self._busy:  # it was freed when its statement was overdue
            return
        self._busy.remove(key)
        self._locked.discard(key)
        if key in self._queues:
            self.ready.append(key)

    def withdraw(self, call: PendingCall[Item]) -> None:
        """The caller was cancelled. Remove the request, unless it is in flight."""
        if call.is_in_flight:
            return
        key = call.key
        queue = self._queues[key]
        queue.remove(call)
        self._length -= 1
        if not queue:
            del self._queues[key]
            self._locked.discard(key)
            if key not in self._busy:
                self.ready.remove(key)
        call.is_in_flight = True


class Slots:
    """A bounded number of slots. A caller that finds none free waits for one, first come, first served.

    As `asyncio.Semaphore`, but taking a free slot of that costs a twentieth of a whole send (docs/decisions.md).
    """

    def __init__(self, number: int) -> None:
        self._free = number
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._assigned = 0  # slots given to callers that have not resumed yet

    @property
    def has_waiters(self) -> bool:
        """Whether callers wait for a slot, or have been given one and have not resumed."""
        return bool(self._assigned or self._waiters)

    def take(self) -> bool:
        """Take a slot, if one is free and no other caller waits for it."""
        if self._free and not self._assigned and not self._waiters:
            self._free -= 1
            return True
        return False

    async def wait(self, deadline: float) -> None:
        """Take a slot as soon as there is one. Raises: TimeoutError (at the deadline, in the time of the loop)."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._assign()  # one may have become free before earlier waiters have resumed
        try:
            async with asyncio.timeout_at(deadline):
                if waiter.done():
                    await asyncio.sleep(0)  # after the earlier waiters, which have a slot and have not resumed
                await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                self._assigned -= 1
                self.give_back()  # it was assigned at the same moment
            raise
        self._assigned -= 1

    def give_back(self) -> None:
        """Free a slot, for the caller that has waited longest."""
        self._free += 1
        if self._waiters:
            self._assign()

    def _assign(self) -> None:
        while self._waiters and self._free:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._free -= 1
                self._assigned += 1
                waiter.set_result(None)


class _Runner(msgspec.Struct, eq=False):
    """The direct statement of a caller while it is in flight, or a worker until it ends."""

    began: float
    """In the time of the event loop; `inf` between the statements of a worker."""
    batch: Sequence[PendingCall[Any]] = ()
    key: Hashable = None
    """Of a direct one."""
    is_overdue: bool = False
    is_taking: bool = False
    """Whether it is a worker that has not taken its next batch."""
    task: asyncio.Task[None] | None = None


class Batcher(Generic[Item, Result]):
    """Runs the requests of all callers in as few statements as they need. The state diagram is above.

    At most one batch per key is in flight, so the requests for a key are run in the order in which they came.
    """

    def __init__(
        self,
        name: str,
        run_one: RunOne[Item, Result],
        run_many: RunMany[Item, Result],
        *,
        deadline_seconds: float,
        queue: PlainQueue[Item] | KeyedQueue[Item],
        per_batch: int,
        workers: int = 1,
        load: int = 0,
        most_waiting: int | None = None,
        writes: bool = False,
        committed: Callable[[Sequence[Result]], None] | None = None,
    ) -> None:
        """`name` is the name of the tasks, and appears in errors.

        `run_one` runs a statement for one item by a deadline, and raises its error. `run_many` returns one outcome
        per item, in their order; what it raises is the outcome of all. `per_batch` bounds its items. `workers` is
        how many batches are in flight while at least `load` requests wait or are in a batch.

        With `most_waiting`, further callers wait for a slot. With `writes`, for which the queue has to be a
        `KeyedQueue`, a request that was in flight in a batch when its caller was cancelled is completed, and one
        that gets no answer has an unknown outcome. `committed` is called with new results before their callers get
        them, and must not wait. With both, a direct request whose caller was cancelled is run again, so running it
        twice must be the same as once. With `writes` alone no request is direct, and a worker completes each.
        """
        self._name = name
        self._run_one = run_one
        self._run_many = run_many
        self._deadline_seconds = deadline_seconds
        self._queue = queue
        self._ready = queue.ready  # not empty: there is a request to take
        self._per_batch = per_batch
        self._workers = workers
        self._most_workers = max(MAX_WORKERS, 2 * workers)
        self._load = load
        self._slots = None if most_waiting is None else Slots(most_waiting)
        self._writes = writes
        self._committed = committed
        self._runs_directly = committed is not None or not writes
        # Kept, because asking asyncio for the running loop is a system call on Python 3.11.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._runners: list[_Runner] = []
        self._overdue = 0  # how many of them wait for an answer for longer than usual
        self._taking = 0  # how many of them are workers that have not taken their next batch
        self._overdue_timer = EarliestTimer(self._find_overdue)
        self._deadline_timer = EarliestTimer(self._expire)
        self._refusal: Unavailable | None = None
        self._idle: asyncio.Event | None = None
        abandon_in_child(self.abandon)

    async def call(
        self, item: Item, key: Hashable = None, id: Hashable = None, *, deadline: float | None = None
    ) -> Result:
        """The result for the item. Items with one id never share a batch.

        A caller that is cancelled while its request waits has withdrawn it.

        Raises: Unavailable (at the deadline, after `drain`, or in another event loop than requests in flight), and
        the outcome if it is an error.
        """
        if self._refusal is not None:
            raise self._refusal.for_another()
        loop = self._loop
        if loop is None or not loop.is_running() or self._thread != get_ident():
            loop = self._enter_loop()
        now = loop.time()
        if deadline is None:
            deadline = now + self._deadline_seconds
        slots = self._slots
        # Earlier callers may have a slot assigned and not have resumed: a direct call would overtake them.
        if not self._runners and self._runs_directly and (slots is None or not slots.has_waiters):
            return await self._call_directly(item, key, id, now, deadline)
        if slots is not None and not slots.take():
            try:
                await slots.wait(deadline)
            except TimeoutError as error:
                raise too_many_waiting(self._name, self._deadline_seconds) from error
        call = PendingCall(item, loop.create_future(), deadline, key, id)
        try:
            self._queue.add(call)
            # Checked here as well: most calls need neither, and a call of a function is a tenth of their cost.
            if deadline < self._deadline_timer.at or self._overdue_timer.at == inf:
                self._watch(deadline, now)
            if len(self._runners) < self._workers + self._overdue:
                self._open_worker()
            return await call.answer  # type: ignore[no-any-return]  # as a worker sets it
        except asyncio.CancelledError:
            self._queue.withdraw(call)
            raise
        finally:
            if slots is not None:
                slots.give_back()

    def _enter_loop(self) -> asyncio.AbstractEventLoop:
        """Work in the event loop of this caller from now on. Whether it is that of the hub, the pool knows.

        Raises: Unavailable (requests of another event loop wait or are in flight).
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._runners or self._queue:
                raise wrong_event_loop()
            self._overdue_timer.cancel()  # both are set in the other loop
            self._deadline_timer.cancel()
        self._loop, self._thread = loop, get_ident()
        return loop

    def one_key_per_batch(self, per_batch: int, workers: int) -> None:
        """From now on a batch is of one key, and of up to `per_batch` items. Call it before the first request."""
        self._queue = KeyedQueue(keys_per_batch=1)
        self._ready = self._queue.ready
        self._per_batch = per_batch
        self._workers = self._most_workers = workers
        self._load = 0

    @property
    def is_idle(self) -> bool:
        """Whether the next call waits for no other: no statement is in flight, and no request waits."""
        return not self._queue and all(runner.began == inf for runner in self._runners)

    async def drain(self) -> None:
        """Refuse new requests, and wait for those that came before: until their deadlines at the latest."""
        if self._refusal is None:
            self._refusal = closed()
        if not self._runners:
            return
        if self._idle is None:
            self._idle = asyncio.Event()
        with suppress(TimeoutError):  # the deadlines of all earlier requests have passed by then
            async with asyncio.timeout(self._deadline_seconds):
                await self._idle.wait()

    def abandon(self) -> None:
        """In a child process the workers do not run. Does nothing before the first call."""
        if self._loop is not None:
            self._refusal = forked()

    async def _call_directly(self, item: Item, key: Hashable, id: Hashable, now: float, deadline: float) -> Result:
        """In the task of the caller: another task would cost a tenth of a millisecond where it was measured."""
        runner = _Runner(now, key=key)
        self._runners.append(runner)
        if key is not None:
            self._queue.occupy(key)
        try:
            result = await self._run_one(item, deadline)
        except asyncio.CancelledError:
            if self._writes:
                # The statement may have been committed, and `committed` was not called. It is run again, ahead of
                # all other requests that wait for the key, and is then committed, now or as it was before.
                answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                answer.cancel()
                self._queue.end((), [PendingCall(item, answer, deadline, key, id)])
            raise
        finally:
            self._runners.remove(runner)
            self._overdue -= runner.is_overdue
            if key is not None:
                self._queue.free(key)
            if self._ready:
                self._open_worker()
            elif not self._runners:
                self._became_idle()
        if self._committed is not None:
            self._report([result], self._committed)
        return result

    @property
    def _wanted(self) -> int:
        return min(self._workers_for_load + self._overdue, self._most_workers)

    @property
    def _workers_for_load(self) -> int:
        # Those in flight count as well. Otherwise the second part would wait until the first has been answered.
        requests = len(self._queue) + sum(len(runner.batch) for runner in self._runners)
        return self._workers if requests >= self._load else 1

    def _open_worker(self) -> None:
        """Open a worker, unless one is about to take a batch: that one opens another for what it leaves."""
        if self._ready and not self._taking and len(self._runners) < self._wanted:
            runner = _Runner(inf, is_taking=True)
            self._taking += 1
            loop = self._loop or asyncio.get_running_loop()
            runner.task = loop.create_task(self._work(runner), name=f"hubbub: {self._name}")
            self._runners.append(runner)
            runner.task.add_done_callback(partial(self._end_worker, runner))

    def _end_worker(self, runner: _Runner, _: asyncio.Task[None]) -> None:
        self._runners.remove(runner)
        self._taking -= runner.is_taking
        self._open_worker()  # for requests that came after the worker had looked
        if not self._runners:
            self._became_idle()

    def _became_idle(self) -> None:
        if self._idle is not None:
            self._overdue_timer.cancel()
            self._deadline_timer.cancel()
            self._idle.set()

    async def _work(self, runner: _Runner) -> None:
        loop = asyncio.get_running_loop()
        # Workers that share evenly have statements in flight while the callers of the others are answered.
        while len(self._runners) <= self._wanted and (
            batch := self._queue.take(self._per_batch, self._workers_for_load)
        ):
            runner.is_taking = False
            self._taking -= 1
            runner.batch, runner.began = batch, loop.time()
            self._open_worker()
            put_back: Sequence[PendingCall[Item]] = ()
            self._watch_overdue(runner.began)
            try:
                put_back = await self._run(batch)
            finally:
                runner.batch, runner.began = (), inf
                self._overdue -= runner.is_overdue
                runner.is_overdue = False
                self._queue.end(batch, put_back)
            runner.is_taking = True
            self._taking += 1
            # Let the callers that have just been answered make their next requests, so that these come along.
            await asyncio.sleep(0)

    async def _run(self, batch: list[PendingCall[Item]]) -> Sequence[PendingCall[Item]]:
        """Run the batch and answer its callers. Returns the requests to be put back."""
        try:
            outcomes = await self._outcomes([call.item for call in batch], max(map(attrgetter("deadline"), batch)))
            return await self._answer_all(batch, outcomes)
        except asyncio.CancelledError:  # when all tasks of the loop are cancelled: no caller can do that
            for call in batch:
                if not call.answer.done():
                    reason = "the statement was cancelled"
                    call.answer.set_exception(Unavailable("hub", reason, outcome_unknown=self._writes))
            raise

    async def _outcomes(self, items: list[Item], deadline: float) -> Sequence[BatchOutcome[Result]]:
        try:
            if len(items) == 1:
                return [await self._run_one(items[0], deadline)]
            return await self._run_many(items, deadline)
        except Unavailable as error:
            return [error.for_another() for _ in items]
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers get it
            return [error] * len(items)

    async def _answer_all(
        self, batch: Sequence[PendingCall[Item]], outcomes: Sequence[BatchOutcome[Result]]
    ) -> Sequence[PendingCall[Item]]:
        if self._committed is None:
            return _answer_each(batch, outcomes)
        put_back: list[PendingCall[Item]] = []
        for first in range(0, len(batch), ANSWERS_PER_TURN):
            part = outcomes[first : first + ANSWERS_PER_TURN]
            results = [one for one in part if not isinstance(one, _NO_RESULT)]
            if results:
                self._report(results, self._committed)
            put_back += _answer_each(batch[first : first + ANSWERS_PER_TURN], part)
            if first + ANSWERS_PER_TURN < len(batch):
                await asyncio.sleep(0)
        return put_back

    def _report(self, results: Sequence[Result], committed: Callable[[Sequence[Result]], None]) -> None:
        with ReportErrors("an action after a COMMIT"):
            committed(results)

    def _watch(self, deadline: float, now: float) -> None:
        """One timer for all deadlines, and one for all overdue statements. A timer per request would cost more
        than queueing the request."""
        if self._writes:
            deadline += OUTCOME_GRACE_SECONDS
        self._deadline_timer.request(deadline, now)
        if self._overdue_timer.at == inf:
            self._watch_overdue(now)

    def _watch_overdue(self, now: float) -> None:
        for runner in self._runners:
            if not runner.is_overdue and runner.began < inf:
                self._overdue_timer.request(runner.began + ALLOW_ANOTHER_WORKER_AFTER_SECONDS, now)

    def _find_overdue(self, now: float) -> None:
        for runner in self._runners:
            if not runner.is_overdue and runner.began + ALLOW_ANOTHER_WORKER_AFTER_SECONDS <= now:
                runner.is_overdue = True
                self._overdue += 1
                if not self._writes:  # reads have no order
                    for key in {call.key for call in runner.batch} or {runner.key}:
                        self._queue.free(key)
                self._open_worker()
        self._watch_overdue(now)

    def _expire(self, now: float) -> None:
        limit = now - OUTCOME_GRACE_SECONDS if self._writes else now
        earliest = inf
        for call in [*self._queue, *chain.from_iterable(runner.batch for runner in self._runners)]:
            if call.answer.done():
                continue
            if call.deadline > limit:
                earliest = min(earliest, call.deadline)
                continue
            reason = f"no answer within {self._deadline_seconds:g} s"
            outcome_unknown = self._writes and call.is_in_flight
            call.answer.set_exception(Unavailable("postgresql", reason, outcome_unknown=outcome_unknown))
            self._queue.withdraw(call)
        if earliest < inf:
            self._watch(earliest, now)


def _answer_each(
    batch: Sequence[PendingCall[Item]], outcomes: Sequence[BatchOutcome[Any]]
) -> Sequence[PendingCall[Item]]:
    put_back: list[PendingCall[Item]] = []
    for call, outcome in zip(batch, outcomes, strict=True):
        if outcome is PUT_BACK:
            put_back.append(call)
        elif not call.answer.done():
            if isinstance(outcome, Exception):
                call.answer.set_exception(outcome)
            else:
                call.answer.set_result(outcome)
    return put_back


def closed() -> Unavailable:
    """The error of a call after the hub was closed."""
    return Unavailable("hub", "it is closed", retryable=False)


def too_many_waiting(name: str, seconds: float) -> Unavailable:
    """The error of a call that got no slot by its deadline."""
    return Unavailable("postgresql", f"too many calls wait to {name} for {seconds:g} s")
