"""A log that lost its newest entries and grew again, as after a restore or a failover that lost commits."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from hubbub import Hub, Invalid, Message, NewMessage, Options, Room, Settings, Unavailable, User
from hubbub.positions import Position
from hubbub.postgres import Pool, Statement
from services.feed.reading import is_at, log_of, resync, seqs, take, take_until, until_live
from waiting import until

FORGET_MESSAGES = Statement("test.forget_messages", int, "DELETE FROM messages WHERE room_id = $1 AND seq > $2")
FORGET_EVENTS = Statement("test.forget_events", int, "DELETE FROM room_events WHERE room_id = $1 AND seq > $2")
REWIND = Statement("test.rewind", int, "UPDATE rooms SET last_seq = $2 WHERE id = $1")


async def rewind(pool: Pool, room_id: UUID, seq: int) -> None:
    """Delete all entries after the seq, as if they had never been made."""
    async with pool.transaction() as transaction:
        await transaction.execute(REWIND, room_id, seq)
        await transaction.execute(FORGET_MESSAGES, room_id, seq)
        await transaction.execute(FORGET_EVENTS, room_id, seq)


async def send_many(hub: Hub, room: Room, user: User, count: int) -> list[Message]:
    return await hub.messages.send_many(room.id, user.id, [NewMessage(str(number)) for number in range(count)])


async def test_live_follower_gets_a_resync_and_then_new_entries_alone(
    comparing: Hub, pool: Pool, room: Room, ada: User
) -> None:
    async with comparing.follow(ada.id) as feed:
        sent = await send_many(comparing, room, ada, 9)
        assert len(await take(feed, 9)) == 9
        await rewind(pool, room.id, 4)
        (event,) = await take(feed)
        assert (resync(event).reason, resync(event).cursor) == ("rewound", sent[2].cursor)
        new = await send_many(comparing, room, ada, 3)
        assert seqs(await take(feed, 3)) == [one.seq for one in new] == [5, 6, 7]


async def test_cursor_that_the_log_does_not_hold_gives_a_resync(
    hub: Hub, pool: Pool, room: Room, ada: User
) -> None:
    """Even if the log ends at the cursor, or has grown past it again."""
    sent = await send_many(hub, room, ada, 9)
    await rewind(pool, room.id, 4)
    for grown in (0, 5, 3, 3):
        head = 4 if not grown else (await send_many(hub, room, ada, grown))[-1].seq
        for lost in sent[3:]:
            async with hub.follow(ada.id, after={room.id: lost.cursor}) as feed:
                (event,) = await take(feed)
                assert resync(event).reason == "rewound"
                (new,) = await send_many(hub, room, ada, 1)
                head += 1
                assert seqs(await take(feed)) == [new.seq] == [head]
                async with hub.follow(ada.id, after={room.id: resync(event).cursor}) as again:
                    assert seqs(await take(again)) == [head]
            await rewind(pool, room.id, head - 1)
            head -= 1
    async with hub.follow(ada.id, after={room.id: sent[2].cursor}) as feed:
        assert seqs(await take(feed, 11)) == list(range(5, 16))


async def test_page_after_a_lost_cursor_is_a_resync_alone(hub: Hub, pool: Pool, room: Room, ada: User) -> None:
    sent = await send_many(hub, room, ada, 9)
    await rewind(pool, room.id, 4)
    for grown in (0, 20):
        if grown:
            await send_many(hub, room, ada, grown)
        for lost in sent[3:]:
            page = await hub.messages.since(room.id, lost.cursor)
            assert [resync(item).reason for item in page.items] == ["rewound"]
            assert (page.cursor, page.has_more) == (resync(page.items[0]).cursor, False)
            assert (await hub.messages.since(room.id, page.cursor)).items == []
        kept = sent[2].cursor
        assert len(await log_of(hub, room.id, kept)) == grown


async def test_rewound_log_that_grew_past_its_old_head_is_found_by_announcements(
    hub: Hub, elsewhere: Hub, without_redis: Hub, pool: Pool, room: Room, ada: User
) -> None:
    """Without a heartbeat, the rewind shows by a different entry at a seq that was already taken."""
    async with elsewhere.follow(ada.id) as near, hub.follow(ada.id) as far:
        sent = await send_many(hub, room, ada, 9)
        for feed in (near, far):
            await take_until(feed, is_at(sent[-1].seq))
        await rewind(pool, room.id, 7)
        for number in range(10):
            await hub.messages.send(room.id, ada.id, f"new {number}")
        for feed in (near, far):
            events = await take_until(feed, lambda event: not hasattr(event, "seq"))
            resynced = resync(events[-1])
            assert resynced.reason == "rewound"
            assert not set(seqs(events[:-1])) & {8, 9, 10}
            if resynced.cursor != (await hub.messages.page(room.id, limit=1)).items[0].cursor:
                rest = await log_of(hub, room.id, resynced.cursor)
                assert await take(feed, len(rest)) == rest


@pytest.mark.parametrize("is_read", [True, False])
async def test_rewind_is_found_by_a_follower_that_enters(
    hub: Hub, without_redis: Hub, pool: Pool, room: Room, ada: User, *, is_read: bool
) -> None:
    """Nothing announced it, and the log has as many entries as before. The follower may not be read yet."""
    async with hub.follow(ada.id) as live:
        await until_live(hub)
        sent = await send_many(hub, room, ada, 3)
        await take(live, 3)
        await rewind(pool, room.id, sent[-1].seq - 1)
        (new,) = await send_many(without_redis, room, ada, 1)
        assert new.seq == sent[-1].seq
        async with hub.follow(ada.id) as entering:
            reading = asyncio.create_task(take(entering, 1)) if is_read else None
            (event,) = await take(live)
            assert (resync(event).reason, resync(event).cursor) == ("rewound", new.cursor)
            (last,) = await send_many(hub, room, ada, 1)
            assert seqs(await take(live)) == [last.seq]
            assert seqs(await (reading or take(entering))) == [last.seq]


async def test_follower_of_a_former_log_gets_a_resync_where_others_are_live(
    hub: Hub, without_redis: Hub, pool: Pool, room: Room, ada: User
) -> None:
    """Its page was read before the log was rewound, and the room goes on from the new log."""
    sent = await send_many(hub, room, ada, 3)
    await rewind(pool, room.id, sent[-1].seq - 1)
    (new,) = await send_many(without_redis, room, ada, 1)
    async with hub.follow(ada.id) as live, hub.follow(ada.id) as late:
        await until_live(hub)
        followed = late.positions[room.id]
        followed.fall_behind()
        followed.position = Position.decode(room.id, sent[-1].cursor)
        followed.catch_up()
        (event,) = await take(late)
        assert (resync(event).reason, resync(event).cursor) == ("rewound", new.cursor)
        (last,) = await send_many(hub, room, ada, 1)
        for feed in (live, late):
            assert seqs(await take(feed)) == [last.seq]


async def test_rewind_is_found_after_its_head_could_not_be_read(
    hub: Hub, elsewhere: Hub, pool: Pool, room: Room, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has grown past its former head, so only the entry that was taken before shows the rewind."""
    async with elsewhere.follow(ada.id) as feed:
        await until_live(elsewhere)
        sent = await send_many(hub, room, ada, 9)
        await take_until(feed, is_at(sent[-1].seq))
        rooms = elsewhere._feed._rooms
        really = rooms._logs.head
        failures = 0

        async def head(room_id: UUID) -> Position:
            nonlocal failures
            failures += 1
            if failures == 1:
                raise Unavailable("postgresql", "it was restarted")
            return await really(room_id)

        monkeypatch.setattr(rooms._logs, "head", head)
        await rewind(pool, room.id, 9)
        new = await send_many(hub, room, ada, 3)  # the first has the seq of the last one before
        await until(lambda: failures == 1 and rooms._rooms[room.id].position.seq == new[-1].seq)
        await rooms.compare()
        events = await take_until(feed, lambda event: not hasattr(event, "seq"))
        assert resync(events[-1]).reason == "rewound"


async def test_rewound_log_that_grew_unannounced_is_found_at_the_heartbeat(
    comparing: Hub, without_redis: Hub, pool: Pool, room: Room, ada: User
) -> None:
    async with comparing.follow(ada.id) as feed:
        sent = await send_many(comparing, room, ada, 9)
        await take_until(feed, is_at(sent[-1].seq))
        for _ in range(5):
            async with pool.transaction() as transaction:
                await transaction.execute(REWIND, room.id, 5)
                await transaction.execute(FORGET_MESSAGES, room.id, 5)
            await send_many(without_redis, room, ada, 20)
            events = await take_until(feed, lambda event: not hasattr(event, "seq"))
            head = resync(events[-1]).cursor
            rest = await log_of(without_redis, room.id, head)
            assert await take(feed, len(rest)) == rest


async def test_follower_behind_the_rewound_entries_goes_on_without_resync(
    hub: Hub, pool: Pool, room: Room, ada: User
) -> None:
    async with hub.follow(ada.id, buffer=2) as slow, hub.follow(ada.id, buffer=8) as quicker:
        await send_many(hub, room, ada, 20)
        await rewind(pool, room.id, 6)
        await send_many(hub, room, ada, 30)
        await until(lambda: not hub._feed._rooms._reading)
        assert seqs(await take(slow, 35)) == list(range(2, 37))
        received = await take(quicker, 9)
        assert seqs(received[:8]) == list(range(2, 10))
        assert resync(received[8]).reason == "rewound"


async def test_empty_log_is_followed(hub: Hub, pool: Pool, room: Room, ada: User) -> None:
    """Rooms from before the log have no entries, and a log may be rewound to nothing."""
    cursor = (await hub.messages.since(room.id, None)).cursor
    await rewind(pool, room.id, 0)
    page = await hub.messages.since(room.id, None)
    assert (page.items, page.cursor, page.has_more) == ([], None, False)
    for after in (None, cursor):
        async with hub.follow(ada.id, after={room.id: after}) as feed:
            if after is not None:
                resynced = resync((await take(feed))[0])
                assert (await hub.messages.since(room.id, resynced.cursor)).items == []
            (sent,) = await send_many(hub, room, ada, 1)
            assert sent.seq == 1
            assert seqs(await take(feed)) == [1]
        await rewind(pool, room.id, 0)


REJOIN = Statement(
    "test.rejoin",
    int,
    "INSERT INTO room_users (room_id, user_id, joined_seq, last_read_seq) VALUES ($1, $2, 2, 2)",
)


async def test_log_rewound_to_before_a_leave_is_followed_again(
    comparing: Hub, pool: Pool, room: Room, ada: User, bob: User
) -> None:
    await comparing.room_users.add(room.id, bob.id)
    async with comparing.follow(bob.id) as feed:
        await send_many(comparing, room, ada, 3)
        await comparing.room_users.remove(room.id, bob.id)
        assert len(await take(feed, 4)) == 4
        await rewind(pool, room.id, 4)
        await pool.execute(REJOIN, room.id, bob.id)
        resync(*await take(feed))
        (new,) = await send_many(comparing, room, ada, 1)
        assert seqs(await take(feed)) == [new.seq] == [5]


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_heartbeat_that_is_not_positive_is_refused(settings: Settings, seconds: float) -> None:
    with pytest.raises(Invalid, match="follow_heartbeat_seconds"):
        Hub(settings, options=Options(follow_heartbeat_seconds=seconds))


PURGE = Statement("test.purge", int, "DELETE FROM messages WHERE room_id = $1")


async def test_purge_of_the_newest_message_gives_one_resync(
    comparing: Hub, pool: Pool, room: Room, ada: User
) -> None:
    async with comparing.follow(ada.id) as feed:
        await comparing.messages.send(room.id, ada.id, "old")
        await take(feed)
        await pool.execute(PURGE, room.id)
        resync(*await take(feed))
        await comparing._feed._rooms.compare()
        comparing._feed._rooms.schedule_some()
        await comparing._feed._rooms.compare()
        sent = await comparing.messages.send(room.id, ada.id, "new")
        assert seqs(await take(feed)) == [sent.seq]
