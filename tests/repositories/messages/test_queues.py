"""What goes together and what waits, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from uuid import UUID, uuid4

import pytest

from hubbub import MessageType, Unavailable
from hubbub.repositories.messages.queues import Queues, Waiting
from hubbub.repositories.messages.sending import Draft

HERE, THERE, ELSEWHERE = UUID(int=1), UUID(int=2), UUID(int=3)
MANY = 100


def waiting(room_id: UUID, content: str, id: UUID | None = None) -> Waiting:
    draft = Draft(id or uuid4(), room_id, uuid4(), content, MessageType.TEXT)
    return Waiting(draft, asyncio.get_running_loop().create_future(), deadline=0)


def queued(*places: tuple[UUID, str]) -> tuple[Queues, list[Waiting]]:
    queues, all_of_them = Queues(), [waiting(room_id, content) for room_id, content in places]
    for one in all_of_them:
        queues.add(one)
    return queues, all_of_them


def contents(batch: Iterable[Waiting]) -> str:
    return "".join(one.draft.content for one in batch)


async def test_what_waits_for_all_rooms_goes_together_each_room_in_its_order() -> None:
    queues, _ = queued((HERE, "a"), (THERE, "x"), (HERE, "b"), (THERE, "y"))
    assert len(queues) == 4
    assert contents(queues.take(MANY)) == "abxy"
    assert len(queues) == 0
    assert not queues.is_ready


async def test_no_more_goes_than_is_asked_for_and_the_rest_of_the_room_waits_for_it() -> None:
    queues, _ = queued((HERE, "a"), (HERE, "b"), (HERE, "c"), (THERE, "x"))
    first = queues.take(2)
    assert contents(first) == "ab"
    second = queues.take(MANY)
    assert contents(second) == "x"
    queues.arrived(first, [])
    assert contents(queues.take(MANY)) == "c"


async def test_a_room_that_somebody_occupies_is_passed_over() -> None:
    queues = Queues()
    queues.occupy(HERE)
    for one in (waiting(HERE, "a"), waiting(THERE, "x")):
        queues.add(one)
    assert contents(queues.take(MANY)) == "x"
    assert not queues.is_ready
    queues.free(HERE)
    assert contents(queues.take(MANY)) == "a"


async def test_one_id_goes_once_at_a_time() -> None:
    queues, id = Queues(), uuid4()
    for one in (waiting(HERE, "a", id), waiting(HERE, "b", id), waiting(THERE, "x", id), waiting(THERE, "y")):
        queues.add(one)
    first = queues.take(MANY)
    assert contents(first) == "a"
    second = queues.take(MANY)
    assert contents(second) == "xy"
    queues.arrived(first, [])
    assert contents(queues.take(MANY)) == "b"


async def test_what_a_locked_room_left_waits_in_front_and_goes_alone_the_next_time() -> None:
    queues, (a, b, _) = queued((HERE, "a"), (HERE, "b"), (THERE, "x"))
    batch = queues.take(MANY)
    queues.add(waiting(HERE, "c"))
    queues.add(waiting(ELSEWHERE, "p"))
    queues.arrived(batch, [a, b])
    assert (a.is_on_its_way, len(queues)) == (False, 4)
    assert contents(queues.take(MANY)) == "p"
    alone = queues.take(MANY)
    assert contents(alone) == "abc"
    queues.add(waiting(THERE, "y"))
    queues.add(waiting(HERE, "d"))
    queues.arrived(alone, [])
    assert contents(queues.take(MANY)) == "yd"


async def test_of_a_locked_room_those_who_were_answered_are_dropped_and_those_who_left_are_not() -> None:
    queues, (a, b, c) = queued((HERE, "a"), (HERE, "b"), (HERE, "c"))
    batch = queues.take(MANY)
    a.answer.set_exception(Unavailable("postgresql", "too late"))
    b.answer.cancel()
    queues.arrived(batch, [a, b, c])
    assert contents(queues.take(MANY)) == "bc"
    with pytest.raises(Unavailable):
        await a.answer


async def test_who_leaves_before_his_turn_leaves_nothing_behind() -> None:
    queues, (a, b, x) = queued((HERE, "a"), (HERE, "b"), (THERE, "x"))
    queues.remove(a)
    queues.remove(x)
    batch = queues.take(MANY)
    assert contents(batch) == "b"
    queues.remove(b)  # on its way: nothing changes
    queues.arrived(batch, [])
    assert (len(queues), queues.is_ready) == (0, False)
