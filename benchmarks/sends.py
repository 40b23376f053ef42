"""Durable sends: membership checked, seq taken under the room's lock, message inserted, committed on disk."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from benchmarks.contenders import COPY, duel, hub_loop, hubbub, python
from benchmarks.context import PEOPLE, ROOMS, USERS, Context
from benchmarks.measuring import Comparison, Pace, aims
from benchmarks.peers import copying, drivers
from benchmarks.peers.drivers import asyncpg_loop
from benchmarks.peers.node import BARE, CONTENT, STRICT, beside_original, node, skipped
from benchmarks.peers.orm import sqlalchemy_sends
from hubbub import Hub

# Targets by number of senders: ratios to the original stack doing the same work, and to its bare INSERT.
AIMS = {20: (2.5, 1.4), 200: (6.0, 3.75), 2_000: (8.0, 5.0)}


def send(hub: Hub, number: int) -> Awaitable[object]:
    return hub.messages.send(ROOMS[number % PEOPLE], USERS[number % PEOPLE], CONTENT)


def send_in_one_room(hub: Hub, number: int) -> Awaitable[object]:
    return hub.messages.send(ROOMS[0], USERS[number % PEOPLE], CONTENT)


def many_rooms(callers: int) -> Callable[[Context, Pace], AsyncIterator[Comparison]]:
    """The cell with this many senders in 1,000 rooms."""
    strict, bare = AIMS[callers]

    async def sends(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
        """Cells with senders in 1,000 rooms."""
        others = {
            "asyncpg": python(asyncpg_loop, sql=drivers.SEND, arguments=drivers.send, callers=callers),
            "SQLAlchemy": python(sqlalchemy_sends, callers=callers),
        }
        yield await duel(
            context,
            pace,
            f"sends-{callers}",
            f"durable sends, {callers:,} senders in 1,000 rooms",
            {
                **hubbub(hub_loop, step=send, callers=callers),
                STRICT: node("send, strict", callers),
                BARE: node("send, bare", callers, original=True),
                **(others if callers == 200 else {}),
                COPY: python(copying.copy_loop, callers=callers),
            },
            targets=aims(
                ("rate", strict, STRICT), ("p99_ms", 3.0, STRICT), ("rate", bare, BARE), ("rate", 0.6, COPY)
            ),
            skipped=skipped(STRICT, BARE),
        )

    return sends


async def one_room(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """200 senders in one room, all of which need its lock."""
    yield await beside_original(
        context,
        pace,
        "sends-one-room",
        "durable sends, 200 senders in one room",
        step=send_in_one_room,
        original=node("send, one room", 200),
        callers=200,
        at_least=15,
        name=STRICT,
    )


async def one_sender(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """A single sender, whose sends share nothing."""
    yield await duel(
        context,
        pace,
        "sends-1",
        "durable sends, one sender",
        {
            **hubbub(hub_loop, step=send, callers=1),
            STRICT: node("send, strict", 1),
            BARE: node("send, bare", 1, original=True),
            "bare INSERT, asyncpg": python(
                asyncpg_loop, sql=drivers.INSERT, arguments=drivers.insert, callers=1, original=True
            ),
        },
        targets=aims(("p50_ms", 1.0, STRICT), ("p50_ms", 1.0, "bare INSERT, asyncpg")),
        skipped=skipped(STRICT, BARE),
    )
