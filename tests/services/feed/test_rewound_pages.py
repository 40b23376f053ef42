"""The newest page in the cache, when the log that it shows is not there any more. Who is told to load the room
anew must not be shown what is gone: it would stay on the screen for good, as no later event takes it back."""

from __future__ import annotations

import msgspec

from hubbub import Hub, MessagePage, Room, User
from hubbub.postgres import Pool
from services.feed.reading import resync, take
from services.feed.test_rewound import rewind, say
from waiting import until_it_answers

KEPT = 3
"""The seq of the newest entry that is left: the room's first, and two messages."""


async def shown(hub: Hub, room: Room) -> list[int]:
    """The seqs on the newest page, as the cache gives it."""
    page = msgspec.json.decode(await hub.cache.newest_page(room.id), type=MessagePage)
    return [message.seq for message in page.items]


async def kept_in_the_cache(hub: Hub, room: Room) -> list[int]:
    """The same, once Redis has it: what was sent a moment ago has made the entry before it old."""

    async def is_there() -> bool:
        hits = hub.cache.counts.hits
        await shown(hub, room)
        return hub.cache.counts.hits > hits

    await until_it_answers(is_there)
    return await shown(hub, room)


async def test_a_live_follower_who_is_told_loads_a_page_without_what_is_gone(
    watchful: Hub, pool: Pool, room: Room, ada: User
) -> None:
    async with watchful.follow(ada.id) as feed:
        sent = await say(watchful, room, ada, 5)
        await take(feed, 5)
        assert await kept_in_the_cache(watchful, room) == [one.seq for one in sent]
        await rewind(pool, room.id, KEPT)
        (told,) = await take(feed)
        assert resync(told).reason == "rewound"
        assert await shown(watchful, room) == [2, 3]


async def test_so_does_who_comes_back_with_a_cursor(hub: Hub, pool: Pool, room: Room, ada: User) -> None:
    sent = await say(hub, room, ada, 5)
    assert len(await kept_in_the_cache(hub, room)) == 5
    await rewind(pool, room.id, KEPT)
    async with hub.follow(ada.id, after={room.id: sent[-1].cursor}) as feed:
        (told,) = await take(feed)
        assert resync(told).reason == "rewound"
        assert await shown(hub, room) == [2, 3]


async def test_so_does_who_polls_the_log(hub: Hub, pool: Pool, room: Room, ada: User) -> None:
    sent = await say(hub, room, ada, 5)
    assert len(await kept_in_the_cache(hub, room)) == 5
    await rewind(pool, room.id, KEPT)
    page = await hub.messages.since(room.id, sent[-1].cursor)
    assert resync(page.items[0]).reason == "rewound"
    assert await shown(hub, room) == [2, 3]
