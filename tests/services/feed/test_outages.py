"""PostgreSQL is down, frozen, slow or has no free connection. Followers wait for it and continue."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from faults.fragile import FragileServers
from hubbub import Hub, MessageSent, Room, RoomGone, Settings, Unavailable, User, migrations
from hubbub.postgres import Pool, Statement
from hubbub.repositories.messages import LogCheck
from hubbub.services.feed import rooms as feed_rooms
from hubbub.services.feed.rooms import FollowedRooms
from services.feed.conftest import FAST_HEARTBEAT
from services.feed.reading import is_at, open_in, seqs, take, take_until, until_live
from waiting import until


@pytest.fixture
async def fragile() -> AsyncIterator[FragileServers]:
    folder = Path(
        tempfile.mkdtemp(prefix="hubbub-feed-")
    )  # the account of the servers may not enter pytest's folder
    servers = FragileServers(folder)
    await migrations.up((await servers.start()).postgres)
    yield servers
    await servers.stop()
    shutil.rmtree(folder)


async def keep_sending(hub: Hub, room: Room, user: User, is_over: asyncio.Event) -> None:
    while not is_over.is_set():
        try:
            await hub.messages.send(room.id, user.id, "still here?")
        except Unavailable:
            await asyncio.sleep(0.01)  # like a client that tries again


async def test_followers_go_on_after_postgresql_was_frozen_killed_and_restarted(fragile: FragileServers) -> None:
    settings = await fragile.start()
    settings = replace(settings, postgres=replace(settings.postgres, deadline_seconds=2))
    async with Hub(settings, options=FAST_HEARTBEAT) as one, Hub(settings, options=FAST_HEARTBEAT) as other:
        ada = await one.users.create("ada@example.org", "ada", "not a hash")
        room = await one.rooms.create("engine-room", created_by=ada.id)
        is_over = asyncio.Event()
        async with one.follow(ada.id) as near, other.follow(ada.id, after={room.id: None}, buffer=3) as far:
            sending = [asyncio.create_task(keep_sending(hub, room, ada, is_over)) for hub in (one, other)]
            received = [await take(near, 30), await take(far, 30)]

            async def go_on() -> None:
                for feed, history in zip((near, far), received, strict=True):
                    history.extend(await take(feed, 100))

            with fragile.frozen("postgresql"):
                await asyncio.sleep(3)  # longer than the deadline: statements in flight fail
            await go_on()
            fragile.kill("postgresql")
            await fragile.start()
            await go_on()
            await fragile.stop()
            await fragile.start()
            await go_on()
            is_over.set()
            await asyncio.gather(*sending)
            head = (await one.rooms.get(room.id)).last_seq
            for feed, history in zip((near, far), received, strict=True):
                if not is_at(head)(history[-1]):
                    history.extend(await take_until(feed, is_at(head)))
        assert seqs(received[0]) == list(range(2, head + 1))
        assert seqs(received[1]) == list(range(1, head + 1))


LOCK = Statement("test.lock", int, "LOCK TABLE messages, room_events, room_users IN ACCESS EXCLUSIVE MODE")


async def test_log_that_cannot_be_read_by_the_deadline_is_read_later(
    settings: Settings, pool: Pool, hub: Hub, room: Room, ada: User
) -> None:
    settings = replace(settings, postgres=replace(settings.postgres, deadline_seconds=3))
    async with (
        Hub(settings, options=FAST_HEARTBEAT) as hasty,
        hasty.follow(ada.id) as live,
        hasty.follow(ada.id, after={room.id: None}) as behind,
    ):
        async with pool.transaction() as transaction:
            await transaction.fetch_all(LOCK)
            reading = asyncio.create_task(take(behind))
            editing = asyncio.create_task(hub.rooms.update(room.id, name="other", by=ada.id))
            await asyncio.sleep(5)  # longer than the deadline
            assert not reading.done()
        await editing
        assert seqs(await reading) == [1]
        assert seqs(await take(behind)) == [2]
        assert seqs(await take(live)) == [2]


async def test_exhausted_pool_delays_events_and_loses_none(
    settings: Settings, hub: Hub, room: Room, ada: User
) -> None:
    settings = replace(settings, postgres=replace(settings.postgres, deadline_seconds=3, pool_size=2))
    async with (
        Hub(settings, options=FAST_HEARTBEAT) as crowded,
        crowded.follow(ada.id, after={room.id: None}) as feed,
    ):
        assert seqs(await take(feed)) == [1]
        sent = None
        for _ in range(2):
            async with crowded.transaction(), crowded.transaction():
                sent = await hub.messages.send(room.id, ada.id, "hello")
                await hub.messages.edit(sent.id, "hello!", by=ada.id)
                await asyncio.sleep(3.6)  # longer than the deadline
        assert sent is not None
        assert seqs(await take_until(feed, is_at(sent.seq + 1))) == list(range(2, sent.seq + 2))


async def test_follow_can_be_repeated_after_it_raised_unavailable(
    settings: Settings, pool: Pool, room: Room, ada: User
) -> None:
    settings = replace(settings, postgres=replace(settings.postgres, deadline_seconds=3))
    async with Hub(settings, options=FAST_HEARTBEAT) as hasty:
        async with pool.transaction() as transaction:
            await transaction.fetch_all(LOCK)
            feed = hasty.follow(ada.id)
            with pytest.raises(Unavailable):
                await feed.__aenter__()
            assert open_in(hasty) == (0, 0)
        async with hasty.follow(ada.id) as feed:
            sent = await hasty.messages.send(room.id, ada.id, "hello")
            assert seqs(await take(feed)) == [sent.seq]


async def test_comparing_goes_on_when_a_room_is_deleted_meanwhile(
    comparing: Hub, without_redis: Hub, room: Room, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The room looks rewound, and is deleted when its head is read."""
    other = await comparing.rooms.create("other", created_by=ada.id)
    rooms = comparing._feed._rooms
    really = rooms._logs.check
    is_deleted = False

    async def check(places: dict[object, int | None]) -> object:
        nonlocal is_deleted
        found = await really(places)  # type: ignore[arg-type]
        if room.id in places and not is_deleted:
            is_deleted = True
            await without_redis.rooms.delete(room.id)
            return [one._replace(position=None) if one.room_id == room.id else one for one in found]
        return found

    async with comparing.follow(ada.id) as feed:
        monkeypatch.setattr(rooms._logs, "check", check)
        assert await take(feed) == [RoomGone(room.id)]
        assert comparing._feed._comparing is not None
        sent = await without_redis.messages.send(other.id, ada.id, "still received")
        assert seqs(await take(feed)) == [sent.seq]
        await until(lambda: not feed.inbox.behind)


async def test_rooms_that_could_not_be_compared_are_compared_next(
    hub: Hub, without_redis: Hub, room: Room, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a heartbeat. The statement for the second of three rooms fails once."""
    monkeypatch.setattr(feed_rooms, "ROOMS_PER_STATEMENT", 1)
    created = [room, *[await hub.rooms.create(name, created_by=ada.id) for name in ("second", "third")]]
    rooms = hub._feed._rooms
    really = rooms._logs.check
    asked: list[UUID] = []

    async def check(places: Mapping[UUID, int]) -> list[LogCheck]:
        asked.extend(places)
        if len(asked) == 2:
            raise Unavailable("postgresql", "it was restarted")
        return await really(places)

    async with hub.follow(ada.id) as feed:
        await until_live(hub)
        sent = [await without_redis.messages.send(one.id, ada.id, "in silence") for one in created]
        monkeypatch.setattr(rooms._logs, "check", check)
        rooms.schedule_some()
        with pytest.raises(Unavailable):
            await rooms.compare()
        await rooms.compare()
        assert {one.id for one in created} == set(asked)
        events = [event for event in await take(feed, len(sent)) if isinstance(event, MessageSent)]
        assert {event.message.id for event in events} == {message.id for message in sent}


async def test_unexpected_error_of_comparing_is_reported_and_comparing_goes_on(
    comparing: Hub, without_redis: Hub, room: Room, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No statement of the comparison is known to raise one, so the method does."""

    async def fail(_: FollowedRooms) -> None:
        raise ZeroDivisionError

    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    async with comparing.follow(ada.id) as feed:
        with monkeypatch.context() as patch:
            patch.setattr(FollowedRooms, "compare", fail)
            await until(lambda: bool(reported))
        sent = await without_redis.messages.send(room.id, ada.id, "unannounced")
        assert seqs(await take(feed)) == [sent.seq]
    assert {context["message"] for context in reported} == {"comparing heads of logs failed"}
