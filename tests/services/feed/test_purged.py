"""Messages that an application's own retention has deleted: followers pass over them, and wait for what is new."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from hubbub import Hub, Room, Settings, User
from hubbub.postgres import Pool, Statement
from instrumentation.recording import Recording
from services.feed.conftest import NEVER, OFTEN
from services.feed.reading import log_of, resync, seqs, take
from services.feed.test_rewound import PURGE, rewind, say
from waiting import until

GROW = Statement("test.grow", int, "UPDATE rooms SET last_seq = last_seq + 3 WHERE id = $1")


async def test_a_log_whose_end_was_purged_is_read_to_its_end_once(
    settings: Settings, pool: Pool, room: Room, ada: User
) -> None:
    recording = Recording()
    async with Hub(settings, options=OFTEN, instrumentation=recording) as hub:
        await say(hub, room, ada, 9)
        await pool.execute(PURGE, room.id)
        async with hub.follow(ada.id, after={room.id: None}) as feed:
            assert seqs(await take(feed)) == [1]
            waiting = asyncio.create_task(take(feed))
            await until(lambda: not feed.inbox.behind)
            (new,) = await say(hub, room, ada, 1)
            assert seqs(await waiting) == [new.seq] == [11]
    assert len(recording.outcomes("log.read")) <= 3


async def test_what_was_purged_before_it_was_heard_of_is_passed_over(
    watchful: Hub, mute: Hub, pool: Pool, room: Room, ada: User
) -> None:
    """And what comes after it, of which nobody rings, is no sign of a log that was rewound."""
    async with watchful.follow(ada.id) as feed:
        waiting = asyncio.create_task(take(feed))
        followed = feed.positions[room.id].room
        await pool.execute(GROW, room.id)
        await until(lambda: followed.position.seq == 4 and not followed.is_behind)
        (new,) = await say(mute, room, ada, 1)
        assert seqs(await waiting) == [new.seq] == [5]


async def test_a_client_that_polls_comes_to_the_end(hub: Hub, pool: Pool, room: Room, ada: User) -> None:
    await say(hub, room, ada, 9)
    await pool.execute(PURGE, room.id)
    async with asyncio.timeout(10):
        assert seqs(await log_of(hub, room.id, limit=1)) == [1]
        (new,) = await say(hub, room, ada, 1)
        assert seqs(await log_of(hub, room.id, limit=1)) == [1, new.seq]


async def test_who_is_told_to_load_a_room_anew_whose_newest_message_was_purged_is_told_once(
    hub: Hub, pool: Pool, room: Room, ada: User
) -> None:
    """Nothing stands where the cursor is that they go on from, and nothing will."""
    lost = (await say(hub, room, ada, 9))[-1].cursor
    await pool.execute(PURGE, room.id)
    (told,) = (await hub.messages.since(room.id, lost)).items
    head = resync(told).cursor
    assert await log_of(hub, room.id, head) == []
    async with hub.follow(ada.id, after={room.id: lost}) as feed:
        assert resync(*await take(feed)).cursor == head
    async with hub.follow(ada.id, after={room.id: head}) as feed:
        await hub._feed._rooms.head(feed.positions[room.id].room)  # as a heartbeat would
        (new,) = await say(hub, room, ada, 1)
        assert seqs(await take(feed)) == [new.seq] == [11]
    assert seqs(await log_of(hub, room.id, head)) == [11]


async def test_who_is_too_far_behind_a_newest_message_that_was_purged_is_told_so(
    settings: Settings, pool: Pool, room: Room, ada: User
) -> None:
    async with Hub(settings, options=replace(NEVER, follow_at_most_behind=3)) as hub:
        start = (await hub.messages.since(room.id, None)).cursor
        await say(hub, room, ada, 9)
        await pool.execute(PURGE, room.id)
        async with hub.follow(ada.id, after={room.id: start}) as feed:
            assert resync(*await take(feed)).reason == "too_far_behind"


async def test_who_has_heard_last_of_the_edit_of_a_message_that_was_purged_goes_on(
    hub: Hub, pool: Pool, room: Room, ada: User
) -> None:
    (sent,) = await say(hub, room, ada, 1)
    await hub.messages.edit(sent.id, "edited", by=ada.id)
    cursor = (await hub.messages.since(room.id, None)).cursor
    await pool.execute(PURGE, room.id)
    assert await log_of(hub, room.id, cursor) == []
    async with hub.follow(ada.id, after={room.id: cursor}) as feed:
        await hub._feed._rooms.head(feed.positions[room.id].room)  # as a heartbeat would
        (new,) = await say(hub, room, ada, 1)
        assert seqs(await take(feed)) == [new.seq] == [4]
    assert seqs(await log_of(hub, room.id, cursor)) == [4]
    assert seqs(await log_of(hub, room.id)) == [1, 4]


@pytest.mark.parametrize("grown", [0, 3, 6, 20])
async def test_a_log_that_was_rewound_past_a_place_where_nothing_stood_is_told(
    hub: Hub, mute: Hub, pool: Pool, room: Room, ada: User, grown: int
) -> None:
    """To live followers and to who comes back, however far it has grown since."""
    lost = (await say(hub, room, ada, 9))[-1].cursor
    await pool.execute(PURGE, room.id)
    head = (await hub.messages.since(room.id, lost)).cursor
    async with hub.follow(ada.id, after={room.id: head}) as feed:
        await rewind(pool, room.id, 4)
        await say(mute, room, ada, grown)
        await hub._feed._rooms.head(feed.positions[room.id].room)  # as a heartbeat would
        assert resync(*await take(feed)).reason == "rewound"
    async with hub.follow(ada.id, after={room.id: head}) as again:
        assert resync(*await take(again)).reason == "rewound"
    (told,) = (await hub.messages.since(room.id, head)).items
    assert resync(told).reason == "rewound"
