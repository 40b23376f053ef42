"""Followers start and end while messages are sent."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

import pytest

from hubbub import FeedEvent, Hub, MemberJoined, MemberLeft, MessageSent, Resync, Room, Settings, User
from hubbub.events import room_channel
from hubbub.postgres import Pool
from hubbub.redis import Connection
from hubbub.repositories import RoomUsers
from hubbub.services.feed import followers
from hubbub.services.feed.followers import ABSENT_LOOKUPS
from services.feed.conftest import NO_HEARTBEAT
from services.feed.reading import entries, is_at, open_in, seqs, take, take_until, until_live
from waiting import HANGS_AFTER_SECONDS, until


async def keep_sending(hub: Hub, room: Room, user: User, is_over: asyncio.Event, chance: random.Random) -> None:
    while not is_over.is_set():
        sent = await hub.messages.send(room.id, user.id, "hello")
        if chance.random() < 0.2:
            await hub.messages.edit(sent.id, "hello!", by=user.id)


async def test_no_entry_is_skipped_or_repeated_between_catching_up_and_live(
    hub: Hub, elsewhere: Hub, room: Room, ada: User, bob: User
) -> None:
    chance = random.Random(17)
    await hub.room_users.add(room.id, bob.id)
    is_over = asyncio.Event()
    sending = [
        asyncio.create_task(keep_sending(one, room, user, is_over, chance))
        for one, user in ((hub, ada), (elsewhere, bob))
    ]

    async def visit(one: Hub, user: User) -> None:
        cursor: str | None = None
        seen = 0
        for _ in range(10):
            async with one.follow(user.id, after={room.id: cursor}, buffer=chance.choice([1, 3, 100])) as feed:
                if chance.random() < 0.3:
                    await asyncio.sleep(0)
                received = entries(await take(feed, chance.randrange(1, 30)))
            assert [event.seq for event in received] == list(range(seen + 1, seen + 1 + len(received)))
            seen, cursor = received[-1].seq, received[-1].cursor

    await asyncio.gather(*(visit(one, user) for one in (hub, elsewhere) for user in (ada, bob) for _ in range(3)))
    is_over.set()
    await asyncio.gather(*sending)
    for one in (hub, elsewhere):
        assert open_in(one) == (0, 0)
        # A read for the last follower that is in progress ends with its statement.
        await until(lambda one=one: not one._feed._rooms._reading)  # type: ignore[misc]


async def test_two_hundred_short_followers_each_receive_a_part_without_a_gap(
    hub: Hub, elsewhere: Hub, room: Room, ada: User, administrator_of_redis: Connection
) -> None:
    chance = random.Random(23)
    is_over = asyncio.Event()
    sending = [asyncio.create_task(keep_sending(one, room, ada, is_over, chance)) for one in (hub, elsewhere)]

    async def visit(one: Hub) -> None:
        async with one.follow(ada.id) as feed:
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            received = seqs(await take(feed, chance.randrange(1, 10)))
        assert received == list(range(received[0], received[0] + len(received)))

    await asyncio.gather(*(visit(one) for one in (hub, elsewhere) for _ in range(100)))
    is_over.set()
    await asyncio.gather(*sending)
    name = room_channel(room.id).encode()
    for one in (hub, elsewhere):
        assert open_in(one) == (0, 0)
        await until(lambda one=one: not one._subscriptions.is_live(name))  # type: ignore[misc]

    async def subscribers() -> object:
        return await administrator_of_redis.execute("PUBSUB", "NUMSUB", name)

    assert await subscribers() == [name, 0]


async def test_new_follower_receives_the_log_after_the_last_one_left_during_a_read(
    hub: Hub, elsewhere: Hub, room: Room, ada: User
) -> None:
    for turns in range(20):
        async with hub.follow(ada.id):
            sent = await elsewhere.messages.send(room.id, ada.id, "hello")
            await elsewhere.messages.edit(sent.id, "hello!", by=ada.id)
            hub._feed._rooms._rooms[room.id].read_log()
            for _ in range(turns):
                await asyncio.sleep(0)
        async with hub.follow(ada.id, after={room.id: sent.cursor}) as feed:
            after = await elsewhere.messages.send(room.id, ada.id, "after")
            assert seqs(await take(feed, 2)) == [sent.seq + 1, after.seq]


async def test_change_announced_while_a_read_ends_is_read_too(
    hub: Hub, without_redis: Hub, room: Room, ada: User
) -> None:
    """Heads are not compared here, so an announcement that starts no read would be lost."""
    async with hub.follow(ada.id) as feed:
        followed = hub._feed._rooms._rooms[room.id]
        for turns in range(60):
            sent = await without_redis.messages.send(room.id, ada.id, "hello")
            followed.read_log()
            for _ in range(turns % 20):
                await asyncio.sleep(0)
            edited = await without_redis.messages.edit(sent.id, "hello!", by=ada.id)
            if turns % 2:
                await asyncio.gather(*hub._feed._rooms._reading.values())
            followed.read_log()
            assert edited.id == sent.id
            assert seqs(await take(feed, 2)) == [sent.seq, sent.seq + 1]


async def test_member_who_joins_and_leaves_repeatedly_receives_whole_visits(
    hub: Hub, elsewhere: Hub, room: Room, ada: User, bob: User
) -> None:
    """Each visit begins with the join and ends with the leave, and no entry is delivered twice."""
    is_over = asyncio.Event()
    chance = random.Random(3)
    sending = asyncio.create_task(keep_sending(elsewhere, room, ada, is_over, chance))
    async with elsewhere.follow(bob.id, buffer=5) as feed:

        async def go_in_and_out() -> None:
            for _ in range(40):
                await hub.room_users.add(room.id, bob.id)
                for _ in range(chance.randrange(20)):
                    await asyncio.sleep(0)
                await hub.room_users.remove(room.id, bob.id)
            is_over.set()
            await sending
            await hub.room_users.add(room.id, bob.id)

        going = asyncio.create_task(go_in_and_out())
        received: list[FeedEvent] = []
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            async for event in feed:
                received.append(event)
                is_last = sending.done() and isinstance(event, MemberJoined)
                if is_last and is_at((await hub.rooms.get(room.id)).last_seq)(event):
                    break
            await going
    found = entries(received)
    assert [event.seq for event in found] == sorted({event.seq for event in found})
    is_inside = False
    for before, event in zip([None, *found], found, strict=False):
        if isinstance(event, MemberJoined) and event.user_id == bob.id:
            assert not is_inside
            is_inside = True
        else:
            assert is_inside
            assert before is not None
            assert event.seq == before.seq + 1
        if isinstance(event, MemberLeft):
            is_inside = False


async def test_next_leave_is_delivered_from_the_log_after_an_absence_while_behind(
    hub: Hub, pool: Pool, room: Room, ada: User, bob: User
) -> None:
    unannounced = RoomUsers(pool)
    await hub.room_users.add(room.id, bob.id)
    async with hub.follow(bob.id, buffer=1) as feed:
        for _ in range(2):
            await hub.messages.send(room.id, ada.id, "hello")
        await until(lambda: bool(feed.inbox.behind))
        await unannounced.remove(room.id, bob.id)
        for _ in range(ABSENT_LOOKUPS + 1):
            await hub._feed._followers.update([bob.id])
        await unannounced.add(room.id, bob.id)
        last = await hub.messages.send(room.id, ada.id, "welcome back")
        followed = hub._feed._rooms.get(room.id)
        await until(lambda: followed is not None and followed.position.seq == last.seq)
        received = await take(feed, 5)
        assert [type(event) for event in received] == [
            MessageSent,
            MessageSent,
            MemberLeft,
            MemberJoined,
            MessageSent,
        ]
        assert not feed.inbox.behind
        await unannounced.remove(room.id, bob.id)
        await hub._feed._followers.update([bob.id])
        [left] = await take(feed)
        assert isinstance(left, MemberLeft)


async def test_absence_unnoticed_by_the_process_is_delivered_as_leave_and_join(
    hub: Hub, pool: Pool, room: Room, ada: User, bob: User
) -> None:
    """A lookup for the announced join finds no change if it runs before the leave was received."""
    unannounced = RoomUsers(pool)
    await hub.room_users.add(room.id, bob.id)
    async with hub.follow(bob.id) as feed:
        await until_live(hub)  # a comparison of heads could find the leave before the lookup
        await unannounced.remove(room.id, bob.id)
        await unannounced.add(room.id, bob.id)
        await hub._feed._followers.update([bob.id])
        await hub.messages.send(room.id, ada.id, "welcome back")
        assert [type(event) for event in await take(feed, 3)] == [MemberLeft, MemberJoined, MessageSent]
        await hub.messages.send(room.id, ada.id, "and live again")
        assert [type(event) for event in await take(feed)] == [MessageSent]


async def test_memberships_that_change_while_a_follower_enters_are_noticed(
    hub: Hub, elsewhere: Hub, ada: User, bob: User
) -> None:
    for turns in range(30):
        room = await hub.rooms.create(f"room {turns}", created_by=ada.id)

        async def add(room: Room = room, turns: int = turns) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            await hub.room_users.add(room.id, bob.id)

        adding = asyncio.create_task(add())
        async with hub.follow(bob.id) as near, elsewhere.follow(bob.id) as far:
            await adding
            sent = await elsewhere.messages.send(room.id, ada.id, "welcome")
            for feed in (near, far):
                await take_until(feed, lambda event, cursor=sent.cursor: event.cursor == cursor)  # type: ignore[misc]


@pytest.mark.parametrize("is_behind", [False, True])
async def test_member_removed_while_their_follower_enters_receives_the_leaving_and_nothing_later(
    settings: Settings, room: Room, ada: User, bob: User, monkeypatch: pytest.MonkeyPatch, is_behind: bool
) -> None:
    """The follower starts at the end of the log, or with a cursor from which nothing is read."""
    async with Hub(settings, options=replace(NO_HEARTBEAT, follow_at_most_behind=3)) as hub:
        await hub.room_users.add(room.id, bob.id)
        sent = [await hub.messages.send(room.id, ada.id, f"message {number}") for number in range(6)]
        memberships = hub._feed._followers.memberships
        rooms_of = memberships.rooms_of

        async def removed_after(user_ids: Sequence[UUID], *, deadline: float | None = None) -> object:
            found = await rooms_of(user_ids, deadline=deadline)
            await hub.room_users.remove(room.id, bob.id)
            return found

        monkeypatch.setattr(memberships, "rooms_of", removed_after)
        async with hub.follow(bob.id, after={room.id: sent[0].cursor} if is_behind else {}) as feed:
            await hub.messages.send(room.id, ada.id, "not for him")
            events = await take_until(feed, lambda event: isinstance(event, MemberLeft))
            assert [type(event) for event in events] == [Resync, MemberLeft] if is_behind else [MemberLeft]
            assert not feed.positions
            assert feed.waiting(10) == []


async def test_follower_cancelled_while_it_enters_leaves_nothing(
    hub: Hub, elsewhere: Hub, room: Room, ada: User
) -> None:
    sent = await elsewhere.messages.send(room.id, ada.id, "hello")
    for turns in range(60):
        feed = hub.follow(ada.id, after={room.id: sent.cursor})
        entering = asyncio.create_task(feed.__aenter__())
        for _ in range(turns):
            await asyncio.sleep(0)
        entering.cancel()
        await asyncio.wait([entering])
        if entering.cancelled():
            assert turns == 0 or feed.is_closed
        else:
            feed.close()
        assert open_in(hub) == (0, 0)


async def test_follower_remembers_only_the_newest_ended_rooms(
    hub: Hub, room: Room, ada: User, bob: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followers, "REMEMBERED_ENDS", 2)
    rooms = [room, *[await hub.rooms.create(f"room {number}", created_by=ada.id) for number in range(3)]]
    for one in rooms:
        await hub.room_users.add(one.id, bob.id)
    async with hub.follow(bob.id) as feed:
        for one in rooms:
            await hub.room_users.remove(one.id, bob.id)
            assert isinstance((await take(feed))[0], MemberLeft)
        assert list(feed.ended_at) == [one.id for one in rooms[-2:]]
