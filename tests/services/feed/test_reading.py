"""Reading a follower: slowly, with interruptions, by two readers at once, and while it ends."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from hubbub import FeedEvent, Follower, Hub, MessageSent, NewMessage, Room, Settings, Unavailable, User
from hubbub.inputs import CONTENT_LENGTH
from hubbub.postgres import Pool, Statement
from hubbub.services.feed.followers import LOG_BYTES
from hubbub.services.feed.rooms import MAX_UNREAD
from instrumentation.recording import Recording
from postgres.faults import frozen
from services.feed.conftest import NO_HEARTBEAT
from services.feed.reading import entries, is_at, log_of, open_in, seqs, take, take_until
from waiting import HANGS_AFTER_SECONDS, until


async def send_many(hub: Hub, room: Room, user: User, count: int) -> int:
    """Send `count` messages. Returns the seq of the last one."""
    sent = await hub.messages.send_many(room.id, user.id, [NewMessage(str(number)) for number in range(count)])
    return sent[-1].seq


@pytest.mark.parametrize("buffer", [1, 5, 1_000])
async def test_slow_reader_misses_nothing_within_its_buffer(
    hub: Hub, elsewhere: Hub, room: Room, ada: User, buffer: int
) -> None:
    async with elsewhere.follow(ada.id, buffer=buffer) as feed:
        witness = elsewhere.follow(ada.id)
        async with witness:
            for _ in range(5):
                last = await send_many(hub, room, ada, 100)
            await take_until(witness, is_at(last))
            assert len(feed.inbox.events) <= buffer
        received: list[FeedEvent] = []
        while not received or not is_at(last)(received[-1]):
            received += await take(feed)
            assert len(feed.inbox.events) <= buffer
        assert seqs(received) == list(range(2, last + 1))
        live = await hub.messages.send(room.id, ada.id, "live")
        assert seqs(await take(feed)) == [live.seq]


async def test_busy_room_does_not_hold_up_a_quiet_one(hub: Hub, elsewhere: Hub, room: Room, ada: User) -> None:
    quiet = await hub.rooms.create("quiet", created_by=ada.id)
    async with elsewhere.follow(ada.id, buffer=10) as feed:
        is_over = asyncio.Event()

        async def flood() -> int:
            while not is_over.is_set():
                last = await send_many(hub, room, ada, 200)
            return last

        flooding = asyncio.create_task(flood())
        received = await take(feed, 50)
        for number in range(5):
            sent = await hub.messages.send(quiet.id, ada.id, str(number))
            received += await take_until(feed, lambda event, cursor=sent.cursor: event.cursor == cursor)  # type: ignore[misc]
            assert len(feed.inbox.events) <= feed.inbox.limit
        is_over.set()
        last = await flooding
        if not any(is_at(last, room.id)(event) for event in received):
            received += await take_until(feed, is_at(last, room.id))
        found = entries(received)
        assert [event.seq for event in found if event.room_id == quiet.id] == [2, 3, 4, 5, 6]
        assert [event.seq for event in found if event.room_id == room.id] == list(range(2, last + 1))


async def test_reader_cancelled_repeatedly_loses_and_repeats_nothing(
    hub: Hub, elsewhere: Hub, room: Room, ada: User
) -> None:
    chance = random.Random(5)
    async with elsewhere.follow(ada.id, after={room.id: None}, buffer=7) as feed:
        sending = asyncio.create_task(send_in_batches(hub, room, ada, 400))
        received: list[FeedEvent] = []
        cancelled = 0
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            while not received or not is_at(401)(received[-1]):
                reading = asyncio.ensure_future(anext(feed))
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
                reading.cancel()
                (outcome,) = await asyncio.gather(reading, return_exceptions=True)
                if isinstance(outcome, asyncio.CancelledError):
                    cancelled += 1
                    if chance.random() < 0.02:  # a few reads may finish
                        received += await take(feed)
                else:
                    assert not isinstance(outcome, BaseException), outcome
                    received.append(outcome)
        await sending
        assert seqs(received) == list(range(1, 402))
        assert cancelled > 100


async def send_in_batches(hub: Hub, room: Room, user: User, count: int) -> None:
    while count:
        some = min(count, 50)
        await send_many(hub, room, user, some)
        count -= some


LONGEST = "\N{GRINNING FACE}" * CONTENT_LENGTH  # 80 kB as UTF-8, and in memory


async def send_long(hub: Hub, room: Room, user: User, count: int) -> int:
    """Send `count` messages of the greatest length, with metadata. Returns the seq of the last one."""
    news = [NewMessage(LONGEST, metadata={"size": [number] * 1_000}) for number in range(count)]
    return (await hub.messages.send_many(room.id, user.id, news))[-1].seq


def held(feed: Follower) -> int:
    """The size of the unread messages in bytes."""
    messages = (event.message for event in feed.inbox.events if isinstance(event, MessageSent))
    return sum(len(message.content.encode()) for message in messages)


async def test_client_that_comes_back_to_long_messages_holds_some_hundred_kilobytes(
    hub: Hub, room: Room, ada: User
) -> None:
    last = await send_long(hub, room, ada, 40)
    async with hub.follow(ada.id, after={room.id: None}) as feed:
        received: list[FeedEvent] = []
        while not received or not is_at(last)(received[-1]):
            received += await take(feed)
            assert held(feed) <= LOG_BYTES
    assert seqs(received) == list(range(1, last + 1))


async def test_clients_that_come_back_to_one_place_share_what_they_read(
    settings: Settings, room: Room, ada: User
) -> None:
    recording = Recording()
    async with Hub(settings, options=NO_HEARTBEAT, instrumentation=recording) as hub, AsyncExitStack() as stack:
        await send_long(hub, room, ada, 10)
        followers = [await stack.enter_async_context(hub.follow(ada.id, after={room.id: None})) for _ in range(60)]
        await asyncio.gather(*[take(one) for one in followers])
        assert len({id(event) for one in followers for event in one.inbox.events}) <= 10
        assert len(recording.outcomes("log.read")) <= 5


async def test_unread_follower_of_a_live_room_holds_some_long_messages(
    hub: Hub, elsewhere: Hub, room: Room, ada: User
) -> None:
    async with hub.follow(ada.id) as here, elsewhere.follow(ada.id) as there, elsewhere.follow(ada.id) as witness:
        for _ in range(5):
            last = await send_long(hub, room, ada, 25)
            await take_until(witness, is_at(last))
        for feed in (here, there):
            assert held(feed) < 4 * (MAX_UNREAD + CONTENT_LENGTH)
            assert seqs(await take_until(feed, is_at(last))) == list(range(2, last + 1))


async def test_page_of_a_log_ends_after_a_megabyte_and_says_that_there_is_more(
    hub: Hub, room: Room, ada: User
) -> None:
    last = await send_long(hub, room, ada, 40)
    await hub.messages.edit((await hub.messages.page(room.id, limit=1)).items[0].id, "short", by=ada.id)
    page = await hub.messages.since(room.id, None, limit=1_000)
    assert page.has_more
    assert 10 < len(page.items) < 20
    assert seqs(await log_of(hub, room.id, limit=1_000)) == list(range(1, last + 2))


async def test_second_reader_at_a_time_is_refused(hub: Hub, room: Room, ada: User) -> None:
    async with hub.follow(ada.id) as feed, hub.follow(ada.id, after={room.id: None}) as behind:
        for one in (feed, behind):
            reading = asyncio.create_task(anext(one))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="one reader"):
                await anext(one)
            if one is feed:
                await hub.messages.send(room.id, ada.id, "hello")
            await reading


async def test_iteration_can_be_left_and_resumed(hub: Hub, room: Room, ada: User) -> None:
    last = await send_many(hub, room, ada, 10)
    received: list[FeedEvent] = []
    async with hub.follow(ada.id, after={room.id: None}) as feed:
        while len(received) < last:
            async for event in feed:
                received.append(event)
                if len(received) % 3 == 0 or is_at(last)(event):
                    break
    assert seqs(received) == list(range(1, last + 1))
    assert [event async for event in feed] == []


async def test_close_ends_a_waiting_iteration(hub: Hub, room: Room, ada: User) -> None:
    async with hub.follow(ada.id) as feed:
        reading = asyncio.create_task(anext(feed, "the end"))
        await asyncio.sleep(0)
        feed.close()
        feed.close()
        assert await reading == "the end"


async def test_follower_is_entered_once_and_before_it_is_read(hub: Hub, room: Room, ada: User) -> None:
    feed = hub.follow(ada.id)
    with pytest.raises(RuntimeError, match="async with"):
        await anext(feed)
    async with feed:
        with pytest.raises(RuntimeError, match="entered once"):
            await feed.__aenter__()
    with pytest.raises(RuntimeError, match="entered once"):
        await feed.__aenter__()
    closed = hub.follow(ada.id)
    closed.close()
    with pytest.raises(RuntimeError, match="entered once"):
        await closed.__aenter__()
    assert open_in(hub) == (0, 0)


async def test_follower_that_was_never_entered_leaves_nothing(hub: Hub, room: Room, ada: User) -> None:
    followers = [weakref.ref(hub.follow(ada.id, after={room.id: None})) for _ in range(100)]
    gc.collect()
    assert not any(follower() for follower in followers)
    assert open_in(hub) == (0, 0)


LOCK = Statement("test.lock", int, "LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
BACKENDS = Statement(
    "test.backends",
    int,
    """
    SELECT pid
    FROM pg_stat_activity
    WHERE datname = current_database()
        AND backend_type = 'client backend'
        AND pid <> pg_backend_pid()
    """,
)


async def test_close_of_hub_ends_every_iteration_while_postgresql_is_frozen(
    settings: Settings, pool: Pool, room: Room, ada: User
) -> None:
    """Some wait for an event and some for PostgreSQL, but none until the deadline of a statement."""

    async def read_all(feed: Follower) -> None:
        async for _ in feed:
            pass

    # No test takes as long as this deadline.
    settings = replace(settings, postgres=replace(settings.postgres, deadline_seconds=600))
    async with Hub(settings) as hub:
        waiting = [hub.follow(ada.id) for _ in range(3)]
        # Each reads a different number of entries, because equal reads would share one statement.
        behind = [hub.follow(ada.id, after={room.id: None}, buffer=number) for number in range(1, 13)]
        for feed in (*waiting, *behind):
            await feed.__aenter__()
        async with pool.transaction() as transaction:
            await transaction.fetch_all(LOCK)
            reading = [asyncio.create_task(read_all(feed)) for feed in (*waiting, *behind)]
            await until(hub._feed._rooms._concurrent_reads.locked)
            async with frozen(*await transaction.fetch_all(BACKENDS)):
                closing = asyncio.create_task(hub.close())
                async with asyncio.timeout(HANGS_AFTER_SECONDS):
                    await asyncio.gather(*reading)
        await closing
        with pytest.raises(Unavailable, match="closed"):
            await hub.follow(ada.id).__aenter__()


async def test_closed_followers_leave_nothing(hub: Hub, elsewhere: Hub, room: Room, ada: User) -> None:
    for _ in range(3):
        async with hub.follow(ada.id), hub.follow(ada.id, after={room.id: None}) as feed:
            await take(feed)
            assert open_in(hub) == (2, 1)
        assert open_in(hub) == (0, 0)
        assert not hub._feed._rooms._reading
    name = f"room:{room.id}".encode()
    await until(lambda: not hub._subscriptions.is_live(name))
