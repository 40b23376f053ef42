from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from hubbub import scheduling
from hubbub.scheduling import (
    SLICE_SECONDS,
    TICK_SECONDS,
    EarliestTimer,
    OncePerTurn,
    Pace,
    TimeSlice,
    gather_or_cancel,
    in_slices,
    next_in_turn,
)


async def turn() -> None:
    await asyncio.sleep(0)


async def test_requests_of_one_turn_become_one_call() -> None:
    calls: list[str] = []
    once = OncePerTurn(lambda: calls.append("called"))
    for _ in range(3):
        once.request()
    assert once.is_due
    assert calls == []
    await turn()
    assert calls == ["called"]
    assert not once.is_due


async def test_action_may_request_its_next_call() -> None:
    calls: list[str] = []

    def action() -> None:
        calls.append("called")
        if len(calls) < 2:
            once.request()

    once = OncePerTurn(action)
    once.request()
    await turn()
    assert calls == ["called"]
    await turn()
    assert calls == ["called", "called"]


async def test_cancelled_request_is_not_called_and_the_next_one_is() -> None:
    calls: list[str] = []
    once = OncePerTurn(lambda: calls.append("called"))
    once.request()
    once.cancel()
    once.cancel()
    await turn()
    assert calls == []
    once.request()
    await turn()
    assert calls == ["called"]


async def test_timer_fires_once_at_the_earliest_time_and_not_before() -> None:
    fired: list[float] = []
    timer = EarliestTimer(fired.append)
    now = asyncio.get_running_loop().time()
    for seconds in (0.2, 0.05, 0.3):
        timer.request(now + seconds, now)
    await asyncio.sleep(0.4)
    assert len(fired) == 1
    assert fired[0] >= now + 0.05


async def test_time_that_has_passed_fires_after_a_tick() -> None:
    fired: list[float] = []
    timer = EarliestTimer(fired.append)
    now = asyncio.get_running_loop().time()
    timer.request(now - 1, now)
    assert timer.at == now + TICK_SECONDS
    await asyncio.sleep(0.1)
    assert len(fired) == 1


async def test_requests_within_a_tick_do_not_put_off_the_timer() -> None:
    timer = EarliestTimer(lambda now: None)
    now = asyncio.get_running_loop().time()
    timer.request(now, now)
    at = timer.at
    timer.request(now + TICK_SECONDS / 2, now + TICK_SECONDS / 2)
    assert timer.at == at
    timer.cancel()


async def test_cancelled_timer_is_silent_until_the_next_request() -> None:
    fired: list[float] = []
    timer = EarliestTimer(fired.append)
    now = asyncio.get_running_loop().time()
    timer.request(now, now)
    timer.cancel()
    await asyncio.sleep(0.05)
    assert fired == []
    timer.request(now, now + 0.05)
    await asyncio.sleep(0.1)
    assert len(fired) == 1


async def test_long_work_pauses_after_each_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(scheduling, "perf_counter", lambda: now)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await turn()

    others = asyncio.create_task(count_turns())
    time_slice = TimeSlice()
    for _ in range(10):
        await time_slice.pause_if_due()
        now += SLICE_SECONDS / 4
    assert turns == 2
    others.cancel()


async def test_pace_lets_a_limited_number_of_callers_go_on_per_turn_in_their_order() -> None:
    pace, order, gone_on = Pace(3), list[int](), list[int]()

    async def call(number: int) -> None:
        await pace.wait()
        order.append(number)

    calling = [asyncio.create_task(call(number)) for number in range(10)]
    while len(order) < 10:
        before = len(order)
        await turn()
        gone_on.append(len(order) - before)
    assert order == list(range(10))
    assert max(gone_on) == 3
    await asyncio.gather(*calling)
    await turn()
    await turn()
    await call(10)  # in a later turn it does not wait
    assert order[-1] == 10


async def test_cancelled_caller_of_a_pace_delays_no_other() -> None:
    pace, order = Pace(1), list[int]()

    async def call(number: int) -> None:
        await pace.wait()
        order.append(number)

    calling = [asyncio.create_task(call(number)) for number in range(4)]
    await turn()
    calling[1].cancel()
    await asyncio.wait(calling)
    assert order == [0, 2, 3]


def test_keys_of_a_queue_have_their_turn_again_after_all_others() -> None:
    queue = dict.fromkeys("abc", True)
    assert next_in_turn(queue, 2) == ["a", "b"]
    queue["d"] = False
    assert next_in_turn(queue, 3) == ["c", "a", "b"]
    assert next_in_turn(queue, 9) == ["d", "c", "a", "b"]
    assert queue == {"d": False, "c": True, "a": True, "b": True}
    assert next_in_turn({}, 2) == []


async def test_actions_are_done_in_slices_with_other_tasks_in_between() -> None:
    done: list[int] = []
    seen: list[int] = []

    async def watch() -> None:
        while True:
            seen.append(len(done))
            await turn()

    watching = asyncio.create_task(watch())
    await in_slices(range(7), done.append, 3)
    watching.cancel()
    assert done == list(range(7))
    assert {3, 6} <= set(seen)


async def test_actions_in_slices_are_all_done_at_once_when_the_caller_is_cancelled() -> None:
    done: list[int] = []
    doing = asyncio.create_task(in_slices(range(100), done.append, 3))
    await turn()
    assert len(done) == 3
    doing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doing
    assert done == list(range(100))


async def test_action_in_slices_that_raises_leaves_the_others_done() -> None:
    done: list[int] = []

    def act(number: int) -> None:
        done.append(number)
        if number in (2, 3):
            raise ValueError(number)

    with pytest.raises(ValueError, match="3"):
        await in_slices(range(5), act, 2)
    assert done == [0, 1, 2, 3, 4]


def test_garbage_is_collected_rarely_and_what_exists_is_left_out() -> None:
    code = (
        "import gc, hubbub; before = gc.get_threshold()[0]; hubbub.collect_garbage_rarely();"
        "print(gc.get_threshold()[0] > before, gc.get_freeze_count() > 10_000, gc.isenabled())"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.split() == ["True", "True", "True"]


async def test_first_error_cancels_the_other_calls_and_is_raised() -> None:
    cancelled = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError("the first error")

    with pytest.raises(KeyError, match="the first error"):
        await gather_or_cancel([wait(), fail()])
    assert cancelled.is_set()
