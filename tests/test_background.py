from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from math import inf

import pytest

from hubbub.background import BackgroundTask, ReportErrors, jittered, report
from reports import reports
from waiting import until


async def test_exception_in_the_block_is_reported_and_the_work_goes_on() -> None:
    error = ZeroDivisionError()
    with reports() as reported:
        with ReportErrors("counting") as counting:
            raise error
        report("there is more", error)
    assert counting.failed
    assert reported == [
        {"message": "counting failed", "exception": error},
        {"message": "there is more", "exception": error},
    ]


async def test_block_without_an_exception_is_not_reported() -> None:
    with reports() as reported, ReportErrors("counting") as counting:
        pass
    assert not counting.failed
    assert reported == []


@pytest.mark.parametrize("end", [asyncio.CancelledError, KeyboardInterrupt, SystemExit])
async def test_exception_that_ends_the_process_or_task_passes(end: type[BaseException]) -> None:
    with reports() as reported, pytest.raises(end), ReportErrors("counting"):
        raise end
    assert reported == []


class Rounds:
    """Counts the rounds of a task. Each round waits for `go`, or raises the next of the errors."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.errors: list[Exception] = []
        self.go = asyncio.Event()

    async def __call__(self) -> None:
        self.begun += 1
        if self.errors:
            raise self.errors.pop()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            await asyncio.sleep(0)  # an end that takes a turn of the loop
            raise
        self.go.clear()


async def test_rounds_follow_each_other_until_the_task_is_closed() -> None:
    rounds = Rounds()
    task = BackgroundTask("counting", rounds)
    task.start()
    task.start()
    await until(lambda: rounds.begun == 1)
    rounds.go.set()
    await until(lambda: rounds.begun == 2)
    await task.close()
    assert (rounds.begun, rounds.cancelled) == (2, 1)


async def test_failed_round_is_reported_and_followed_by_another() -> None:
    rounds, error = Rounds(), ZeroDivisionError()
    rounds.errors.append(error)
    task = BackgroundTask("counting", rounds, retry_seconds=0.001)
    with reports() as reported:
        task.start()
        await until(lambda: rounds.begun == 2)
        await task.close()
    assert reported == [{"message": "counting failed", "exception": error}]


@pytest.mark.parametrize("turns", range(4))
async def test_task_closed_at_any_moment_of_its_start_is_over(turns: int) -> None:
    rounds = Rounds()
    task = BackgroundTask("counting", rounds)
    task.start()
    for _ in range(turns):
        await asyncio.sleep(0)
    await task.close()
    assert rounds.begun == rounds.cancelled
    await until(lambda: len(asyncio.all_tasks()) == 1)


async def close_twice_in_turn(task: BackgroundTask) -> None:
    await task.close()
    await task.close()


async def close_twice_at_once(task: BackgroundTask) -> None:
    await asyncio.gather(task.close(), task.close())


async def close_again_after_a_cancelled_close(task: BackgroundTask) -> None:
    closing = asyncio.ensure_future(task.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    await task.close()


@pytest.mark.parametrize("close", [close_twice_in_turn, close_twice_at_once, close_again_after_a_cancelled_close])
async def test_closing_twice_cancels_the_round_once(close: Callable[[BackgroundTask], Awaitable[None]]) -> None:
    rounds = Rounds()
    task = BackgroundTask("counting", rounds)
    task.start()
    await until(lambda: rounds.begun > 0)
    await close(task)
    assert rounds.cancelled == 1


async def test_task_closed_before_its_start_never_runs() -> None:
    rounds = Rounds()
    task = BackgroundTask("counting", rounds)
    await task.close()
    task.start()
    await asyncio.sleep(0)
    assert not task.is_running
    assert rounds.begun == 0


async def test_task_is_running_between_start_and_close() -> None:
    task = BackgroundTask("counting", Rounds())
    states = [task.is_running]
    task.start()
    states.append(task.is_running)
    await task.close()
    states.append(task.is_running)
    assert states == [False, True, False]


class Pausing:
    """A task whose rounds return the pause that the test has set."""

    def __init__(self, pause_seconds: float | None) -> None:
        self.begun = 0
        self.pause_seconds = pause_seconds
        self.in_round = asyncio.Event()
        self.in_round.set()
        self.task = BackgroundTask("pausing", self.round)

    async def round(self) -> float | None:
        self.begun += 1
        await asyncio.sleep(0)
        await self.in_round.wait()
        return self.pause_seconds


async def test_rounds_that_return_no_pause_follow_each_other() -> None:
    pausing = Pausing(None)
    pausing.task.start()
    await until(lambda: pausing.begun > 3)
    await pausing.task.close()


async def test_pause_ends_by_itself() -> None:
    pausing = Pausing(0.001)
    pausing.task.start()
    await until(lambda: pausing.begun > 3)
    await pausing.task.close()


async def test_endless_pause_ends_when_the_task_is_woken() -> None:
    pausing = Pausing(inf)
    pausing.task.start()
    for rounds in range(1, 4):
        await asyncio.sleep(0.01)
        assert pausing.begun == rounds
        pausing.task.wake()
    await pausing.task.close()


async def test_task_woken_during_a_round_does_not_pause_after_it() -> None:
    pausing = Pausing(inf)
    pausing.in_round.clear()
    pausing.task.start()
    await until(lambda: pausing.begun == 1)
    pausing.task.wake()
    pausing.in_round.set()
    await until(lambda: pausing.begun == 2)
    await asyncio.sleep(0.01)
    assert pausing.begun == 2
    await pausing.task.close()


async def test_waking_does_not_shorten_the_pause_after_a_failed_round() -> None:
    rounds, error = Rounds(), ZeroDivisionError()
    rounds.errors.append(error)
    task = BackgroundTask("counting", rounds, retry_seconds=60)
    with reports():
        task.start()
        await until(lambda: rounds.begun == 1)
        task.wake()
        await asyncio.sleep(0.01)
        assert rounds.begun == 1
        await task.close()


@pytest.mark.parametrize("close", [close_twice_in_turn, close_twice_at_once, close_again_after_a_cancelled_close])
async def test_closing_finishes_once_after_the_last_round(
    close: Callable[[BackgroundTask], Awaitable[None]],
) -> None:
    rounds = Rounds()
    finished: list[int] = []

    async def finish() -> None:
        await asyncio.sleep(0)
        finished.append(rounds.cancelled)

    task = BackgroundTask("counting", rounds, finish=finish)
    task.start()
    await until(lambda: rounds.begun > 0)
    await close(task)
    assert finished == [1]


async def test_closing_right_after_the_start_finishes_and_closing_before_it_does_not() -> None:
    finished: list[str] = []

    async def finish() -> None:
        finished.append("finished")

    for is_started in (True, False):
        task = BackgroundTask("counting", Rounds(), finish=finish)
        if is_started:
            task.start()
        await task.close()
        assert finished == ["finished"]


async def test_exception_while_finishing_is_reported_and_the_task_is_closed() -> None:
    error = ZeroDivisionError()

    async def finish() -> None:
        raise error

    task = BackgroundTask("counting", Rounds(), finish=finish)
    with reports() as reported:
        task.start()
        await task.close()
        await task.close()
    assert reported == [{"message": "counting failed", "exception": error}]
    assert not task.is_running


def test_jittered_time_is_a_share_of_the_time() -> None:
    times = {jittered(2) for _ in range(200)}
    assert min(times) >= 1
    assert max(times) <= 2
    assert len(times) > 100
    assert all(0.2 <= jittered(2, at_least=0.1) <= 2 for _ in range(200))
