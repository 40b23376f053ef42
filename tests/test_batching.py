"""Requests that share a batch or wait, and the results of their callers, without a server."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import pytest

from hubbub import Unavailable, batching
from hubbub.batching import PUT_BACK, Batcher, BatchOutcome, KeyedQueue, PendingCall, PlainQueue, Slots
from waiting import until

HERE, THERE, ELSEWHERE = UUID(int=1), UUID(int=2), UUID(int=3)
MANY = 100


def pending(key: UUID | None, item: str, id: UUID | None = None) -> PendingCall[str]:
    return PendingCall(item, asyncio.get_running_loop().create_future(), 0, key, id or uuid4())


def queued(*requests: tuple[UUID, str]) -> tuple[KeyedQueue[str], list[PendingCall[str]]]:
    queue, calls = KeyedQueue[str](), [pending(key, item) for key, item in requests]
    for call in calls:
        queue.add(call)
    return queue, calls


def items(batch: Iterable[PendingCall[str]]) -> str:
    return "".join(call.item for call in batch)


# The queue by key


async def test_requests_for_all_keys_share_a_batch_each_key_in_its_order() -> None:
    queue, _ = queued((HERE, "a"), (THERE, "x"), (HERE, "b"), (THERE, "y"))
    assert len(queue) == 4
    assert items(queue.take(MANY)) == "abxy"
    assert len(queue) == 0
    assert not queue.ready


async def test_batch_is_bounded_and_the_rest_of_its_key_waits_for_its_end() -> None:
    queue, _ = queued((HERE, "a"), (HERE, "b"), (HERE, "c"), (THERE, "x"))
    first = queue.take(2)
    assert items(first) == "ab"
    second = queue.take(MANY)
    assert items(second) == "x"
    queue.end(first, [])
    assert items(queue.take(MANY)) == "c"


async def test_occupied_key_is_passed_over_until_it_is_free() -> None:
    queue = KeyedQueue[str]()
    queue.occupy(HERE)
    for call in (pending(HERE, "a"), pending(THERE, "x")):
        queue.add(call)
    assert items(queue.take(MANY)) == "x"
    assert not queue.ready
    queue.free(HERE)
    assert items(queue.take(MANY)) == "a"


async def test_batch_holds_an_id_only_once() -> None:
    queue, id = KeyedQueue[str](), uuid4()
    for call in (pending(HERE, "a", id), pending(HERE, "b", id), pending(THERE, "x", id), pending(THERE, "y")):
        queue.add(call)
    first = queue.take(MANY)
    assert items(first) == "a"
    second = queue.take(MANY)
    assert items(second) == "xy"
    queue.end(first, [])
    assert items(queue.take(MANY)) == "b"


async def test_requests_that_are_put_back_go_first_and_alone() -> None:
    queue, (a, b, _) = queued((HERE, "a"), (HERE, "b"), (THERE, "x"))
    batch = queue.take(MANY)
    queue.add(pending(HERE, "c"))
    queue.add(pending(ELSEWHERE, "p"))
    queue.end(batch, [a, b])
    assert (a.is_in_flight, len(queue)) == (False, 4)
    assert items(queue.take(MANY)) == "p"
    alone = queue.take(MANY)
    assert items(alone) == "abc"
    queue.add(pending(THERE, "y"))
    queue.add(pending(HERE, "d"))
    queue.end(alone, [])
    assert items(queue.take(MANY)) == "yd"


async def test_request_that_is_put_back_is_dropped_when_answered_but_not_when_cancelled() -> None:
    queue, (a, b, c) = queued((HERE, "a"), (HERE, "b"), (HERE, "c"))
    batch = queue.take(MANY)
    a.answer.set_exception(Unavailable("postgresql", "too late"))
    b.answer.cancel()
    queue.end(batch, [a, b, c])
    assert items(queue.take(MANY)) == "bc"
    with pytest.raises(Unavailable):
        await a.answer


async def test_removed_request_leaves_nothing_behind_in_the_queue() -> None:
    queue, (a, b, x) = queued((HERE, "a"), (HERE, "b"), (THERE, "x"))
    queue.withdraw(a)
    queue.withdraw(x)
    batch = queue.take(MANY)
    assert items(batch) == "b"
    queue.withdraw(b)  # in flight: nothing changes
    queue.end(batch, [])
    assert (len(queue), len(queue.ready)) == (0, 0)


async def test_plain_queue_gives_all_requests_in_order_except_cancelled_ones() -> None:
    queue, calls = PlainQueue[str](), [pending(None, item) for item in "abcd"]
    for call in calls:
        queue.add(call)
    calls[1].answer.cancel()
    first = queue.take(2)
    assert items(first) == "ac"
    queue.end(first, [calls[2]])
    assert items(queue.take(MANY)) == "cd"
    assert not queue.ready


async def test_part_of_a_plain_queue_counts_the_requests_in_flight() -> None:
    queue = PlainQueue[str]()
    for item in "abcdef":
        queue.add(pending(None, item))
    first = queue.take(MANY, 2)
    assert items(first) == "abc"
    queue.add(pending(None, "g"))
    queue.add(pending(None, "h"))
    assert items(queue.take(MANY, 2)) == "defg"
    queue.end(first, [])
    assert items(queue.take(MANY, 2)) == "h"


async def test_part_of_a_keyed_queue_counts_the_keys_in_flight() -> None:
    keys = [uuid4() for _ in range(4)]
    queue, _ = queued(*((key, item) for item in "ab" for key in keys))
    assert len(queue.take(MANY, 2)) == 4  # both requests of two keys
    assert len(queue.take(MANY, 2)) == 4
    assert not queue.ready


async def test_keys_of_a_batch_are_bounded() -> None:
    queue = KeyedQueue[str](keys_per_batch=1)
    first, second = uuid4(), uuid4()
    for key, item in ((first, "a"), (second, "b"), (first, "c")):
        queue.add(pending(key, item))
    assert items(queue.take(MANY)) == "ac"
    assert items(queue.take(MANY)) == "b"


# Slots


def soon() -> float:
    return asyncio.get_running_loop().time() + 10


async def get_slot(slots: Slots, got: list[int], number: int) -> None:
    await slots.wait(soon())
    got.append(number)


async def test_caller_who_finds_a_free_slot_waits_for_one_that_was_given_a_slot_before() -> None:
    slots, got = Slots(2), list[int]()
    assert [slots.take(), slots.take()] == [True, True]
    first = asyncio.create_task(get_slot(slots, got, 1))
    await asyncio.sleep(0)
    slots.give_back()
    slots.give_back()
    await get_slot(slots, got, 2)  # in the same turn, before the first waiter has resumed
    await first
    assert got == [1, 2]


async def test_slots_are_given_in_the_order_of_arrival_also_before_a_waiter_has_resumed() -> None:
    slots, got = Slots(3), list[int]()
    assert [slots.take() for _ in range(4)] == [True, True, True, False]
    first = asyncio.create_task(get_slot(slots, got, 1))
    await asyncio.sleep(0)
    for _ in range(3):
        slots.give_back()
    assert not slots.take()
    second = asyncio.create_task(get_slot(slots, got, 2))
    await asyncio.gather(first, second)
    assert got == [1, 2]
    assert slots.take()  # the third of three
    assert not slots.take()


async def test_slot_of_a_cancelled_waiter_goes_to_the_next() -> None:
    slots, got = Slots(1), list[int]()
    assert slots.take()
    gone, assigned, last = (asyncio.create_task(get_slot(slots, got, number)) for number in (1, 2, 3))
    await asyncio.sleep(0)
    gone.cancel()
    slots.give_back()  # for the second waiter, which is cancelled before it resumes
    assigned.cancel()
    await last
    assert got == [3]
    slots.give_back()
    assert slots.take()
    for task in (gone, assigned):
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_wait_for_a_slot_ends_at_the_deadline() -> None:
    slots = Slots(1)
    assert slots.take()
    with pytest.raises(TimeoutError):
        await slots.wait(asyncio.get_running_loop().time() + 0.01)
    slots.give_back()
    assert slots.take()


# The scheduler


class Request(NamedTuple):
    key: int
    number: int


class Statements:
    """Records each batch. A batch ends once `gate` is open. Requests of keys in `locked` are put back."""

    def __init__(self, *, gated: bool = False) -> None:
        self.batches: list[list[Request]] = []
        self.in_flight: list[list[Request]] = []
        self.most_in_flight = 0
        self.locked: set[int] = set()
        self.keys_may_meet = False
        self.gate = asyncio.Event()
        if not gated:
            self.gate.set()

    async def run_one(self, item: Request, deadline: float) -> Request:
        [outcome] = await self.run_many([item], deadline)
        assert isinstance(outcome, Request)
        return outcome

    async def run_many(self, batch: list[Request], deadline: float) -> list[BatchOutcome[Request]]:
        keys = {item.key for other in self.in_flight for item in other}
        assert self.keys_may_meet or keys.isdisjoint(item.key for item in batch), "two batches with one key"
        self.batches.append(batch)
        self.in_flight.append(batch)
        self.most_in_flight = max(self.most_in_flight, len(self.in_flight))
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
            return [PUT_BACK if len(batch) > 1 and item.key in self.locked else item for item in batch]
        finally:
            self.in_flight.remove(batch)

    def batcher(self, **options: Any) -> Batcher[Request, Request]:  # noqa: ANN401 - those of the constructor
        return Batcher(
            "test",
            self.run_one,
            self.run_many,
            **{
                "deadline_seconds": 10.0,
                "queue": KeyedQueue[Request](),
                "per_batch": MANY,
                "writes": True,
                "committed": lambda _: None,
                **options,
            },
        )


def call(batcher: Batcher[Request, Request], key: int, number: int, **options: float) -> asyncio.Task[Request]:
    request = Request(key, number)
    return asyncio.create_task(batcher.call(request, key, request, **options))


async def test_lone_caller_runs_its_statement_without_a_task_or_a_timer() -> None:
    async def run_one(item: int, deadline: float) -> set[asyncio.Task[Any]]:
        return asyncio.all_tasks()

    async def run_many(batch: list[int], deadline: float) -> Sequence[set[asyncio.Task[Any]]]:
        raise AssertionError

    batcher = Batcher("test", run_one, run_many, deadline_seconds=10, queue=PlainQueue(), per_batch=MANY)
    before = asyncio.all_tasks()
    loop: Any = asyncio.get_running_loop()
    timers = len(loop._scheduled)
    for number in range(3):
        assert await batcher.call(number) == before
    assert len(loop._scheduled) == timers


async def test_lone_change_that_cannot_be_repeated_ends_also_when_its_caller_is_cancelled() -> None:
    statements = Statements(gated=True)
    batcher = statements.batcher(committed=None)
    lone = call(batcher, 0, 0)
    await until(lambda: len(statements.in_flight) == 1)
    lone.cancel()
    await asyncio.wait([lone])
    assert statements.in_flight == [[Request(0, 0)]]
    statements.gate.set()
    await batcher.drain()
    assert statements.in_flight == []


async def test_requests_that_wait_for_a_statement_share_the_next() -> None:
    statements = Statements()
    batcher = statements.batcher()
    calls = [call(batcher, number % 3, number) for number in range(10)]
    assert await asyncio.gather(*calls) == [Request(number % 3, number) for number in range(10)]
    assert [len(batch) for batch in statements.batches] in (
        [1, 9],
        [1, 6, 3],
    )  # the first key may wait


async def test_further_workers_start_under_load_only() -> None:
    few, many = Statements(), Statements()
    for statements, count in ((few, 5), (many, 50)):
        batcher = statements.batcher(workers=2, load=25, per_batch=10)
        await asyncio.gather(*(call(batcher, number, number) for number in range(count)))
    assert (few.most_in_flight, many.most_in_flight) == (1, 2)


async def test_unanswered_statement_allows_another_worker_up_to_the_most() -> None:
    statements = Statements(gated=True)
    batcher = statements.batcher()
    calls = list[asyncio.Task[Request]]()
    for number in range(batching.MAX_WORKERS + 2):
        calls.append(call(batcher, number, number))
        await asyncio.wait(calls, timeout=batching.ALLOW_ANOTHER_WORKER_AFTER_SECONDS * 1.5)
    await until(lambda: len(statements.in_flight) >= batching.MAX_WORKERS)
    await asyncio.wait(calls, timeout=batching.ALLOW_ANOTHER_WORKER_AFTER_SECONDS * 1.5)
    assert len(statements.in_flight) == batching.MAX_WORKERS
    statements.gate.set()
    await asyncio.gather(*calls)
    assert len(statements.batches) == batching.MAX_WORKERS + 1


async def test_workers_take_equal_parts_of_the_keys() -> None:
    statements = Statements(gated=True)
    batcher = statements.batcher(workers=2, load=4)
    calls = [call(batcher, number, number) for number in range(21)]
    await until(lambda: len(statements.in_flight) == 3)  # the direct one, and two batches
    assert sorted(map(len, statements.in_flight)) == [1, 9, 11]  # two parts of 21 keys
    statements.gate.set()
    await asyncio.gather(*calls)


async def test_parts_of_all_requests_are_in_flight_together() -> None:
    statements = Statements(gated=True)
    batcher = statements.batcher(committed=None, workers=2, load=40)
    calls = [call(batcher, number, number) for number in range(40)]
    for _ in range(5):  # turns of the event loop, in which no statement is late
        await asyncio.sleep(0)
    assert [len(batch) for batch in statements.in_flight] == [20, 20]
    statements.gate.set()
    await asyncio.gather(*calls)


async def test_one_statement_has_all_requests_that_are_too_few_for_two() -> None:
    statements = Statements()
    batcher = statements.batcher(committed=None, workers=2, load=40)
    for _ in range(3):
        await asyncio.gather(*(call(batcher, number, number) for number in range(39)))
    assert [len(batch) for batch in statements.batches] == [39, 39, 39]


async def test_late_read_does_not_hold_its_key_back() -> None:
    statements = Statements(gated=True)
    batcher = statements.batcher(writes=False, queue=KeyedQueue(keys_per_batch=1))
    first, second = call(batcher, 0, 0), call(batcher, 1, 1)
    await until(lambda: len(statements.in_flight) == 2)
    third = call(batcher, 0, 2)
    statements.keys_may_meet = True
    await until(lambda: len(statements.in_flight) == 3)
    statements.gate.set()
    assert [*await asyncio.gather(first, second, third)] == [Request(0, 0), Request(1, 1), Request(0, 2)]


async def test_request_of_a_locked_key_is_put_back_and_answered_later() -> None:
    statements = Statements()
    statements.locked = {1}
    batcher = statements.batcher()
    calls = [call(batcher, key, number) for number, key in enumerate([0, 1, 2, 1])]
    await until(lambda: calls[0].done() and calls[2].done())
    done, _ = await asyncio.wait(calls, timeout=0.05)
    assert {task.result().key for task in done} == {0, 2}
    statements.locked = set()
    assert [request.number for request in await asyncio.gather(calls[1], calls[3])] == [1, 3]


async def test_each_caller_gets_its_own_outcome_and_its_own_copy_of_a_common_error() -> None:
    async def run_one(item: int, deadline: float) -> int:
        await asyncio.sleep(0)
        return item

    async def run_many(batch: list[int], deadline: float) -> Sequence[int | Exception]:
        if 7 in batch:
            raise Unavailable("postgresql", "the connection was lost")
        return [KeyError(item) if item % 2 else item for item in batch]

    batcher = Batcher("test", run_one, run_many, deadline_seconds=10, queue=PlainQueue(), per_batch=MANY)
    *results, odd = await asyncio.gather(
        *(batcher.call(number) for number in (0, 2, 4, 5)), return_exceptions=True
    )
    assert results == [0, 2, 4]
    assert isinstance(odd, KeyError)
    _, *errors = await asyncio.gather(*(batcher.call(number) for number in (0, 7, 8)), return_exceptions=True)
    assert [str(error) for error in errors] == ["postgresql: the connection was lost"] * 2
    assert errors[0] is not errors[1]


async def test_request_without_an_answer_expires_at_its_own_deadline() -> None:
    statements = Statements(gated=True)
    batcher = statements.batcher()
    first = call(batcher, 0, 0)
    await asyncio.sleep(0)
    now = asyncio.get_running_loop().time()
    late, later = call(batcher, 1, 1, deadline=now + 3), call(batcher, 0, 2, deadline=now + 0.01)
    with pytest.raises(Unavailable, match="no answer within 10 s") as caught:
        await later
    assert not caught.value.outcome_unknown  # it waited behind the first of its key
    assert not late.done()
    with pytest.raises(Unavailable) as caught:
        await late
    assert caught.value.outcome_unknown  # a second worker had it in flight
    statements.gate.set()
    assert await first == Request(0, 0)


async def test_lookup_without_an_answer_expires_with_a_known_outcome() -> None:
    statements = Statements(gated=True)
    batcher = statements.batcher(writes=False, queue=PlainQueue())
    first = call(batcher, 0, 0)
    await asyncio.sleep(0)
    with pytest.raises(Unavailable) as caught:
        await call(batcher, 1, 1, deadline=asyncio.get_running_loop().time() + 0.07)
    assert not caught.value.outcome_unknown
    statements.gate.set()
    await first


async def test_caller_in_another_loop_is_refused_beside_a_statement_and_changes_nothing() -> None:
    statements = Statements(gated=True)
    batcher = statements.batcher()
    first = call(batcher, 0, 0)
    await until(lambda: bool(statements.in_flight))
    with pytest.raises(Unavailable, match="another event loop"):
        await asyncio.to_thread(asyncio.run, batcher.call(Request(1, 1), 1, deadline=0.0))
    second = call(batcher, 0, 2, deadline=asyncio.get_running_loop().time() + 0.05)
    with pytest.raises(Unavailable, match="no answer within"):
        await second
    statements.gate.set()
    assert await first == Request(0, 0)
    assert statements.batches == [[Request(0, 0)]]


async def test_first_caller_in_another_loop_does_not_keep_the_batcher_there() -> None:
    statements = Statements()
    batcher = statements.batcher()

    async def call_in_thread() -> Request:
        statements.gate = asyncio.Event()
        statements.gate.set()
        return await batcher.call(Request(9, 9), 9)

    assert await asyncio.to_thread(asyncio.run, call_in_thread()) == Request(9, 9)
    statements.gate = asyncio.Event()
    statements.gate.set()
    answers = await asyncio.gather(*(call(batcher, number, number) for number in range(5)))
    assert [answer.number for answer in answers] == list(range(5))


async def test_caller_without_a_slot_is_refused_at_its_deadline() -> None:
    statements = Statements(gated=True)
    batcher = statements.batcher(most_waiting=2, deadline_seconds=0.03)
    calls = [call(batcher, 0, number) for number in range(5)]
    results = await asyncio.gather(*calls[1:], return_exceptions=True)
    assert [str(error) for error in results[2:]] == ["postgresql: too many calls wait to test for 0.03 s"] * 2
    statements.gate.set()
    await calls[0]
    later = asyncio.get_running_loop().time() + 10
    assert await call(batcher, 0, 9, deadline=later) == Request(0, 9)


@pytest.mark.parametrize("writes", [True, False])
async def test_direct_request_of_a_cancelled_caller_is_completed_only_if_it_writes(writes: bool) -> None:
    statements, committed = Statements(gated=True), list[Request]()
    batcher = statements.batcher(writes=writes, committed=committed.extend)
    first, second = call(batcher, 0, 1), call(batcher, 0, 2)
    await asyncio.sleep(0)
    first.cancel()
    statements.gate.set()
    await second
    assert [request.number for request in committed] == ([1, 2] if writes else [2])


async def test_results_are_reported_before_their_callers_get_them_and_an_error_there_is_harmless() -> None:
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["message"]))

    def committed(results: Sequence[Request]) -> None:
        assert not any(task.done() for task in calls)
        raise ZeroDivisionError

    batcher = Statements().batcher(committed=committed, per_batch=MANY)
    calls = [call(batcher, 0, 0)]
    assert await calls.pop() == Request(0, 0)
    calls = [call(batcher, 1, number) for number in range(2)]
    await asyncio.gather(*calls[:1])
    calls = calls[1:]
    await asyncio.gather(*calls)
    assert reported == ["an action after a COMMIT failed"] * 3


async def test_drain_answers_earlier_requests_and_refuses_later_ones() -> None:
    statements = Statements(gated=True)
    batcher = statements.batcher()
    calls = [call(batcher, number % 2, number) for number in range(10)]
    await asyncio.sleep(0)
    drains = [asyncio.create_task(batcher.drain()) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="hub: it is closed"):
        await batcher.call(Request(0, 0))
    assert not any(drain.done() for drain in drains)
    statements.gate.set()
    await asyncio.gather(*drains)
    assert all(task.done() for task in calls)
    await batcher.drain()


async def test_drain_ends_at_the_deadline() -> None:
    statements = Statements(gated=True)
    batcher = statements.batcher(deadline_seconds=0.03)
    stuck = call(batcher, 0, 0)
    await asyncio.sleep(0)
    await batcher.drain()
    assert not stuck.done()
    stuck.cancel()
    await asyncio.wait([stuck])


async def test_cancelled_worker_answers_its_callers_and_the_rest_goes_on() -> None:
    statements = Statements(gated=True)
    batcher = statements.batcher()
    direct = call(batcher, 0, 0)
    await asyncio.sleep(0)
    calls = [call(batcher, key, number) for number, key in enumerate((1, 1, 0), 1)]
    await until(lambda: len(statements.in_flight) == 2)
    [worker] = [task for task in asyncio.all_tasks() if task.get_name() == "hubbub: test"]
    worker.cancel()
    for task in calls[:2]:
        with pytest.raises(Unavailable, match="cancelled") as caught:
            await task
        assert caught.value.outcome_unknown
    statements.gate.set()
    assert await direct == Request(0, 0)
    assert await calls[2] == Request(0, 3)


def shaken(pick: random.Random) -> Callable[[list[Request], float], Any]:
    """A `run_many` that takes some time, fails some items, puts some back, and sometimes fails as a whole."""
    statements = Statements()

    async def run_many(batch: list[Request], deadline: float) -> list[BatchOutcome[Request]]:
        outcomes = await statements.run_many(batch, deadline)
        await asyncio.sleep(pick.choice([0, 0, 0, 0.001, 0.06]))
        if pick.random() < 0.05:
            raise Unavailable("postgresql", "the connection was lost", outcome_unknown=True)
        if len(batch) == 1:
            return outcomes
        locked = {key for key in range(8) if pick.random() < 0.1}
        failed = {item.number for item in batch if pick.random() < 0.1}
        return [
            PUT_BACK if item.key in locked else KeyError() if item.number in failed else outcome
            for item, outcome in zip(batch, outcomes, strict=True)
        ]

    return run_many


@pytest.mark.parametrize("seed", range(5))
async def test_storm_of_callers_keeps_order_answers_all_and_leaves_nothing(seed: int) -> None:
    pick = random.Random(seed)
    run_many, committed = shaken(pick), defaultdict[int, list[int]](list)

    async def run_one(item: Request, deadline: float) -> Request:
        outcome = (await run_many([item], deadline))[0]
        assert isinstance(outcome, Request)
        return outcome

    def note(results: Sequence[Request]) -> None:
        for request in results:
            committed[request.key].append(request.number)

    queue = KeyedQueue[Request]()
    batcher = Batcher(
        "test",
        run_one,
        run_many,
        deadline_seconds=10,
        queue=queue,
        per_batch=20,
        workers=2,
        load=10,
        most_waiting=50,
        writes=True,
        committed=note,
    )
    calls = list[asyncio.Task[Request]]()
    for number in range(400):
        calls.append(call(batcher, pick.randrange(8), number))
        if pick.random() < 0.2:
            await asyncio.sleep(pick.choice([0, 0.001]))
        if pick.random() < 0.1:
            pick.choice(calls).cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    await batcher.drain()
    assert all(isinstance(result, Request | Unavailable | KeyError | asyncio.CancelledError) for result in results)
    for numbers in committed.values():
        assert numbers == sorted(numbers)
    stored = {number for numbers in committed.values() for number in numbers}
    assert stored >= {result.number for result in results if isinstance(result, Request)}
    assert (len(queue), len(queue.ready), len(batcher._runners), batcher._overdue) == (0, 0, 0, 0)
