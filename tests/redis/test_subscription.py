"""The buffer of one subscriber, fed by hand: a real server cannot be made to be exactly this unlucky."""

from __future__ import annotations

import asyncio

import pytest

from hubbub.redis.subscription import Gap, Listener, Subscription


def forget(_: Listener) -> None:
    """Nobody is registered anywhere here."""


async def unread(subscription: Subscription) -> list[bytes | Gap]:
    return [await anext(subscription) for _ in range(subscription.unread)]


async def test_a_gap_that_does_not_fit_any_more_is_told_all_the_same() -> None:
    subscription = Subscription(b"room", forget, buffer=1)
    subscription.hear(Gap("reconnected"))
    subscription.hear(b"a")
    assert await unread(subscription) == [Gap("reconnected"), b"a"]


async def test_messages_and_gaps_that_do_not_fit_become_one_gap() -> None:
    subscription = Subscription(b"room", forget, buffer=2)
    for heard in (b"a", Gap("reconnected"), b"b", b"c", b"d"):
        subscription.hear(heard)
    assert await unread(subscription) == [Gap("overflow", 2), b"c", b"d"]
    assert subscription.dropped == 2


async def test_reconnects_in_a_row_are_one_gap() -> None:
    subscription = Subscription(b"room", forget, buffer=2)
    subscription.hear(b"a")
    for _ in range(5):
        subscription.hear(Gap("reconnected"))
    assert await unread(subscription) == [b"a", Gap("reconnected")]
    assert subscription.dropped == 0


async def test_what_was_dropped_is_said_once_and_counted_for_ever() -> None:
    subscription = Subscription(b"room", forget, buffer=1)
    for heard in (b"a", b"b"):
        subscription.hear(heard)
    assert await unread(subscription) == [Gap("overflow", 1), b"b"]
    for heard in (b"c", b"d", b"e"):
        subscription.hear(heard)
    assert await unread(subscription) == [Gap("overflow", 2), b"e"]
    assert subscription.dropped == 3


async def test_a_reader_who_gives_up_loses_no_message() -> None:
    subscription = Subscription(b"room", forget, buffer=10)
    reader = asyncio.ensure_future(anext(subscription))
    await asyncio.sleep(0)
    subscription.hear(b"a")
    reader.cancel()
    await asyncio.wait([reader])
    assert await anext(subscription) == b"a"


async def test_there_is_one_reader_at_a_time() -> None:
    subscription = Subscription(b"room", forget, buffer=10)
    first = asyncio.ensure_future(anext(subscription))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="one reader"):
        await anext(subscription)
    subscription.hear(b"a")
    assert await first == b"a"


async def test_leaving_ends_the_iteration_of_a_waiting_reader() -> None:
    subscription = Subscription(b"room", forget, buffer=10)
    reader = asyncio.create_task(collect(subscription))
    await asyncio.sleep(0)
    subscription.hear(b"a")
    await asyncio.sleep(0)
    subscription.unsubscribe()
    subscription.hear(b"too late")
    assert await reader == [b"a"]


async def collect(subscription: Subscription) -> list[bytes | Gap]:
    return [heard async for heard in subscription]
