"""Who may wait for a statement, in what order, and for how long, without a server."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from hubbub import MessageType
from hubbub.repositories.messages.places import Deadlines, Places
from hubbub.repositories.messages.queues import Waiting
from hubbub.repositories.messages.sending import Draft


def soon() -> float:
    return asyncio.get_running_loop().time() + 10


async def line_up(places: Places, came: list[int], number: int) -> None:
    await places.wait(soon())
    came.append(number)


async def test_who_comes_later_does_not_overtake_one_who_was_called_and_has_not_woken() -> None:
    places, came = Places(3), list[int]()
    assert [places.take() for _ in range(4)] == [True, True, True, False]
    first = asyncio.create_task(line_up(places, came, 1))
    await asyncio.sleep(0)
    for _ in range(3):
        places.give_back()
    assert not places.take()
    second = asyncio.create_task(line_up(places, came, 2))
    await asyncio.gather(first, second)
    assert came == [1, 2]
    assert places.take()  # the third of three
    assert not places.take()


async def test_no_place_is_lost_to_those_who_give_up() -> None:
    places, came = Places(1), list[int]()
    assert places.take()
    gone, called, last = (asyncio.create_task(line_up(places, came, number)) for number in (1, 2, 3))
    await asyncio.sleep(0)
    gone.cancel()
    places.give_back()  # to the second, who is cancelled before he wakes
    called.cancel()
    await last
    assert came == [3]
    places.give_back()
    assert places.take()
    for task in (gone, called):
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_who_waits_for_a_place_ends_at_his_time() -> None:
    places = Places(1)
    assert places.take()
    with pytest.raises(TimeoutError):
        await places.wait(asyncio.get_running_loop().time() + 0.01)
    places.give_back()
    assert places.take()


async def test_each_expires_in_his_turn_and_those_who_were_answered_do_not() -> None:
    expired: list[str] = []
    everybody = asyncio.Event()

    def expire(waiting: Waiting) -> None:
        expired.append(waiting.draft.content)
        if waiting.draft.content == "last":
            everybody.set()

    deadlines, now = Deadlines(expire, grace_seconds=0.01), asyncio.get_running_loop().time()
    for content, after in (("first", 0.0), ("answered", 0.01), ("second", 0.02), ("last", 0.05)):
        draft = Draft(uuid4(), uuid4(), uuid4(), content, MessageType.TEXT)
        waiting = Waiting(draft, asyncio.get_running_loop().create_future(), now + after)
        if content == "answered":
            waiting.answer.cancel()
        deadlines.add(waiting)
    await everybody.wait()
    assert expired == ["first", "second", "last"]
