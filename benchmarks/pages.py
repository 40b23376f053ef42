"""Newest pages of 50 messages, as objects and as JSON, and lists of rooms, by 20 callers at a time.

Either all callers open the same room, which hubbub reads once for concurrent callers, or each caller opens its own
room, and nothing is shared. For the peers both cost the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from benchmarks.contenders import Window, duel, hub_loop, hubbub, python
from benchmarks.context import PEOPLE, ROOMS, USERS, Context
from benchmarks.measuring import UVLOOP, Comparison, Done, Pace, closed_loop
from benchmarks.peers import drivers
from benchmarks.peers.drivers import asyncpg_loop
from benchmarks.peers.node import CONTENT, STRICT, beside_original, node, skipped
from benchmarks.sends import send
from benchmarks.standby import Standby
from hubbub import Hub
from hubbub.embedded.folder import Folder
from hubbub.repositories import Rooms

CALLERS = 20
SENDERS = 20
OWN_ROOMS = ROOMS[:CALLERS]
"""The rooms, one per caller, each with more than a page of messages."""
ROOM = OWN_ROOMS[6]


TITLE = f"newest 50 messages, {CALLERS} callers"


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
    await _fill(context)
    one, own = [str(ROOM)], [str(room_id) for room_id in OWN_ROOMS]
    yield await beside_original(
        context,
        pace,
        "pages-one-room",
        f"{TITLE} in one room",
        step=page,
        original=node("page", CALLERS, page_rooms=one),
        callers=CALLERS,
        at_least=10,
        others={"hubbub, cache": python(hub_loop, loop="uvloop", step=cached_page, callers=CALLERS)},
    )
    yield await beside_original(
        context,
        pace,
        "pages-own-rooms",
        f"{TITLE} in rooms of their own",
        step=own_page,
        original=node("page", CALLERS, page_rooms=own),
        callers=CALLERS,
        at_least=1.75,
        others={
            "asyncpg": python(asyncpg_loop, sql=drivers.PAGE, arguments=page_arguments, callers=CALLERS),
        },
    )
    yield await beside_original(
        context,
        pace,
        "pages-own-rooms-json",
        f"the same as JSON, {CALLERS} callers in rooms of their own",
        step=own_page_json,
        original=node("page, JSON", CALLERS, page_rooms=own),
        callers=CALLERS,
        at_least=3.0,
    )


async def replica(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """Pages that are read on a replica on the same machine, and the remaining load of the primary."""
    await _fill(context)
    async with _replicated(context) as replicated:
        for senders, beside in ((0, ""), (SENDERS, f", beside {SENDERS} senders")):
            on_primary, on_replica = (
                python(own_pages, loop="uvloop", senders=senders, from_replica=from_replica)
                for from_replica in (False, True)
            )
            yield await duel(
                replicated,
                pace.seldom,
                f"pages-replica{'-sends' * bool(senders)}",
                f"{TITLE} in rooms of their own, with a replica on the same machine{beside}",
                {UVLOOP: on_primary, "hubbub, uvloop, from the replica": on_replica},
                targets=[],
            )


async def _fill(context: Context) -> None:
    async with Hub(context.settings) as hub:
        for room_id, user_id in zip(OWN_ROOMS, USERS, strict=False):
            await asyncio.gather(*(hub.messages.send(room_id, user_id, f"{CONTENT} {n}") for n in range(100)))


@asynccontextmanager
async def _replicated(context: Context) -> AsyncIterator[Context]:
    """Settings with a hot standby of the PostgreSQL."""
    folder = Folder(context.folder / "servers").find()
    assert folder is not None
    standby = Standby(folder, context.settings.postgres.port)
    settings = replace(context.settings, replicas=(await standby.start(),))
    try:
        holder = standby.process.living_holder()
        assert holder is not None
        yield replace(context, settings=settings, standby=holder.pid)
    finally:
        await standby.stop()


@asynccontextmanager
async def own_pages(context: Context, senders: int, *, from_replica: bool) -> AsyncIterator[Window]:
    """Callers of pages while others send to all rooms. Processor times per page include both."""
    settings = context.settings if from_replica else replace(context.settings, replicas=())
    async with Hub(settings) as hub:
        while hub._replicas is not None and not hub._replicas.in_service:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

        async def window(seconds: float) -> Done:
            pages = closed_loop(partial(own_page, hub), CALLERS, seconds)
            if not senders:
                return await pages
            done, sent = await asyncio.gather(pages, closed_loop(partial(send, hub), senders, seconds))
            return done._replace(more={"sends per second": sent.operations / sent.seconds})

        yield window


async def lists(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """Lists of ten and more rooms, each room with its newest message and unread count."""
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
