"""The newest page in the cache after a rewind. A client that reloads the room must not get a lost entry.

The entry would stay on the screen, because no later event removes it.
"""

from __future__ import annotations

import msgspec

from hubbub import Hub, MessagePage, Room, User
from hubbub.postgres import Pool
from services.feed.reading import resync, take
from services.feed.test_rewound import rewind, send_many
from waiting import until_it_answers

KEPT = 3
"""The seq of the newest remaining entry, after the first join and two messages."""


async def newest_page(hub: Hub, room: Room) -> list[int]:
    """The seqs on the newest page from the cache."""
    page = msgspec.json.decode(await hub.cache.newest_page(room.id), type=MessagePage)
    return [message.seq for message in page.items]


async def kept_in_the_cache(hub: Hub, room: Room) -> list[int]:
    """The same, once Redis has it. A message that was just sent has made the previous cache entry obsolete."""

    async def is_there() -> bool:
        hits = hub.cache.counts.hits
        await newest_page(hub, room)
        return hub.cache.counts.hits > hits

    await until_it_answers(is_there)
    return await newest_page(hub, room)


async def test_newest_page_after_a_live_resync_has_no_lost_entry(
    comparing: Hub, pool: Pool, room: Room, ada: User
) -> None:
    async with comparing.follow(ada.id) as feed:
        sent = await send_many(comparing, room, ada, 5)
        await take(feed, 5)
        assert await kept_in_the_cache(comparing, room) == [one.seq for one in sent]
        await rewind(pool, room.id, KEPT)
        (event,) = await take(feed)
        assert resync(event).reason == "rewound"
        assert await newest_page(comparing, room) == [2, 3]


async def test_newest_page_after_a_resync_of_a_cursor_has_no_lost_entry(
    hub: Hub, pool: Pool, room: Room, ada: User
) -> None:
    sent = await send_many(hub, room, ada, 5)
    assert len(await kept_in_the_cache(hub, room)) == 5
    await rewind(pool, room.id, KEPT)
    async with hub.follow(ada.id, after={room.id: sent[-1].cursor}) as feed:
        (event,) = await take(feed)
        assert resync(event).reason == "rewound"
        assert await newest_page(hub, room) == [2, 3]


async def test_newest_page_after_a_resync_in_a_page_has_no_lost_entry(
    hub: Hub, pool: Pool, room: Room, ada: User
) -> None:
    sent = await send_many(hub, room, ada, 5)
    assert len(await kept_in_the_cache(hub, room)) == 5
    await rewind(pool, room.id, KEPT)
    page = await hub.messages.since(room.id, sent[-1].cursor)
    assert resync(page.items[0]).reason == "rewound"
    assert await newest_page(hub, room) == [2, 3]
