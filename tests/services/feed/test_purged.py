"""Messages that an application's own retention has deleted: followers pass over them, and wait for what is new."""

from __future__ import annotations

import asyncio

from hubbub import Hub, Room, Settings, User
from hubbub.postgres import Pool, Statement
from instrumentation.recording import Recording
from services.feed.conftest import OFTEN
from services.feed.reading import log_of, seqs, take
from services.feed.test_rewound import PURGE, say
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
            await until(lambda: not feed.behind)
            (new,) = await say(hub, room, ada, 1)
            assert seqs(await waiting) == [new.seq] == [11]
    assert len(recording.outcomes("log.read")) <= 3


async def test_what_was_purged_before_it_was_heard_of_is_passed_over(
    watchful: Hub, mute: Hub, pool: Pool, room: Room, ada: User
) -> None:
    """And what comes after it, of which nobody rings, is no sign of a log that was rewound."""
    async with watchful.follow(ada.id) as feed:
        waiting = asyncio.create_task(take(feed))
        followed = feed.places[room.id].room
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
