"""The newest 50 messages of a room, 20 callers at a time: as objects, as JSON, from the cache.

Either all callers open the same room, which hubbub reads once for concurrent callers, or each caller opens its own
room, where nothing is shared. For the peers both cost the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from benchmarks.context import ROOMS, USERS, Context
from benchmarks.measuring import Comparison, Pace, Target, compare, loop_of
from benchmarks.peers import node
from benchmarks.peers.drivers import bare_asyncpg, psycopg3
from benchmarks.peers.node import CONTENT
from benchmarks.peers.orm import sqlalchemy
from hubbub import Hub

CALLERS = 20
OWN_ROOMS = ROOMS[:CALLERS]
"""A room per caller, each with more than a page of messages."""
ROOM = OWN_ROOMS[6]

OBJECTS = "original, objects"
JSON = "original, JSON"


async def pages(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """A page that is read repeatedly, as when many users open the same room."""
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(Hub(context.settings))
        for room_id, user_id in zip(OWN_ROOMS, USERS, strict=False):
            await asyncio.gather(*(hub.messages.send(room_id, user_id, f"{CONTENT} {n}") for n in range(100)))
        asyncpg = await stack.enter_async_context(bare_asyncpg(context.settings.postgres, ROOM))
        psycopg = await stack.enter_async_context(psycopg3(context.settings.postgres, ROOM))
        orm = await stack.enter_async_context(sqlalchemy(context.settings.postgres, ROOM))
        contenders = {
            "hubbub": loop_of(lambda _: hub.messages.page(ROOM, limit=50), CALLERS),
            "hubbub, own rooms": loop_of(lambda n: hub.messages.page(OWN_ROOMS[n % CALLERS], limit=50), CALLERS),
            "hubbub, JSON": loop_of(lambda _: hub.messages.page_json(ROOM, limit=50), CALLERS),
            "hubbub, JSON, own rooms": loop_of(
                lambda n: hub.messages.page_json(OWN_ROOMS[n % CALLERS], limit=50), CALLERS
            ),
            "hubbub, cache": loop_of(lambda _: hub.cache.newest_page(ROOM), CALLERS),
            "asyncpg": loop_of(asyncpg["page"], CALLERS),
            "psycopg": loop_of(psycopg["page"], CALLERS),
            "SQLAlchemy": loop_of(orm["page"], CALLERS),
        }
        skipped = {}
        if reason := node.missing():
            skipped["original"] = reason
        else:
            peer = node.node(context, context.settings.postgres, page_room=str(ROOM))
            original = await stack.enter_async_context(peer)
            contenders[OBJECTS] = original.load("page", CALLERS)
            contenders[JSON] = original.load("page, JSON", CALLERS)
        yield await compare(
            "pages",
            f"newest 50 messages of a room, {CALLERS} callers",
            contenders,
            pace,
            targets=[
                Target("rate", 1.3, OBJECTS),
                Target("rate", 1.3, OBJECTS, of="hubbub, own rooms"),
                Target("rate", 2, JSON, of="hubbub, JSON"),
                Target("rate", 2, JSON, of="hubbub, JSON, own rooms"),
                Target("rate", 10, JSON, of="hubbub, cache"),
            ],
            skipped=skipped,
        )
