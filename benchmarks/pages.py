"""The newest 50 messages of a room, 20 callers at a time: as objects, as JSON, from the cache.

All callers open the same room, which hubbub reads once for those who wait; and each one a room of its own, where
nothing is shared. To the peers it is the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from benchmarks.measuring import Comparison, Pace, Target, compare, loop_of
from benchmarks.peers import node
from benchmarks.peers.drivers import bare_asyncpg, psycopg3
from benchmarks.peers.node import CONTENT
from benchmarks.peers.orm import sqlalchemy
from benchmarks.stage import ROOMS, USERS, Stage
from hubbub import Hub

CALLERS = 20
OWN = ROOMS[:CALLERS]
"""A room for each caller. In each there is more than a page of messages."""
ROOM = OWN[6]

OBJECTS = "original, objects"
JSON = "original, JSON"


async def pages(stage: Stage, pace: Pace) -> AsyncIterator[Comparison]:
    """A page that is read again and again, as when everybody opens the same room."""
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(Hub(stage.settings))
        for room_id, user_id in zip(OWN, USERS, strict=False):
            await asyncio.gather(*(hub.messages.send(room_id, user_id, f"{CONTENT} {n}") for n in range(100)))
        asyncpg = await stack.enter_async_context(bare_asyncpg(stage.settings.postgres, ROOM))
        psycopg = await stack.enter_async_context(psycopg3(stage.settings.postgres, ROOM))
        orm = await stack.enter_async_context(sqlalchemy(stage.settings.postgres, ROOM))
        contenders = {
            "hubbub": loop_of(lambda _: hub.messages.page(ROOM, limit=50), CALLERS),
            "hubbub, own rooms": loop_of(lambda n: hub.messages.page(OWN[n % CALLERS], limit=50), CALLERS),
            "hubbub, JSON": loop_of(lambda _: hub.messages.page_json(ROOM, limit=50), CALLERS),
            "hubbub, JSON, own rooms": loop_of(
                lambda n: hub.messages.page_json(OWN[n % CALLERS], limit=50), CALLERS
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
            peer = node.node(stage, stage.settings.postgres, page_room=str(ROOM))
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
