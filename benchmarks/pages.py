"""What a client opens, 20 at a time: newest pages of 50 messages, as objects and as JSON, and lists of rooms.

All callers open the same room, which hubbub reads once for concurrent callers, or each caller opens its own, where
nothing is shared. For the peers both cost the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence

from benchmarks.contenders import duel, hub_loop, hubbub, python
from benchmarks.context import PEOPLE, ROOMS, USERS, Context
from benchmarks.measuring import Comparison, Pace, aims
from benchmarks.peers import drivers
from benchmarks.peers.drivers import asyncpg_loop
from benchmarks.peers.node import CONTENT, ORIGINAL, STRICT, node, skipped
from hubbub import Hub
from hubbub.repositories import Rooms

CALLERS = 20
OWN_ROOMS = ROOMS[:CALLERS]
"""A room per caller, each with more than a page of messages."""
ROOM = OWN_ROOMS[6]


def page(hub: Hub, _: int) -> Awaitable[object]:
    return hub.messages.page(ROOM, limit=50)


def own_page(hub: Hub, number: int) -> Awaitable[object]:
    return hub.messages.page(OWN_ROOMS[number % CALLERS], limit=50)


def own_page_json(hub: Hub, number: int) -> Awaitable[object]:
    return hub.messages.page_json(OWN_ROOMS[number % CALLERS], limit=50)


def cached_page(hub: Hub, _: int) -> Awaitable[object]:
    return hub.cache.newest_page(ROOM)


def list_of_rooms(hub: Hub, number: int) -> Awaitable[object]:
    return hub.rooms.list_for(USERS[number % PEOPLE])


def page_arguments(number: int) -> Sequence[object]:
    return (OWN_ROOMS[number % CALLERS],)


async def pages(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """A page that many users open at the same time, and pages of different rooms."""
    async with Hub(context.settings) as hub:
        for room_id, user_id in zip(OWN_ROOMS, USERS, strict=False):
            await asyncio.gather(*(hub.messages.send(room_id, user_id, f"{CONTENT} {n}") for n in range(100)))
    title = f"newest 50 messages, {CALLERS} callers"
    one, own = [str(ROOM)], [str(room_id) for room_id in OWN_ROOMS]
    yield await duel(
        context,
        pace,
        "pages-one-room",
        f"{title} in one room",
        {
            **hubbub(hub_loop, step=page, callers=CALLERS),
            ORIGINAL: node("page", CALLERS, page_rooms=one),
            "hubbub, cache": python(hub_loop, loop="uvloop", step=cached_page, callers=CALLERS),
        },
        targets=aims(("rate", 10, ORIGINAL)),
        skipped=skipped(ORIGINAL),
    )
    yield await duel(
        context,
        pace,
        "pages-own-rooms",
        f"{title} in rooms of their own",
        {
            **hubbub(hub_loop, step=own_page, callers=CALLERS),
            ORIGINAL: node("page", CALLERS, page_rooms=own),
            "asyncpg": python(asyncpg_loop, sql=drivers.PAGE, arguments=page_arguments, callers=CALLERS),
        },
        targets=aims(("rate", 1.75, ORIGINAL)),
        skipped=skipped(ORIGINAL),
    )
    yield await duel(
        context,
        pace,
        "pages-own-rooms-json",
        f"the same as JSON, {CALLERS} callers in rooms of their own",
        {
            **hubbub(hub_loop, step=own_page_json, callers=CALLERS),
            ORIGINAL: node("page, JSON", CALLERS, page_rooms=own),
        },
        targets=aims(("rate", 3.0, ORIGINAL)),
        skipped=skipped(ORIGINAL),
    )


async def lists(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """The lists of ten rooms and more, each room with its newest message and unread count."""
    yield await duel(
        context,
        pace.seldom,
        "list-of-rooms",
        f"lists of rooms, {CALLERS} callers",
        {
            **hubbub(hub_loop, step=list_of_rooms, callers=CALLERS),
            STRICT: node("list of rooms", CALLERS, sql=Rooms._LIST_FOR.sql, last_id=str(ROOMS[-1])),
        },
        targets=[],
        skipped=skipped(STRICT),
    )
