"""However many followers and events there are, other tasks of the process have their turns in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import groupby
from uuid import UUID

import pytest

from hubbub import Hub, NewMessage, Options, Room, Settings, User, scheduling
from hubbub.models import Message
from hubbub.postgres import Pool
from hubbub.services.feed import Follower
from instrumentation.recording import Recording
from services.feed.reading import entries, open_in, seqs, take
from services.feed.test_scale import FILL, PEOPLE
from waiting import HANGS_AFTER_SECONDS, until

MANY = 500


@asynccontextmanager
async def followers_of(
    hub: Hub, pool: Pool, room: Room, people: int
) -> AsyncIterator[tuple[list[UUID], list[Follower]]]:
    """This many followers of the room, with large buffers that are not read."""
    await pool.execute(FILL[0], people)
    user_ids = await pool.fetch_all(PEOPLE)
    await hub.room_users.add_many(room.id, user_ids)
    async with AsyncExitStack() as stack:
        entering = [
            stack.enter_async_context(hub.follow(user_id, rooms=[room.id], buffer=10_000)) for user_id in user_ids
        ]
        yield user_ids, [await one for one in entering]


async def most_in_a_turn(followers: list[Follower], until_each_has: int) -> int:
    """The largest number of events that the followers got between two turns of this task."""
    had = most = 0
    while had < until_each_has * len(followers):
        await asyncio.sleep(0)
        has = sum(len(one.inbox.events) for one in followers)
        had, most = has, max(most, has - had)
    return most


async def many_of_one(hub: Hub, room_id: UUID, user_ids: list[UUID]) -> list[Message]:
    return await hub.messages.send_many(room_id, user_ids[0], [NewMessage(str(n)) for n in range(MANY)])


async def one_of_many(hub: Hub, room_id: UUID, user_ids: list[UUID]) -> list[Message]:
    sending = [hub.messages.send(room_id, user_ids[n % len(user_ids)], str(n)) for n in range(MANY)]
    return await asyncio.gather(*sending)


@pytest.mark.parametrize("send", [many_of_one, one_of_many])
@pytest.mark.parametrize("is_here", [True, False])
async def test_many_messages_to_many_followers_are_delivered_over_several_turns(
    hub: Hub,
    elsewhere: Hub,
    pool: Pool,
    room: Room,
    is_here: bool,
    send: Callable[[Hub, UUID, list[UUID]], Awaitable[list[Message]]],
) -> None:
    async with followers_of(hub, pool, room, people=100) as (user_ids, followers):
        measuring = asyncio.create_task(most_in_a_turn(followers, MANY))
        sent = await send(hub if is_here else elsewhere, room.id, user_ids)
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            assert await measuring < MANY * len(followers) / 2
        expected = sorted(message.seq for message in sent)
        for one in followers:
            assert seqs(await take(one, MANY)) == expected


async def test_mass_join_does_not_hold_up_comparing_heads(
    settings: Settings, pool: Pool, room: Room, ada: User
) -> None:
    recording = Recording()
    options = Options(follow_heartbeat_seconds=0.001)
    async with Hub(settings, options=options, instrumentation=recording) as hub:
        await pool.execute(FILL[0], 300)
        user_ids = [user_id for user_id in await pool.fetch_all(PEOPLE) if user_id != ada.id]
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(hub.follow(ada.id))
            followers = [await stack.enter_async_context(hub.follow(user_id)) for user_id in user_ids]
            recording.queries.clear()
            await hub.room_users.add_many(room.id, user_ids)
            for one in followers:
                await until(lambda one=one: room.id in one.positions)  # type: ignore[misc]
    asked = [
        query.statement for query in recording.queries if query.statement in ("memberships.rooms_of", "log.heads")
    ]
    runs = [len(list(run)) for statement, run in groupby(asked) if statement == "memberships.rooms_of"]
    assert 3 <= sum(runs) <= 30  # a hundred users each, except users that a heartbeat has checked meanwhile
    assert max(runs) <= 2


async def test_follower_of_many_rooms_enters_and_leaves_over_many_turns(
    hub: Hub, room: Room, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduling, "SLICE_SECONDS", 0)
    rooms = await asyncio.gather(*[hub.rooms.create(f"room {n}", created_by=ada.id) for n in range(50)])
    opened: list[int] = []
    feed = hub.follow(ada.id, after={one.id: None for one in rooms})

    async def watch() -> None:
        while True:
            opened.append(len(feed.positions))
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    async with feed:
        assert {1, 25, 50} <= set(opened)
        sent = await hub.messages.send(rooms[7].id, ada.id, "hello")
        assert sent.cursor in {event.cursor for event in entries(await take(feed, len(rooms) + 1))}
        opened.clear()
    assert {1, 25, 50} <= set(opened)
    watching.cancel()
    assert open_in(hub) == (0, 0)


async def test_follower_that_is_closed_while_it_enters_leaves_nothing(
    hub: Hub, room: Room, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduling, "SLICE_SECONDS", 0)
    for number in range(10):
        await hub.rooms.create(f"room {number}", created_by=ada.id)
    feed = hub.follow(ada.id)
    entering = asyncio.create_task(feed.__aenter__())
    while len(feed.positions) < 5:  # noqa: ASYNC110 - to close it in the middle of a step
        await asyncio.sleep(0)
    feed.close()
    await entering
    await until(lambda: open_in(hub) == (0, 0))
    assert [event async for event in feed] == []


async def test_follower_of_many_rooms_that_is_closed_ends_at_once_and_leaves_its_rooms_over_many_turns(
    hub: Hub, room: Room, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = await asyncio.gather(*[hub.rooms.create(f"room {n}", created_by=ada.id) for n in range(20)])
    monkeypatch.setattr(scheduling, "SLICE_SECONDS", 0)
    async with hub.follow(ada.id) as feed:
        await hub.messages.send(room.id, ada.id, "unread")
        cursors = feed.cursors
        reading = asyncio.create_task(hub.messages.send(rooms[-1].id, ada.id, "too late"))
        hub.disconnect(ada.id)
        assert len(feed.positions) == len(rooms)
        await reading
        assert [event async for event in feed] == []
        await until(lambda: open_in(hub) == (0, 0))
        assert feed.cursors == cursors
