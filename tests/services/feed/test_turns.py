"""However many followers and events there are, other tasks of the process have their turns in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import groupby, pairwise
from uuid import UUID

import pytest

from hubbub import (
    Hub,
    MemberJoined,
    NewMessage,
    Options,
    ProfileChanged,
    Room,
    RoomGone,
    Settings,
    User,
    deletions,
    scheduling,
)
from hubbub.commits import RoomTouched
from hubbub.models import Message
from hubbub.postgres import Pool, Statement
from hubbub.scheduling import Pace
from hubbub.services.feed import Follower
from hubbub.services.feed.followers import ENTERING_PER_TURN
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


MEMBER_OF_ALL = Statement(
    "test.member_of_all",
    int,
    "INSERT INTO room_users (room_id, user_id) SELECT id, $1 FROM rooms WHERE name LIKE 'room-%'",
)
"""As another program adds a member: without an entry in the log, and unannounced."""


async def rooms_of_another_program(pool: Pool, user: User, number: int) -> None:
    await pool.execute(FILL[1], number)
    await pool.execute(MEMBER_OF_ALL, user.id)


async def until_has_positions(feed: Follower, number: int) -> None:
    """Return in the turn in which the feed has this many positions, in the middle of an update."""
    while len(feed.positions) < number:  # noqa: ASYNC110 - the test continues in the same turn
        await asyncio.sleep(0)


async def test_many_followers_that_enter_at_once_begin_over_many_turns(hub: Hub, pool: Pool) -> None:
    await pool.execute(FILL[0], 150)
    use = [0]
    followers = [hub.follow(user_id) for user_id in await pool.fetch_all(PEOPLE)]
    entering = [asyncio.create_task(one.__aenter__()) for one in followers]
    while not all(task.done() for task in entering):
        await asyncio.sleep(0)
        use.append(hub._pool.use.waiting + hub._pool.use.in_use)
    most = max(after - before for before, after in pairwise(use))
    assert ENTERING_PER_TURN / 2 < most <= ENTERING_PER_TURN
    for one in followers:
        one.close()


async def test_follower_that_is_disconnected_before_its_turn_to_enter_leaves_nothing(
    hub: Hub, room: Room, ada: User
) -> None:
    hub._feed._followers._entering = Pace(1)
    session = await hub.sessions.create_session(ada.id)
    followers = [hub.follow(ada.id, token=session) for _ in range(3)]
    entering = [asyncio.create_task(one.__aenter__()) for one in followers]
    await asyncio.sleep(0)
    hub.disconnect(ada.id)
    await asyncio.gather(*entering)
    assert not hub._feed._sessions._followers
    await until(lambda: open_in(hub) == (0, 0))


async def test_rooms_joined_together_are_opened_over_many_turns_and_one_left_meanwhile_is_not_followed(
    hub: Hub, elsewhere: Hub, pool: Pool, ada: User, bob: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hub.follow(ada.id) as feed:
        await rooms_of_another_program(pool, ada, 40)
        rooms = (await elsewhere.room_users.rooms_of(ada.id, limit=200)).items
        monkeypatch.setattr(scheduling, "SLICE_SECONDS", 0)
        hub._feed._followers.read_rooms_of([ada.id])
        await until_has_positions(feed, 10)
        opened = next(iter(feed.positions))
        unopened = next(one.room_id for one in rooms if one.room_id not in feed.positions)
        leaving = [asyncio.create_task(hub.room_users.remove(one, ada.id)) for one in (opened, unopened)]
        await asyncio.gather(*leaving)
        staying = {one.room_id for one in rooms} - {opened, unopened}
        await until(lambda: feed.positions.keys() == staying)
        for room_id in feed.positions.keys() | {opened, unopened}:
            await elsewhere.room_users.add(room_id, bob.id)
        joined: list[UUID] = []
        while len(joined) < len(staying):
            [event] = await take(feed)
            if isinstance(event, MemberJoined):  # else it is a leaving
                joined.append(event.room_id)
        assert set(joined) == feed.positions.keys() == staying
    await until(lambda: open_in(hub) == (0, 0))


@pytest.mark.parametrize("leaves", [False, True])
async def test_follower_that_ends_while_its_rooms_are_updated_leaves_nothing(
    hub: Hub, room: Room, pool: Pool, ada: User, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    async with AsyncExitStack() as stack:
        feed = await stack.enter_async_context(hub.follow(ada.id))
        other = await stack.enter_async_context(hub.follow(ada.id))
        await rooms_of_another_program(pool, ada, 40)
        monkeypatch.setattr(scheduling, "SLICE_SECONDS", 0)
        hub._feed._followers.read_rooms_of([ada.id])
        await until_has_positions(feed, 20)
        assert len(other.positions) == 1
        if leaves:
            await feed.__aexit__(None, None, None)
        else:
            feed.close()
        await until(lambda: len(other.positions) == 41)
        await until(lambda: not feed.positions)
        assert [event async for event in feed] == []
    await until(lambda: open_in(hub) == (0, 0))


async def test_followers_of_a_deleted_room_end_in_one_turn_and_a_new_room_with_its_id_is_followed(
    hub: Hub, pool: Pool, room: Room, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with followers_of(hub, pool, room, people=30) as (_, followers):
        for one in followers:
            await take(one, len(one.inbox.events))
        monkeypatch.setattr(scheduling, "SLICE_SECONDS", 0)
        await hub.rooms.delete(room.id)
        while not (gone := [one for one in followers if one.inbox.events]):  # noqa: ASYNC110 - in the same turn
            await asyncio.sleep(0)
        assert len(gone) == len(followers)
        await hub.rooms.create("again", created_by=ada.id, id=room.id)
        async with hub.follow(ada.id) as feed:
            sent = await hub.messages.send(room.id, ada.id, "hello")
            assert entries(await take(feed))[0].cursor == sent.cursor
            for one in followers:
                assert await take(one) == [RoomGone(room.id)]
            assert list(feed.positions) == [room.id]
            assert open_in(hub)[1] == 1


async def test_rooms_that_an_account_has_left_are_reported_over_many_turns_also_if_its_deletion_is_cancelled(
    hub: Hub, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = await asyncio.gather(*[hub.rooms.create(f"room {n}", created_by=ada.id) for n in range(30)])
    monkeypatch.setattr(deletions, "ROOMS_PER_TURN", 1)
    touched: list[UUID] = []
    hub._commits.on(RoomTouched, lambda change: touched.append(change.room_id))
    deleting = asyncio.create_task(hub.users.delete(ada.id))
    while len(touched) < 5:  # noqa: ASYNC110 - it is cancelled in the middle
        await asyncio.sleep(0)
    assert len(touched) == 5
    deleting.cancel()
    await asyncio.wait([deleting])
    assert deleting.cancelled()
    assert sorted(touched) == sorted(one.id for one in rooms)


async def test_presence_of_a_user_in_many_rooms_comes_once_and_over_many_turns(
    hub: Hub, elsewhere: Hub, ada: User, bob: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = await asyncio.gather(*[hub.rooms.create(f"room {n}", created_by=ada.id) for n in range(30)])
    for room in rooms:
        await hub.room_users.add(room.id, bob.id)
    async with hub.follow(ada.id, profiles=True) as feed, hub.follow(bob.id, profiles=True) as other:
        monkeypatch.setattr(scheduling, "SLICE_SECONDS", 0)
        for name in ("one", "two"):
            await elsewhere.users.update_profile(bob.id, display_name=name)
            for one in (feed, other):
                [event] = await take(one)
                assert isinstance(event, ProfileChanged)
                assert event.display_name == name
