"""Messages that were deleted by the retention of an application. Followers skip them and wait for new ones."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from hubbub import Hub, Room, Settings, User
from hubbub.postgres import Pool, Statement
from instrumentation.recording import Recording
from services.feed.conftest import FAST_HEARTBEAT, NO_HEARTBEAT
from services.feed.reading import log_of, resync, seqs, take
from services.feed.test_rewound import PURGE, rewind, send_many
from waiting import HANGS_AFTER_SECONDS, until

GROW = Statement("test.grow", int, "UPDATE rooms SET last_seq = last_seq + 3 WHERE id = $1")


async def test_log_with_purged_end_is_read_to_its_head_once(
    settings: Settings, pool: Pool, room: Room, ada: User
) -> None:
    recording = Recording()
    async with Hub(settings, options=FAST_HEARTBEAT, instrumentation=recording) as hub:
        await send_many(hub, room, ada, 9)
        await pool.execute(PURGE, room.id)
        async with hub.follow(ada.id, after={room.id: None}) as feed:
            assert seqs(await take(feed)) == [1]
            waiting = asyncio.create_task(take(feed))
            await until(lambda: not feed.inbox.behind)
            (new,) = await send_many(hub, room, ada, 1)
            assert seqs(await waiting) == [new.seq] == [11]
    assert len(recording.outcomes("log.read")) <= 3


async def test_entries_purged_before_they_were_announced_are_skipped(
    comparing: Hub, without_redis: Hub, pool: Pool, room: Room, ada: User
) -> None:
    """The next entry, which is not announced, is not a sign of a rewound log."""
    async with comparing.follow(ada.id) as feed:
        waiting = asyncio.create_task(take(feed))
        followed = feed.positions[room.id].room
        await pool.execute(GROW, room.id)
        await until(lambda: followed.position.seq == 4 and not followed.is_behind)
        (new,) = await send_many(without_redis, room, ada, 1)
        assert seqs(await waiting) == [new.seq] == [5]


async def test_polling_client_reaches_the_head_of_a_purged_log(
    hub: Hub, pool: Pool, room: Room, ada: User
) -> None:
    await send_many(hub, room, ada, 9)
    await pool.execute(PURGE, room.id)
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        assert seqs(await log_of(hub, room.id, limit=1)) == [1]
        (new,) = await send_many(hub, room, ada, 1)
        assert seqs(await log_of(hub, room.id, limit=1)) == [1, new.seq]


async def test_cursor_of_resync_at_purged_head_gives_no_second_resync(
    hub: Hub, pool: Pool, room: Room, ada: User
) -> None:
    """There is no entry at the cursor from which they continue, and there will be none."""
    lost = (await send_many(hub, room, ada, 9))[-1].cursor
    await pool.execute(PURGE, room.id)
    (event,) = (await hub.messages.since(room.id, lost)).items
    head = resync(event).cursor
    assert await log_of(hub, room.id, head) == []
    async with hub.follow(ada.id, after={room.id: lost}) as feed:
        assert resync(*await take(feed)).cursor == head
    async with hub.follow(ada.id, after={room.id: head}) as feed:
        await hub._feed._rooms.head(feed.positions[room.id].room)  # as a heartbeat would
        (new,) = await send_many(hub, room, ada, 1)
        assert seqs(await take(feed)) == [new.seq] == [11]
    assert seqs(await log_of(hub, room.id, head)) == [11]


async def test_follower_too_far_behind_purged_head_gets_a_resync(
    settings: Settings, pool: Pool, room: Room, ada: User
) -> None:
    async with Hub(settings, options=replace(NO_HEARTBEAT, follow_at_most_behind=3)) as hub:
        start = (await hub.messages.since(room.id, None)).cursor
        await send_many(hub, room, ada, 9)
        await pool.execute(PURGE, room.id)
        async with hub.follow(ada.id, after={room.id: start}) as feed:
            assert resync(*await take(feed)).reason == "too_far_behind"


async def test_follower_goes_on_from_the_edit_of_a_purged_message(
    hub: Hub, pool: Pool, room: Room, ada: User
) -> None:
    (sent,) = await send_many(hub, room, ada, 1)
    await hub.messages.edit(sent.id, "edited", by=ada.id)
    cursor = (await hub.messages.since(room.id, None)).cursor
    await pool.execute(PURGE, room.id)
    assert await log_of(hub, room.id, cursor) == []
    async with hub.follow(ada.id, after={room.id: cursor}) as feed:
        await hub._feed._rooms.head(feed.positions[room.id].room)  # as a heartbeat would
        (new,) = await send_many(hub, room, ada, 1)
        assert seqs(await take(feed)) == [new.seq] == [4]
    assert seqs(await log_of(hub, room.id, cursor)) == [4]
    assert seqs(await log_of(hub, room.id)) == [1, 4]


@pytest.mark.parametrize("grown", [0, 3, 6, 20])
async def test_cursor_at_purged_seq_gives_a_resync_after_a_rewind(
    hub: Hub, without_redis: Hub, pool: Pool, room: Room, ada: User, grown: int
) -> None:
    """This holds for live and for returning followers, however far the log has grown since."""
    lost = (await send_many(hub, room, ada, 9))[-1].cursor
    await pool.execute(PURGE, room.id)
    head = (await hub.messages.since(room.id, lost)).cursor
    async with hub.follow(ada.id, after={room.id: head}) as feed:
        await rewind(pool, room.id, 4)
        await send_many(without_redis, room, ada, grown)
        await hub._feed._rooms.head(feed.positions[room.id].room)  # as a heartbeat would
        assert resync(*await take(feed)).reason == "rewound"
    async with hub.follow(ada.id, after={room.id: head}) as again:
        assert resync(*await take(again)).reason == "rewound"
    (event,) = (await hub.messages.since(room.id, head)).items
    assert resync(event).reason == "rewound"
