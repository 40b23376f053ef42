"""The newest 50 messages of a room, 20 callers at a time: as objects, as JSON, from the cache."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from benchmarks.measuring import Comparison, Pace, Target, compare, loop_of
from benchmarks.peers import node
from benchmarks.peers.drivers import bare_asyncpg, psycopg3
from benchmarks.peers.node import CONTENT
from benchmarks.peers.orm import sqlalchemy
from benchmarks.stage import USERS, Stage, id_of
from hubbub import Hub

CALLERS = 20
ROOM = id_of(7)
"""A room to which person 7 sends, and more than a page of it."""

OBJECTS = "seed, objects"
JSON = "seed, JSON"


async def pages(stage: Stage, pace: Pace) -> AsyncIterator[Comparison]:
    """A page that is read again and again, as when everybody opens the same room."""
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(Hub(stage.settings))
        await asyncio.gather(*(hub.messages.send(ROOM, USERS[6], f"{CONTENT} {number}") for number in range(100)))
        asyncpg = await stack.enter_async_context(bare_asyncpg(stage.settings.postgres, ROOM))
        psycopg = await stack.enter_async_context(psycopg3(stage.settings.postgres, ROOM))
        orm = await stack.enter_async_context(sqlalchemy(stage.settings.postgres, ROOM))
        contenders = {
            "hubbub": loop_of(lambda _: hub.messages.page(ROOM, limit=50), CALLERS),
            "hubbub, cache": loop_of(lambda _: hub.cache.newest_page(ROOM), CALLERS),
            "asyncpg": loop_of(asyncpg["page"], CALLERS),
            "psycopg": loop_of(psycopg["page"], CALLERS),
            "SQLAlchemy": loop_of(orm["page"], CALLERS),
        }
        skipped = {}
        if hasattr(hub.messages, "page_json"):
            page_json = hub.messages.page_json
            contenders["hubbub, JSON"] = loop_of(lambda _: page_json(ROOM, limit=50), CALLERS)
        else:
            skipped["hubbub, JSON"] = "there is no hub.messages.page_json"
        if reason := node.missing():
            skipped["seed"] = reason
        else:
            peer = node.node(stage, stage.settings.postgres, page_room=str(ROOM))
            seed = await stack.enter_async_context(peer)
            contenders[OBJECTS] = seed.load("page", CALLERS)
            contenders[JSON] = seed.load("page, JSON", CALLERS)
        yield await compare(
            "pages",
            f"newest 50 messages of a room, {CALLERS} callers",
            contenders,
            pace,
            targets=[
                Target("rate", 1.3, OBJECTS),
                Target("rate", 2, JSON, of="hubbub, JSON"),
                Target("rate", 10, JSON, of="hubbub, cache"),
            ],
            skipped=skipped,
        )
