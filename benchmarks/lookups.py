"""Users and memberships by key, 200 callers at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable

from benchmarks.contenders import duel, hub_loop, hubbub, python
from benchmarks.context import PEOPLE, ROOMS, USERS, Context
from benchmarks.measuring import Comparison, Pace, aims
from benchmarks.peers import drivers
from benchmarks.peers.drivers import asyncpg_loop
from benchmarks.peers.node import ORIGINAL, node, skipped
from hubbub import Hub

CALLERS = 200


def user(hub: Hub, number: int) -> Awaitable[object]:
    return hub.users.get(USERS[number % PEOPLE])


def membership(hub: Hub, number: int) -> Awaitable[object]:
    return hub.room_users.get(ROOMS[number % PEOPLE], USERS[number % PEOPLE])


async def lookups(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """Concurrent calls that share a query, against one query per call."""
    yield await duel(
        context,
        pace,
        "lookups-user",
        f"lookups of a user, {CALLERS} callers",
        {
            **hubbub(hub_loop, step=user, callers=CALLERS),
            ORIGINAL: node("user", CALLERS, original=True),
        },
        targets=aims(("rate", 7.0, ORIGINAL)),
        skipped=skipped(ORIGINAL),
    )
    yield await duel(
        context,
        pace,
        "lookups-membership",
        f"lookups of a membership, {CALLERS} callers",
        {
            **hubbub(hub_loop, step=membership, callers=CALLERS),
            ORIGINAL: node("membership", CALLERS, original=True),
            "asyncpg": python(asyncpg_loop, sql=drivers.MEMBERSHIP, arguments=drivers.membership, callers=CALLERS),
        },
        targets=aims(("rate", 7.0, ORIGINAL)),
        skipped=skipped(ORIGINAL),
    )
